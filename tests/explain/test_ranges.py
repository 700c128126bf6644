"""Rules by how deep a layer is: the tutorial's composite, decreasing gamma, epsilon relative to a layer's outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import canonize
from canonize.errors import ExplainError
from canonize.explain import attribute, decreasing_gamma, tutorial
from tests.explain.heatmaps import difference
from tests.explain.nets import Plain, ready


def test_epsilon_is_relative_to_the_root_mean_square_of_each_sample() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3).double(), torch.randn(2, 5, dtype=torch.float64)
    z = layer(x).detach()
    epsilon = 0.25 * z.pow(2).mean(1).sqrt()
    wanted = x * (layer.weight[1] / (z[:, 1] + epsilon * z[:, 1].sign())[:, None]).detach()
    found = attribute(layer, x, 1, method="epsilon", layers={"": ("relative-epsilon", {"epsilon": 0.25})}).relevance
    assert isinstance(found, Tensor) and difference(found, wanted) < 1e-12
    scaled = attribute(layer, 1e-3 * x, 1, layers={"": "relative-epsilon"}).relevance
    assert isinstance(scaled, Tensor) and scaled.isfinite().all()


def test_the_tutorials_rules_are_those_of_its_layers() -> None:
    model, images, targets = ready(Plain)
    canonical = canonize.canonize(model, images, verify=False)
    low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    rules = tutorial(canonical, low, high)
    assert [(names, rule[0]) for names, rule in rules.items()] == [
        (("0",), "z-box"),
        (("0", "4"), "gamma"),
        (("7",), "relative-epsilon"),
        (("12", "16"), "epsilon"),
    ]
    found = attribute(canonical, images, targets, layers=rules).relevance
    by_hand = attribute(
        canonical, images, targets,
        layers={
            "0": ("z-box", {"low": low, "high": high}),
            "4": ("gamma", {"gamma": 0.25}),
            "7": ("relative-epsilon", {"epsilon": 0.25}),
            ("12", "16"): ("epsilon", {"epsilon": 1e-9}),
        },
    ).relevance  # fmt: skip
    assert isinstance(found, Tensor) and torch.equal(found, by_hand)
    assert attribute(canonical, images, targets, layers=tutorial(canonical)).notes == ()
    with pytest.raises(ExplainError, match="two bounds"):
        tutorial(canonical, low)


def test_gamma_decreases_from_group_to_group() -> None:
    model, images, targets = ready(Plain)
    canonical = canonize.canonize(model, images, verify=False)
    rules = decreasing_gamma(canonical, (1.0, 0.5, 0.0))
    assert [(names, rule[1]["gamma"]) for names, rule in rules.items()] == [
        (("0", "4"), 1.0), (("7", "12"), 0.5), (("16",), 0.0),
    ]  # fmt: skip
    found = attribute(canonical, images, targets, layers=rules).relevance
    assert isinstance(found, Tensor) and found.isfinite().all()
    with pytest.raises(ExplainError, match="does not decrease"):
        decreasing_gamma(canonical, (0.1, 0.5))
