"""The five families of the papers, small: VGG, ResNet, EfficientNet, DenseNet, Relation Network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.resnet import Bottleneck, ResNet

from tests.explain.nets import CLASSES, Plain, dense
from tests.statistics import calibrate, harden
from tests.zoo.relation_network import SMALL, RelationNetwork


def resnet() -> nn.Module:
    """Four stages of one bottleneck block each, narrow."""
    model: nn.Module = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, width_per_group=8)
    return model


def efficientnet() -> nn.Module:
    """Three stages of inverted bottlenecks with squeeze-excitation gates."""
    stages = [
        MBConvConfig(1, 3, 1, 8, 8, 1, 1, 1),
        MBConvConfig(4, 3, 2, 8, 12, 2, 1, 1),
        MBConvConfig(4, 5, 2, 12, 16, 1, 1, 1),
    ]
    model: nn.Module = EfficientNet(
        stages, 0.0, num_classes=CLASSES, last_channel=32, norm_layer=partial(nn.BatchNorm2d, eps=1e-3)
    )
    return model


def small_dense() -> nn.Module:
    """A torchvision DenseNet of two blocks: explicit matrices of its layers are small."""
    model: nn.Module = DenseNet(
        growth_rate=4, block_config=(2, 2), num_init_features=6, bn_size=2, num_classes=CLASSES
    )  # fmt: skip
    return model


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "VGG": Plain,
    "ResNet": resnet,
    "EfficientNet": efficientnet,
    "DenseNet": dense,
}


def hardened(build: Callable[[], nn.Module], size: int, batch: int = 2) -> tuple[nn.Module, Tensor]:
    """A model of images in float64, its BatchNorms with hard statistics, and noise for it."""
    torch.manual_seed(0)
    model = build().double().eval()
    harden(model, zero=False, tiny=False)
    calibrate(model, torch.randn(4, 3, size, size, dtype=torch.float64))
    return model, torch.randn(batch, 3, size, size, dtype=torch.float64)


def relation_network() -> tuple[nn.Module, tuple[Any, ...]]:
    """A Relation Network in float64 with hard statistics, and an image, a question and its length for two samples."""
    torch.manual_seed(0)
    model = RelationNetwork(SMALL).double().eval()
    harden(model, zero=False, tiny=False)
    image = torch.randn(2, 3, SMALL.image, SMALL.image, dtype=torch.float64)
    return model, (image, torch.randint(0, SMALL.vocabulary, (2, 6)), torch.tensor([6, 3]))
