"""The five small networks that are shipped with weights, one for each family of the papers.

They are as their big kin in every way that matters to canonization: where the BatchNorms stand, what they are followed
by, what is concatenated and what is summed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from canonize.errors import LoadError

SHIPPED = Path(__file__).parent / "shipped"


class Vgg(nn.Module):
    """Convolution -> BatchNorm -> ReLU throughout, max-pooling between (VGG with BatchNorm); images 40x40."""

    def __init__(self, widths: tuple[int, ...] = (12, 12, 0, 24, 24, 0, 48, 48, 0), classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            if width:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(4 * before, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 3, H, W)."""
        output: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return output


class BasicBlock(nn.Module):
    """Two convolutions with BatchNorms around a skip connection, which a strided convolution fits where needed."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = (
            None
            if stride == 1 and before == width
            else nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the skip connection."""
        skip = x if self.downsample is None else self.downsample(x)
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        output: Tensor = self.relu(branch + skip)
        return output


class ResNet(nn.Module):
    """A stem and four residual blocks; 40x40 images, 10 classes."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = BasicBlock(16, 16, 1)
        self.layer2 = BasicBlock(16, 24, 1)
        self.layer3 = BasicBlock(24, 32, 2)
        self.layer4 = BasicBlock(32, 40, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(40, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 3, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        output: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return output


class SqueezeExcitation(nn.Module):
    """A weight in (0, 1) for each channel, worked out from the means of all of them, times that channel."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.activation = nn.Conv2d(width, squeezed, 1), nn.SiLU()
        self.fc2, self.scale_activation = nn.Conv2d(squeezed, width, 1), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Every channel by its weight."""
        weight: Tensor = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return weight * x


class InvertedBottleneck(nn.Module):
    """1x1 convolution to more channels, depthwise convolution, squeeze-excitation, 1x1 convolution back (MBConv)."""

    def __init__(self, before: int, width: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = before * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.SiLU()]
        layers += [
            nn.Conv2d(inner, inner, kernel, stride, padding=kernel // 2, groups=inner, bias=False),
            *(nn.BatchNorm2d(inner), nn.SiLU(), SqueezeExcitation(inner, max(4, before // 4))),
            *(nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)),
        ]
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and before == width

    def forward(self, x: Tensor) -> Tensor:
        """The block, and its input where it fits."""
        branch: Tensor = self.block(x)
        return branch + x if self.residual else branch


class EfficientNet(nn.Module):
    """A stem, six inverted bottlenecks with squeeze-excitation, a 1x1 convolution; 40x40 images, 10 classes."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        blocks = ((16, 16, 1, 3, 1), (16, 24, 2, 3, 1), (24, 24, 2, 3, 1), (24, 32, 2, 5, 2), (32, 32, 2, 5, 1))
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(16), nn.SiLU()),
            *(InvertedBottleneck(*block) for block in (*blocks, (32, 48, 2, 3, 2))),
            *(nn.Conv2d(48, 96, 1, bias=False), nn.BatchNorm2d(96), nn.SiLU()),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(96, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 3, H, W)."""
        output: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return output


class DenseLayer(nn.Module):
    """BatchNorm -> ReLU -> 1x1 convolution -> BatchNorm -> ReLU -> 3x3 convolution, behind a concatenation."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(before), nn.ReLU()
        self.conv1 = nn.Conv2d(before, 2 * growth, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(2 * growth), nn.ReLU()
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, *parts: Tensor) -> Tensor:
        """New features from all that came before."""
        x = torch.cat(parts, 1)
        output: Tensor = self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(x))))))
        return output


class DenseBlock(nn.Module):
    """Layers that each read all layers before them."""

    def __init__(self, before: int, layers: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(before + i * growth, growth) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """The input and every layer's features, concatenated."""
        parts = [x]
        for layer in self.layers:
            parts.append(layer(*parts))
        return torch.cat(parts, 1)


class DenseNet(nn.Module):
    """A stem, three dense blocks with transitions between, a BatchNorm at the end; 40x40 images, 10 classes."""

    def __init__(self, growth: int = 10, layers: tuple[int, ...] = (3, 4, 4), classes: int = 10) -> None:
        super().__init__()
        width = 2 * growth
        stem = [nn.Conv2d(3, width, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        blocks: list[nn.Module] = []
        for position, count in enumerate(layers):
            blocks.append(DenseBlock(width, count, growth))
            width += count * growth
            if position < len(layers) - 1:
                blocks += [
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, width // 2, 1, bias=False),
                    nn.AvgPool2d(2),
                ]
                width //= 2
        self.features = nn.Sequential(*stem, *blocks, nn.BatchNorm2d(width), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 3, H, W)."""
        output: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return output


class RelationNetwork(nn.Module):
    """Image code, coordinates and question of every pair of cells -> a sum over pairs -> an answer.

    As in Santoro et al. 2017, each BatchNorm stands behind its ReLU, so that the last one meets the concatenation with
    the coordinates and the question. The mean over one object of the pair, where they take the sum over both, trains in
    minutes. 64x64 images, questions of 11 numbers, 10 answers.
    """

    coordinates: Tensor

    def __init__(
        self, width: int = 24, hidden: int = 64, question: int = 11, answers: int = 10, cells: int = 4
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before in (3, width, width, width):
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.ReLU(), nn.BatchNorm2d(width)]
        self.encoder = nn.Sequential(*layers)
        line = torch.linspace(-1, 1, cells)
        self.register_buffer("coordinates", torch.stack(torch.meshgrid(line, line, indexing="ij"))[None])
        self.relation = nn.Sequential(
            *(nn.Linear(2 * (width + 2) + question, hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
        )
        self.answer = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, answers))

    def forward(self, image: Tensor, question: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 3, 64, 64) and questions (N, 11)."""
        return self.answered(self.encoder(image), question)

    def objects(self, code: Tensor) -> Tensor:
        """The cells of image codes (N, C, 4, 4), each with its coordinates: (N, 16, C + 2)."""
        code = torch.cat([code, self.coordinates.expand(code.shape[0], -1, -1, -1)], 1)
        return code.flatten(2).transpose(1, 2)

    def answered(self, code: Tensor, question: Tensor) -> Tensor:
        """Logits (N, 10) of image codes (N, C, 4, 4) and questions (N, 11)."""
        objects = self.objects(code)
        number = objects.shape[1]
        first = objects.unsqueeze(1).expand(-1, number, -1, -1)
        second = objects.unsqueeze(2).expand(-1, -1, number, -1)
        asked = question[:, None, None, :].expand(-1, number, number, -1)
        pairs = self.relation(torch.cat([first, second, asked], 3))
        output: Tensor = self.answer(pairs.sum(1).mean(1))
        return output


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg": Vgg,
    "resnet": ResNet,
    "efficientnet": EfficientNet,
    "densenet": DenseNet,
    "relation_network": RelationNetwork,
}


def shipped(name: str) -> nn.Module:
    """One of the networks with the weights that `examples/evaluation/train.py` gave it.

    Parameters
    ----------
    name : {"vgg", "resnet", "efficientnet", "densenet", "relation_network"}

    Returns
    -------
    nn.Module
        In eval mode, on the CPU, float32.

    Raises
    ------
    LoadError
        If there is no such network.
    """
    from safetensors.torch import load_file

    if name not in NETWORKS:
        raise LoadError(f"there is no shipped network {name!r}", hint=f"Choose one of {', '.join(NETWORKS)}")
    network = NETWORKS[name]()
    network.load_state_dict(load_file(SHIPPED / f"{name}.safetensors"))
    return network.eval()


def vgg() -> nn.Module:
    """The shipped VGG."""
    return shipped("vgg")


def resnet() -> nn.Module:
    """The shipped ResNet."""
    return shipped("resnet")


def efficientnet() -> nn.Module:
    """The shipped EfficientNet."""
    return shipped("efficientnet")


def densenet() -> nn.Module:
    """The shipped DenseNet."""
    return shipped("densenet")


def relation_network() -> nn.Module:
    """The shipped Relation Network."""
    return shipped("relation_network")
