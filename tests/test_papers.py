"""The architectures that the papers on canonization use, with hard statistics, against the strictest of the harness.

Pahde et al. 2023 and Motzkus et al. 2022: VGG with batch norm, ResNet, EfficientNet, DenseNet, Relation Network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from canonize.compat import import_torchvision
from tests import checks
from tests.statistics import batch_norms, calibrate, harden
from tests.zoo import relation_network
from tests.zoo.case import image

CLASSES = 10
IMAGES = image(3, 32, 32)
# What float32 costs is a matter of the processor's order of summation, and of luck: no single draw is a measure of it.
DRAWS = 6
STEP = torch.finfo(torch.float32).eps / 2


def _vgg(name: str) -> nn.Module:
    """torchvision's VGG; only the fully connected layers, 120 million parameters that hold no norm, are narrower."""
    torchvision = import_torchvision()
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, init_weights=False)
    model.classifier[0] = nn.Linear(512 * 7 * 7, 32)
    model.classifier[3] = nn.Linear(32, 32)
    model.classifier[6] = nn.Linear(32, CLASSES)
    return model


def _torchvision(name: str) -> nn.Module:
    model: nn.Module = import_torchvision().models.get_model(name, weights=None, num_classes=CLASSES)
    return model


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    **{name: (lambda name=name: _vgg(name), IMAGES) for name in ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")},
    **{
        name: (lambda name=name: _torchvision(name), IMAGES)
        for name in ("resnet18", "resnet50", "densenet121", "densenet161")
    },
    # Smaller images shrink to a single position five stages before the end.
    "efficientnet_b0": (lambda: _torchvision("efficientnet_b0"), image(3, 64, 64)),
    "relation_network": (relation_network.RelationNetwork, relation_network.inputs),
}


def _build(name: str) -> tuple[nn.Module, Callable[[int], Any]]:
    build, inputs = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = harden(build(), seed=1)
    calibrate(model, *checks.draw(inputs, 8, dtype=torch.float32), seed=2)
    return model.eval(), inputs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_papers_architecture(name: str) -> None:
    import canonize

    model, inputs = _build(name)
    exact = copy.deepcopy(model).double()
    assert sum(1 for _ in batch_norms(model)) == checks.count_batch_norms(
        model, checks.draw(inputs, 1, dtype=torch.float32)
    )

    # The harness proves the float64 model without help; the float32 one below goes through canonize's own proof.
    canonical_exact = checks.assert_canonized(exact, inputs, tolerance=1e-10, verify=False, scale=1.0)
    assert canonical_exact.report.canonical, str(canonical_exact.report)

    example = checks.draw(inputs, 2, dtype=torch.float32)
    canonical = canonize.canonize(model, example)
    wanted = exact(*checks.draw(inputs, 2))
    assert 1e-2 < wanted.abs().max() < 1e3, "the outputs of this model prove nothing"

    # A DenseNet's BatchNorms move behind their ReLUs, whose outputs then carry the threshold z: W s max(x, z) + W t
    # cancels where BN + ReLU gives an exact zero. So the canonical model may be off as far as its own weights leave it
    # in the dark, and these no more than the original's do: that is measured in float64, the same on every processor.
    noise, error = _distance(model, exact, inputs), _distance(canonical, exact, inputs)
    own_step, step = _distance(_moved(exact), exact, inputs), _distance(_moved(canonical_exact), exact, inputs)
    assert error <= 3 * (noise + step), (
        f"float32: off by {error:.2g}, the original by {noise:.2g}, a step is {step:.2g}"
    )
    assert step <= 6 * own_step, f"a rounding step of its weights moves the output by {step:.2g}, not {own_step:.2g}"


@torch.no_grad()
def _distance(model: nn.Module, exact: nn.Module, inputs: Callable[[int], Any]) -> float:
    """Root mean square difference of outputs, over several draws, relative to the largest of each."""
    dtype = next(model.parameters()).dtype
    squares = []
    for seed in range(DRAWS):
        drawn = checks.draw(inputs, 2, seed, torch.float32)
        found, wanted = (
            f(*(x.to(kind) if x.is_floating_point() else x for x in drawn)).double()
            for f, kind in ((model, dtype), (exact, torch.float64))
        )
        squares.append(((found - wanted) / wanted.abs().max()).square().mean())
    return torch.stack(squares).mean().sqrt().item()


@torch.no_grad()
def _moved(exact: nn.Module) -> nn.Module:
    """A float64 model whose every weight is moved by up to one rounding step of float32."""
    moved = copy.deepcopy(exact)
    generator = torch.Generator().manual_seed(3)
    for tensor in (*moved.parameters(), *moved.buffers()):
        if tensor.is_floating_point():
            share = 2 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) - 1
            tensor.mul_(1 + 2 * STEP * share)
    return moved
