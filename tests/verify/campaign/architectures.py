"""Small networks of the families that people explain, with statistics as trained ones have them, some channels dead."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.statistics import calibrate, harden
from tests.zoo.relation_network import RelationNetwork
from tests.zoo.relation_network import inputs as relation_inputs


class Block(nn.Module):
    """A residual block; its sum is a bare ``+``, its rectifier is called twice."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs, eps=1e-2)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=1e-2)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs, eps=1e-2)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8, eps=1e-2), nn.ReLU(inplace=True)),
        Block(8, 8, 1), Block(8, 16, 2), Block(16, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 12), (12, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs, eps=1e-2), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 10)]
    return nn.Sequential(*layers, *head)


def densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(growth_rate=6, block_config=(2, 2), num_init_features=8, bn_size=2, num_classes=10)


def efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    config = partial(MBConvConfig, width_mult=0.5, depth_mult=1.0)
    return EfficientNet([config(1, 3, 1, 16, 16, 1), config(4, 3, 2, 16, 24, 1), config(4, 5, 1, 24, 24, 1)], 0.1,
                        num_classes=10, last_channel=48)  # fmt: skip


def vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # torchvision's head starts at zero
    return model


def _image(batch: int) -> tuple[Tensor]:
    return (torch.randn(batch, 3, 32, 32),)


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "ResNet": (resnet, _image),
    "VGG": (vgg, _image),
    "DenseNet": (densenet, _image),
    "EfficientNet": (efficientnet, _image),
    "ViT": (vit, _image),
    "relation network": (RelationNetwork, relation_inputs),
}


def make(name: str, seed: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network with its statistics, and two example rows; the same for the same seed."""
    build, inputs = ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 + seed)
        model = harden(build(), seed, tiny=False).eval()
        with torch.no_grad():
            calibrate(model, *inputs(8), seed=seed)
        return model, inputs(2)
