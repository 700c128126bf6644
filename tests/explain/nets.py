"""Small classifiers for heatmaps: plain, residual, dense, and one that calls its modules twice."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet
from zennit.layer import Sum

from tests.statistics import calibrate, harden

CLASSES = 5


class Plain(nn.Sequential):
    """Convolution -> BatchNorm -> ReLU throughout, max-pooling between, two fully connected layers (VGG with BN)."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12, eps=1e-3), nn.ReLU()),
            *(nn.Conv2d(12, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Linear(48, 16), nn.BatchNorm1d(16), nn.ReLU()),
            *(nn.Dropout(), nn.Linear(16, CLASSES)),
        )


class Block(nn.Module):
    """A residual block; the skip connection is the input itself, or a strided convolution with a BatchNorm.

    That convolution sees 3x3 positions: with one, some outputs would have no positive input, and the z-plus rule loses
    the relevance of those.
    """

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Sequential()
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(channels, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))) + self.downsample(x))
        return output


class StackedSumBlock(Block):
    """The same block, with the sum spelled as zennit wants it: a module that sums what was stacked."""

    sum: Sum

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))), self.downsample(x))
        output: Tensor = self.relu2(self.sum(torch.stack(branches, -1)))
        return output


class Residual(nn.Sequential):
    """A small ResNet: a stem, an identity block, a block with downsampling."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(Block(8, 8, 1), Block(8, 12, 2)),
            *(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(12, CLASSES)),
        )


class Reused(nn.Module):
    """One ReLU for three activations, one convolution called twice, with a BatchNorm behind each call."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(self.bn1(self.conv(x)))
        x = self.relu(self.bn2(self.conv(x)))
        output: Tensor = self.head(x.mean((2, 3)))
        return output


class Unshared(nn.Sequential):
    """What `Reused` computes, with a module for each call and the BatchNorms merged by hand."""

    def __init__(self, reused: Reused) -> None:
        super().__init__(
            *(copy.deepcopy(reused.stem), nn.ReLU()),
            *(_merged(reused.conv, reused.bn1), nn.ReLU()),
            *(_merged(reused.conv, reused.bn2), nn.ReLU()),
            Average(),
            copy.deepcopy(reused.head),
        )


class Average(nn.Module):
    """The mean over an image's positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _merged(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    assert norm.running_mean is not None and norm.running_var is not None and conv.bias is not None
    conv = copy.deepcopy(conv)
    scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    conv.weight = nn.Parameter(conv.weight.detach() * scale[:, None, None, None])
    assert conv.bias is not None
    conv.bias = nn.Parameter((conv.bias.detach() - norm.running_mean) * scale + norm.bias.detach())
    return conv


def dense() -> nn.Module:
    """A torchvision DenseNet of four blocks, small; no concatenation has as many channels as a layer grows."""
    model: nn.Module = DenseNet(
        growth_rate=6, block_config=(2, 3, 2, 2), num_init_features=16, bn_size=2, num_classes=CLASSES
    )
    return model


def ready(
    build: Callable[[], nn.Module], *, positive: bool = False, size: int = 32, batch: int = 2
) -> tuple[nn.Module, Tensor, Tensor]:
    """A model in float64 whose BatchNorms have hard statistics that fit its inputs.

    Parameters
    ----------
    build : callable
        Makes the model.
    positive : bool
        Whether every scale is positive; otherwise a quarter is negative. None is zero.
    size, batch : int
        Image size and number of images.

    Returns
    -------
    model : nn.Module
    images : Tensor, shape (batch, 3, size, size)
        Noise.
    targets : Tensor, shape (batch,)
        The class the model gives the highest output.
    """
    torch.manual_seed(0)
    model = build().double().eval()
    harden(model, zero=False, tiny=False, positive=positive)
    calibrate(model, torch.randn(4, 3, size, size, dtype=torch.float64))
    images = torch.randn(batch, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        return model, images, model(images).argmax(1)
