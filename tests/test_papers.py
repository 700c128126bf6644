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
# What random data and one pass in float32 add to the noise floor where that is zero by luck.
SLACK = 1e-6
# By how much the canonical model may be noisier in float32. A DenseNet's BatchNorms move behind their ReLUs, whose
# outputs then carry the threshold z: W s max(x, z) + W t cancels where BN + ReLU gives an exact zero. Measured on eight
# draws with DenseNet-121: 2.4 to 7.6 times the original's noise.
FACTORS = {"densenet121": 12.0, "densenet161": 12.0}


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
    noise = checks.relative_error(model(*example).double(), wanted)
    error = checks.relative_error(canonical(*example).double(), wanted)
    assert error <= FACTORS.get(name, 3.0) * noise + SLACK, f"float32: off by {error:.2g}, the original by {noise:.2g}"
