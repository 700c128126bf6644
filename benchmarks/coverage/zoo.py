"""The architectures: their names, how one is built with random weights, and what it is fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from canonize.compat import import_torchvision

Build = Callable[[], nn.Module]
Feed = Callable[[int], tuple[Tensor, ...]]

SMALLER = 64
"""Edge in pixels of images for models that take any size: what is measured is exactness."""


@dataclass(frozen=True)
class Architecture:
    """One architecture of a library."""

    library: str
    name: str
    family: str

    @property
    def key(self) -> str:
        """``timm:resnet18``: what ``canonize`` itself takes."""
        return f"{self.library}:{self.name}"


def architectures() -> list[Architecture]:
    """All of them, sorted by library, family and name."""
    return sorted([*_of_torchvision(), *_of_timm()], key=lambda it: (it.library, it.family, it.name))


def _of_timm() -> Iterator[Architecture]:
    timm = import_torchvision("timm")
    for name in timm.list_models():
        module = timm.model_entrypoint(name).__module__
        yield Architecture("timm", name, module.rpartition(".")[2])


def _of_torchvision() -> Iterator[Architecture]:
    models = import_torchvision().models
    for name in models.list_models():
        module = models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
        yield Architecture("torchvision", name, module)


def build(architecture: Architecture) -> nn.Module:
    """Make the model, with random weights.

    Detectors choose boxes by value: of them it is the backbone that is taken, with its frozen BatchNorms.
    """
    if architecture.library == "timm":
        model: nn.Module = import_torchvision("timm").create_model(architecture.name, pretrained=False)
        return model.eval()
    models = import_torchvision().models
    arguments: dict[str, Any] = {"weights": None}
    if architecture.family.startswith(("detection", "segmentation")):
        arguments["weights_backbone"] = None
    if architecture.family.startswith("quantization"):
        arguments["quantize"] = False
    if architecture.name in ("googlenet", "inception_v3") or architecture.name.startswith("quantized_"):
        arguments.setdefault("init_weights", True) if architecture.name in ("googlenet", "inception_v3") else None
    model = models.get_model(architecture.name, **arguments)
    if architecture.family.startswith("detection"):
        model = model.backbone
    return model.eval()


def feeds(architecture: Architecture, model: nn.Module) -> list[Feed]:
    """Makers of one batch, the cheapest first; not each of them need fit the model."""
    if architecture.library == "timm":
        return _images(_timm_sizes(model))
    if architecture.family.startswith("video"):
        sizes = [(3, 16, 224, 224)] if "vit" in architecture.name else [(3, 8, 64, 64), (3, 16, 224, 224)]
        return _images(sizes)
    if architecture.family.startswith("optical_flow"):
        return _images([(3, 128, 128)], count=2)
    edges = [SMALLER, 128, 224, 299]
    if architecture.name.startswith(("vit_", "swin", "maxvit")):
        edges = [224, 256, 384, 512, 518]
    edges.append(getattr(model, "image_size", 224))
    return _images([(3, edge, edge) for edge in edges])


def _timm_sizes(model: Any) -> list[tuple[int, ...]]:
    config = model.default_cfg
    channels, height, width = config.get("input_size") or (3, 224, 224)
    sizes: list[tuple[int, ...]] = [(channels, height, width)]
    if not config.get("fixed_input_size") and min(height, width) > SMALLER:
        low = config.get("min_input_size") or (channels, SMALLER, SMALLER)
        sizes.insert(0, (channels, 2 * SMALLER, 2 * SMALLER))
        sizes.insert(0, (channels, max(low[1], SMALLER), max(low[2], SMALLER)))
    return sizes


def _images(sizes: list[tuple[int, ...]], count: int = 1) -> list[Feed]:
    def of(size: tuple[int, ...]) -> Feed:
        return lambda batch: tuple(torch.randn(batch, *size, dtype=torch.float64) for _ in range(count))

    return [of(size) for size in dict.fromkeys(sizes)]
