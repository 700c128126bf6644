"""Heatmaps against implementations that share no code with canonize: explicit matrices, captum, zennit's canonizers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat, ExcitationBackprop
from zennit.core import Composite
from zennit.torchvision import ResNetCanonizer

import canonize
from canonize.explain import attribute
from canonize.explain.captum import LRP
from tests.explain.families import FAMILIES, hardened, relation_network, small_dense
from tests.explain.heatmaps import difference, heatmap
from tests.explain.nets import Plain, Residual, dense, ready
from tests.explain.slow_lrp import slow_lrp

SIZES = {"VGG": 16, "ResNet": 8, "EfficientNet": 16, "DenseNet": 16}
CASES = [(name, "threshold") for name in FAMILIES] + [("DenseNet", "untangle")]


@pytest.mark.parametrize(("family", "strategy"), CASES)
def test_heatmaps_are_those_of_explicit_matrices(family: str, strategy: Any) -> None:
    model, images = hardened(small_dense if family == "DenseNet" else FAMILIES[family], SIZES[family])
    canonical = canonize.canonize(model, images, strategy=strategy, verify=False)
    for rules in ("epsilon", "epsilon-plus"):
        found = attribute(canonical, images, method=rules)
        start = torch.zeros_like(found.output).scatter_(1, found.target[:, None], 1)
        wanted = slow_lrp(canonical, (images,), start, rules, 1e-6)
        assert isinstance(found.relevance, Tensor)
        assert wanted.abs().max() > 0
        assert difference(found.relevance, wanted) < 1e-9, rules


def test_a_relation_network_has_the_heatmaps_of_explicit_matrices() -> None:
    model, inputs = relation_network()
    canonical = canonize.canonize(model, inputs, verify=False)
    for rules in ("epsilon", "epsilon-plus"):
        found = attribute(canonical, inputs, method=rules)
        start = torch.zeros_like(found.output).scatter_(1, found.target[:, None], 1)
        wanted = slow_lrp(canonical, inputs, start, rules, 1e-6)
        assert isinstance(found.relevance, tuple)
        image, question, lengths = found.relevance
        assert question is None and lengths is None, "tokens are no floating tensors"
        assert image is not None and difference(image, wanted) < 1e-9, rules


@pytest.mark.parametrize("build", [Plain, Residual, dense])
@pytest.mark.parametrize("epsilon", [1e-9, 1e-2])
def test_captum_and_zennit_agree_on_a_canonical_model(build: Callable[[], nn.Module], epsilon: float) -> None:
    model, images, targets = ready(build)
    canonical = canonize.canonize(model, images, verify=False)
    explainer = LRP(canonical, epsilon=epsilon)
    wanted = explainer.attribute(images.clone(), targets)
    assert torch.equal(wanted, explainer.attribute(images.clone(), targets)), "a second time is like the first"
    found = attribute(
        canonical, images, targets, method="epsilon", epsilon=epsilon, stabilizer=epsilon, initial="output"
    )  # fmt: skip
    assert isinstance(found.relevance, Tensor)
    assert difference(found.relevance, wanted) < 1e-10


BOX = torch.full((1, 3, 1, 1), 5.0, dtype=torch.float64)
OURS: dict[str, tuple[Callable[..., Composite], dict[str, Any]]] = {
    "epsilon-plus": (EpsilonPlus, {}),
    "epsilon-plus-flat": (EpsilonPlusFlat, {}),
    "alpha2-beta1": (EpsilonAlpha2Beta1, {}),
    "epsilon-gamma-box": (EpsilonGammaBox, {"low": -BOX, "high": BOX}),
    "excitation-backprop": (ExcitationBackprop, {}),
}


@pytest.mark.parametrize("method", OURS)
def test_on_layers_that_zennit_knows_the_rules_are_zennits(method: str) -> None:
    model, images, targets = ready(Plain)
    canonical = canonize.canonize(model, images, verify=False)
    build, more = OURS[method]
    found = attribute(canonical, images, targets, method=method, **more)
    assert isinstance(found.relevance, Tensor)
    assert difference(found.relevance, heatmap(canonical, build(**more), images, targets)) < 1e-12


def test_resnet50_has_the_heatmaps_of_zennits_own_canonizer() -> None:
    """The reference leaves each merged BatchNorm's eps behind, which here is taken out, as the papers' code does."""
    model, images, targets = ready(lambda: resnet50(weights=None), size=32, batch=1)
    canonical = canonize.canonize(model, images, verify=False)
    reference = copy.deepcopy(model)
    merged = ResNetCanonizer().apply(reference)
    for layer in reference.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.0
    for method in ("epsilon-plus", "alpha2-beta1"):
        wanted = heatmap(reference, OURS[method][0](), images, targets)
        found = attribute(canonical, images, targets, method=method).relevance
        assert isinstance(found, Tensor)
        assert difference(found, wanted) < 1e-6, method
    del merged
