"""Heatmaps of canonical models: the published canonization's, and the original's where that is a theorem."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.metadata import version

import captum.attr
import pytest
import torch
from captum.attr._core import deep_lift
from torch import Tensor, nn
from torchvision.models import densenet121
from zennit.composites import (
    EpsilonAlpha2Beta1,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    ExcitationBackprop,
    GuidedBackprop,
)
from zennit.core import Composite
from zennit.layer import Sum
from zennit.rules import Norm

import canonize
from canonize.explain.captum import DeepLift
from canonize.explain.rule_hooks import SumNorm
from canonize.nn import Sum as CanonicalSum
from canonize.nn import ThreshReLU
from tests.explain.heatmaps import cosine, difference, heatmap
from tests.explain.nets import Block, Plain, Residual, Reused, StackedSumBlock, Unshared, dense, ready
from tests.explain.threshold_reference import HandCanonizedDenseNet

# Stabilizers are absolute, while folding rescales what they are added to; here they only keep zero from zero.
TINY = 1e-30
BOX = torch.full((1, 3, 1, 1), 5.0, dtype=torch.float64)

PUBLISHED: dict[str, Callable[[], Composite]] = {
    "epsilon-plus": EpsilonPlus,
    "alpha2-beta1": EpsilonAlpha2Beta1,
    "excitation backprop": ExcitationBackprop,
    "epsilon-plus-flat": EpsilonPlusFlat,
    "epsilon-gamma-box": lambda: EpsilonGammaBox(low=-BOX, high=BOX),
}
WITHOUT_BIAS: dict[str, Callable[[], Composite]] = {
    "epsilon-plus": lambda: EpsilonPlus(epsilon=TINY, stabilizer=TINY, zero_params="bias"),
    "alpha2-beta1": lambda: EpsilonAlpha2Beta1(epsilon=TINY, stabilizer=TINY, zero_params="bias"),
}


# -- The published threshold canonization of DenseNet


@pytest.fixture(scope="module")
def dense_pair() -> tuple[nn.Module, nn.Module, nn.Module, Tensor, Tensor]:
    model, images, targets = ready(dense)
    return model, canonize.canonize(model, images), HandCanonizedDenseNet(model), images, targets


@pytest.mark.parametrize("rules", PUBLISHED)
def test_small_densenet_has_the_heatmaps_of_the_published_canonization(
    rules: str, dense_pair: tuple[nn.Module, nn.Module, nn.Module, Tensor, Tensor]
) -> None:
    model, canonical, by_hand, images, targets = dense_pair
    wanted = heatmap(by_hand, PUBLISHED[rules](), images, targets)
    got = heatmap(canonical, PUBLISHED[rules](), images, targets)
    assert difference(got, wanted) < 1e-8
    uncanonized = heatmap(model, PUBLISHED[rules](), images, targets)
    assert cosine(uncanonized, wanted) < 0.95, "the comparison could not tell canonical from not"


def test_densenet121_has_the_heatmaps_of_the_published_canonization() -> None:
    model, images, targets = ready(lambda: densenet121(weights=None), size=64, batch=1)
    canonical = canonize.canonize(model, images, verify=False)
    by_hand = HandCanonizedDenseNet(model)
    for rules in ("epsilon-plus", "alpha2-beta1", "excitation backprop"):
        wanted = heatmap(by_hand, PUBLISHED[rules](), images, targets)
        got = heatmap(canonical, PUBLISHED[rules](), images, targets)
        assert cosine(got, wanted) > 1 - 1e-12, rules
        assert difference(got, wanted) < 1e-8, rules


def test_densenet_in_single_precision_has_the_heatmaps_of_the_published_canonization(
    dense_pair: tuple[nn.Module, nn.Module, nn.Module, Tensor, Tensor],
) -> None:
    model, _, by_hand, images, targets = dense_pair
    canonical = canonize.canonize(copy.deepcopy(model).float(), images.float())
    for rules in ("epsilon-plus", "alpha2-beta1", "excitation backprop"):
        wanted = heatmap(by_hand, PUBLISHED[rules](), images, targets)
        got = heatmap(canonical, PUBLISHED[rules](), images.float(), targets)
        assert cosine(got.double(), wanted) > 1 - 1e-6, rules


# -- Explanations that depend on the function alone


@pytest.mark.parametrize("build", [Plain, Residual, Reused, dense])
def test_gradient_methods_are_the_same_before_and_after(build: Callable[[], nn.Module]) -> None:
    model, images, targets = ready(build)
    canonical = canonize.canonize(model, images)
    baseline = torch.rand_like(images)
    methods = {
        "gradient": lambda m: captum.attr.Saliency(m).attribute(images.clone(), targets, abs=False),
        "input x gradient": lambda m: captum.attr.InputXGradient(m).attribute(images.clone(), targets),
        "integrated gradients": lambda m: captum.attr.IntegratedGradients(m).attribute(
            images.clone(), baseline, targets, n_steps=16
        ),
    }
    for name, explain in methods.items():
        wanted = explain(model)
        assert wanted.flatten(1).norm(dim=1).min() > 0
        assert difference(explain(canonical), wanted) < 1e-9, name


# -- Folding a BatchNorm into the linear layer before it


@pytest.mark.parametrize("rules", WITHOUT_BIAS)
@pytest.mark.parametrize("build", [Plain, Residual])
def test_folding_positive_scales_keeps_heatmaps_without_bias(build: Callable[[], nn.Module], rules: str) -> None:
    r"""BatchNorm under Pass and its fold into the layer before are the same rule, if no bias takes relevance.

    Relevance at a BatchNorm's output passes unchanged to the layer's output :math:`j`, and is shared out in the ratios
    :math:`x_i w_{ij}^\pm / \sum_k x_k w_{kj}^\pm`. Folding makes :math:`s_j w_{ij}` of the weights; a positive
    :math:`s_j` changes no sign and cancels.
    """
    model, images, targets = ready(build, positive=True)
    canonical = canonize.canonize(model, images)
    assert not any(isinstance(layer, ThreshReLU) for layer in canonical.modules())
    wanted = heatmap(model, WITHOUT_BIAS[rules](), images, targets)
    assert difference(heatmap(canonical, WITHOUT_BIAS[rules](), images, targets), wanted) < 1e-9


@pytest.mark.parametrize("rules", WITHOUT_BIAS)
@pytest.mark.parametrize("build", [Plain, Residual])
def test_that_identity_needs_positive_scales(build: Callable[[], nn.Module], rules: str) -> None:
    model, images, targets = ready(build)
    canonical = canonize.canonize(model, images)
    before, after = (heatmap(m, WITHOUT_BIAS[rules](), images, targets) for m in (model, canonical))
    assert difference(after, before) > 0.1


@pytest.mark.parametrize("build", [Plain, Residual])
def test_that_identity_needs_biases_left_out(build: Callable[[], nn.Module]) -> None:
    model, images, targets = ready(build, positive=True)
    canonical = canonize.canonize(model, images)
    before, after = (heatmap(m, EpsilonPlus(), images, targets) for m in (model, canonical))
    assert difference(after, before) > 0.1


@pytest.mark.parametrize("build", [Plain, Residual])
def test_guided_backprop_and_deeplift_are_kept_where_no_activation_moved(build: Callable[[], nn.Module]) -> None:
    model, images, targets = ready(build)
    canonical = canonize.canonize(model, images)
    assert [type(m) for m in canonical.modules() if isinstance(m, nn.ReLU)] == [
        type(m) for m in model.modules() if isinstance(m, nn.ReLU)
    ]
    wanted = heatmap(model, GuidedBackprop(), images, targets)
    assert difference(heatmap(canonical, GuidedBackprop(), images, targets), wanted) < 1e-9
    assert difference(_deeplift(canonical, images, targets), _deeplift(model, images, targets)) < 1e-9


# -- DeepLIFT behind thresholds


def _deeplift(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    contributions: Tensor = captum.attr.DeepLift(model).attribute(images.clone(), torch.zeros_like(images), targets)
    return contributions.detach()


def _dense_without_max_pooling() -> nn.Module:
    """Captum's rule for max-pooling is not complete where windows overlap."""
    model = dense()
    model.get_submodule("features").add_module("pool0", nn.AvgPool2d(3, stride=2, padding=1))
    return model


def _incompleteness(explainer: captum.attr.DeepLift, model: nn.Module, images: Tensor, targets: Tensor) -> float:
    """How far DeepLIFT's contributions are from adding up to the output's change, relative to that change."""
    with torch.no_grad():
        change = (model(images) - model(torch.zeros_like(images))).gather(1, targets[:, None])[:, 0]
    found = explainer.attribute(images.clone(), torch.zeros_like(images), targets).detach()
    return float(((found.sum((1, 2, 3)) - change).abs() / change.abs()).max().item())


def test_deeplift_is_complete_on_a_canonical_densenet() -> None:
    """Two things keep captum's DeepLIFT from being complete there; ``canonize.explain.captum`` cures both from outside.

    captum looks rules up by the exact type of a module, so it must be told that a ``ThreshReLU`` is a rectifier. And it
    overwrites the gradient of the tensor that a rectifier reads, other readers' share included, so a rectifier that
    reads what a concatenation reads, too, must be given a copy.
    """
    model, images, targets = ready(_dense_without_max_pooling)
    canonical = canonize.canonize(model, images)
    assert _incompleteness(captum.attr.DeepLift(model), model, images, targets) > 0.01, "its last ReLU is functional"
    assert _incompleteness(captum.attr.DeepLift(canonical), canonical, images, targets) > 0.01
    known = dict(deep_lift.SUPPORTED_NON_LINEAR)
    assert _incompleteness(DeepLift(canonical), canonical, images, targets) < 1e-9
    assert known == deep_lift.SUPPORTED_NON_LINEAR, "captum's own table is what it was"


# -- Re-used modules


@pytest.mark.parametrize("rules", PUBLISHED)
def test_reused_modules_get_the_heatmap_of_an_unshared_copy(rules: str) -> None:
    model, images, targets = ready(Reused)
    assert isinstance(model, Reused)
    wanted = heatmap(Unshared(model), PUBLISHED[rules](), images, targets)
    canonical = canonize.canonize(model, images)
    assert difference(heatmap(canonical, PUBLISHED[rules](), images, targets), wanted) < 1e-9
    # A hook keeps the input of its module's last call only, and rules are computed with it for every call.
    assert difference(heatmap(model, PUBLISHED[rules](), images, targets), wanted) > 0.1


# -- Residual sums


def _rules_with(rule: SumNorm | None) -> Composite:
    return EpsilonPlus(zero_params="bias", layer_map=[(CanonicalSum, rule)] if rule else None)


def _spelled_with_stacked_sums(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for block in model.modules():
        if isinstance(block, Block):
            block.__class__ = StackedSumBlock
            block.add_module("sum", Sum())
    return model


def test_a_rule_on_residual_sums_conserves_relevance() -> None:
    model, images, targets = ready(Residual)
    canonical = canonize.canonize(model, images)
    conserved = heatmap(canonical, _rules_with(SumNorm()), images, targets).sum((1, 2, 3))
    assert (conserved - 1).abs().max() < 1e-3
    # Two blocks: each sum without a rule hands the whole relevance to both of its inputs.
    doubled = heatmap(canonical, _rules_with(None), images, targets).sum((1, 2, 3))
    assert (doubled - 4).abs().max() < 1e-2


def test_a_rule_on_residual_sums_is_what_zennit_does_to_its_own_sum() -> None:
    model, images, targets = ready(Residual, positive=True)
    canonical = canonize.canonize(model, images)
    wanted = heatmap(
        _spelled_with_stacked_sums(model),
        EpsilonPlus(epsilon=TINY, stabilizer=TINY, zero_params="bias", layer_map=[(Sum, Norm())]),
        images,
        targets,
    )
    got = heatmap(
        canonical,
        EpsilonPlus(epsilon=TINY, stabilizer=TINY, zero_params="bias", layer_map=[(CanonicalSum, SumNorm())]),
        images,
        targets,
    )
    assert difference(got, wanted) < 1e-9


@pytest.mark.skipif(version("zennit") >= "1", reason="zennit 1 takes the first argument alone")
def test_zennits_own_norm_refuses_a_sum_of_two_arguments() -> None:
    """It feeds modules their first argument alone: an error is what it should be, not a wrong heatmap."""
    model, images, targets = ready(Residual)
    canonical = canonize.canonize(model, images)
    with pytest.raises(ValueError):
        heatmap(canonical, EpsilonPlus(layer_map=[(CanonicalSum, Norm())]), images, targets)
