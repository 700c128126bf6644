"""The fourteen heatmaps of the papers, small: equal to those of the published canonizations, written once more.

`tests/explain/fourteen.py` compares the architectures themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zennit.composites import ExcitationBackprop

import canonize
from canonize.explain import attribute
from canonize.nn import ThreshReLU
from tests.explain.families import FAMILIES, hardened, relation_network
from tests.explain.heatmaps import cosine, difference
from tests.explain.published import CANONIZED, METHODS, Untangled, lrp_custom, relevance
from tests.explain.published import relation_network as published_relation_network

TARGETS = torch.tensor([1, 2])


@pytest.mark.parametrize("family", CANONIZED)
def test_heatmaps_are_those_of_the_published_canonizations(family: str) -> None:
    model, images = hardened(FAMILIES[family], 32)
    canonical, published = canonize.canonize(model, images, verify=False), CANONIZED[family](model)
    for method, composite in METHODS.items():
        found = attribute(canonical, images, TARGETS, method=method).relevance
        assert isinstance(found, Tensor)
        assert difference(found, relevance(published, composite(), images, TARGETS)) < 1e-9, method


def test_thresholds_that_pass_are_not_what_was_published() -> None:
    model, images = hardened(FAMILIES["DenseNet"], 32)
    canonical, published = canonize.canonize(model, images, verify=False), CANONIZED["DenseNet"](model)
    found = attribute(canonical, images, TARGETS, choices={"threshold": "pass"}).relevance
    assert isinstance(found, Tensor)
    assert cosine(found, relevance(published, METHODS["epsilon-plus"](), images, TARGETS)) < 0.99


def test_the_untangled_form_has_the_published_heatmaps_where_pooling_is_a_bare_function() -> None:
    model, images = hardened(FAMILIES["DenseNet"], 32)
    canonical = canonize.canonize(model, images, strategy="untangle", verify=False)
    readers = len(list(model.get_submodule("features.denseblock1").children())) + 1
    assert sum(isinstance(layer, ThreshReLU) for layer in canonical.modules()) == readers
    published = Untangled(model)
    for method, composite in METHODS.items():
        found = attribute(canonical, images, TARGETS, method=method, choices={"pool": "gradient"}).relevance
        assert isinstance(found, Tensor)
        assert difference(found, relevance(published, composite(), images, TARGETS)) < 1e-9, method


BOUNDS = {"low": torch.full((1, 3, 1, 1), -6.0).double(), "high": torch.full((1, 3, 1, 1), 6.0).double()}


@pytest.mark.parametrize(("padding", "mapped"), [("layer", False), ("added", True)])
def test_a_relation_network_has_the_heatmaps_of_eq_4_or_of_shifts_that_are_added(padding: str, mapped: bool) -> None:
    model, (image, *asked) = relation_network()
    canonical = canonize.canonize(model, (image, *asked), verify=False)
    published: nn.Module = published_relation_network(model, mapped)
    other: nn.Module = published_relation_network(model, not mapped)
    methods: dict[str, tuple[Callable[[], Any], dict[str, Tensor]]] = {
        "excitation-backprop": (ExcitationBackprop, {}),
        "lrp-custom": (lambda: lrp_custom(**BOUNDS), BOUNDS),
    }
    for method, (composite, options) in methods.items():
        found = attribute(
            canonical, (image, *asked), TARGETS, method=method, choices={"padding": padding}, **options
        ).relevance[0]
        assert found is not None
        assert difference(found, relevance(published, composite(), image, TARGETS, *asked)) < 1e-9, method
        assert difference(found, relevance(other, composite(), image, TARGETS, *asked)) > 1e-3, method
