"""captum on canonical models: no warning, no error, its own state untouched."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import captum.attr
import pytest
import torch
from captum.attr._core import deep_lift
from captum.attr._utils import lrp_rules
from torch import nn

import canonize
from canonize.errors import ExplainError
from canonize.explain import attribute
from canonize.explain.captum import (
    LRP,
    DeepLift,
    DeepLiftShap,
    GuidedBackprop,
    LayerDeepLift,
    LayerLRP,
    NeuronDeepLift,
    NeuronGuidedBackprop,
    prepare,
)
from tests.explain.families import FAMILIES, hardened, relation_network
from tests.explain.heatmaps import difference
from tests.explain.nets import Plain, Residual, dense, ready


@pytest.mark.parametrize("family", [*FAMILIES, "Relation Network"])
def test_all_five_families_are_explained_without_a_warning(family: str) -> None:
    others: tuple[torch.Tensor, ...] = ()
    if family == "Relation Network":
        model, (images, *rest) = relation_network()
        others = tuple(rest)
    else:
        model, images = hardened(FAMILIES[family], 32)
    canonical = canonize.canonize(model, (images, *others), verify=False)
    before = copy.deepcopy(canonical.state_dict())
    places = {name: value.data_ptr() for name, value in canonical.state_dict().items()}
    more = {"additional_forward_args": others} if others else {}
    methods = {
        "LRP": lambda: LRP(canonical).attribute(images, 1, **more),
        "DeepLift": lambda: DeepLift(canonical).attribute(images, torch.zeros_like(images), 1, **more),
        "GuidedBackprop": lambda: GuidedBackprop(canonical).attribute(images, 1, **more),
        "IntegratedGradients": lambda: captum.attr.IntegratedGradients(canonical).attribute(
            images, torch.zeros_like(images), 1, n_steps=4, **more
        ),
    }
    for name, explain in methods.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = explain()
        assert found.shape == images.shape and found.isfinite().all() and (found != 0).any(), name
    assert all(torch.equal(value, before[name]) for name, value in canonical.state_dict().items())
    assert places == {name: value.data_ptr() for name, value in canonical.state_dict().items()}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in canonical.modules())


def test_what_captum_refuses_of_the_original_it_takes_of_the_canonical_model() -> None:
    model, images = hardened(FAMILIES["ResNet"], 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="more than once"):
            captum.attr.DeepLift(model).attribute(images, target=1)
    canonical = canonize.canonize(model, images, verify=False)
    with pytest.raises(TypeError, match="no rule"):
        captum.attr.LRP(canonical).attribute(images, 1)
    assert DeepLift(canonical).attribute(images, target=1).isfinite().all()
    assert LRP(canonical).attribute(images, 1).isfinite().all()


def test_lrp_takes_rules_of_captums_by_name() -> None:
    model, images, targets = ready(Plain)
    canonical = canonize.canonize(model, images, verify=False)
    plain = LRP(canonical).attribute(images.clone(), targets)
    gamma = LRP(canonical, convolution="gamma", gamma=1e6).attribute(images.clone(), targets)
    assert difference(gamma, plain) > 0.01
    own = LRP(canonical, rules={"0": lrp_rules.IdentityRule()})
    assert type(own.chosen["0"]) is lrp_rules.IdentityRule
    with pytest.raises(ExplainError, match="no layer 99"):
        LRP(canonical, rules={"99": lrp_rules.IdentityRule()})
    with pytest.raises(ExplainError, match="no rule 'z-plus'"):
        LRP(canonical, convolution="z-plus")


def test_lrp_gives_all_of_a_gate_to_its_signal() -> None:
    model, images = hardened(FAMILIES["EfficientNet"], 16)
    canonical = canonize.canonize(model, images, verify=False)
    found = LRP(canonical, epsilon=1e-9).attribute(images.clone(), 1)
    wanted = attribute(
        canonical, images, 1, method="epsilon", epsilon=1e-9, stabilizer=1e-9, initial="output"
    ).relevance
    assert isinstance(wanted, torch.Tensor)
    assert difference(found, wanted) < 1e-9


def test_the_table_of_rules_is_captums_again_even_after_an_error() -> None:
    model, images, _ = ready(dense)
    explainer = DeepLift(canonize.canonize(model, images, verify=False))
    before = dict(deep_lift.SUPPORTED_NON_LINEAR)
    with pytest.raises(AssertionError):
        explainer.attribute(images, images[:, :1], target=0)
    assert before == deep_lift.SUPPORTED_NON_LINEAR


def test_anything_but_a_graph_is_left_alone() -> None:
    layer = nn.Linear(2, 2)
    assert prepare(layer) is layer


class PreActivation(nn.Module):
    """A ReLU whose input has another reader; its scale may be negative."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        self.act: nn.Module = nn.ReLU()
        self.head = nn.Linear(6, 4)
        with torch.no_grad():
            self.n.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            self.n.weight.uniform_(0.5, 1.5).mul_(sign)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        output: torch.Tensor = self.head((h + self.b(self.act(self.n(h)))).mean((2, 3)))
        return output


class Bent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.clamp(min=0) * (ctx.saved_tensors[0] > 0)


class BentReLU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = Bent.apply(x)
        return output


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("strategy", ["threshold", "untangle"])
def test_guided_backpropagation_is_that_of_the_original_at_thresholds_too(sign: float, strategy: Any) -> None:
    torch.manual_seed(0)
    model, x = PreActivation(sign).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    reference = copy.deepcopy(model)
    reference.act = BentReLU()
    given = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(reference(given)[:, 1].sum(), given)
    canonical = canonize.canonize(model, x, strategy=strategy)
    found = attribute(canonical, x, 1, method="guided-backprop").relevance
    assert isinstance(found, torch.Tensor) and difference(found, wanted) < 1e-12
    assert difference(GuidedBackprop(canonical).attribute(x, target=1), wanted) < 1e-12


def test_captums_other_classes_take_ours() -> None:
    model, images, targets = ready(Residual)
    canonical = canonize.canonize(model, images, verify=False)
    for explainer in (LRP(canonical), DeepLift(canonical), GuidedBackprop(canonical)):
        found = captum.attr.NoiseTunnel(explainer).attribute(images, nt_samples=2, target=targets)
        assert found.shape == images.shape and found.isfinite().all()
    baselines = torch.randn(3, *images.shape[1:], dtype=torch.float64)
    _, delta = DeepLiftShap(canonical).attribute(images, baselines, targets, return_convergence_delta=True)
    assert delta.abs().max() < 1e-10
    at = LayerDeepLift(canonical, "3.conv2").attribute(images, torch.zeros_like(images), targets)
    assert at.isfinite().all() and (at != 0).any()
    assert NeuronDeepLift(canonical, canonical.get_submodule("3.conv2")).attribute(images, (0, 1, 1)).isfinite().all()
    assert NeuronGuidedBackprop(canonical, "3.conv2").attribute(images, (0, 1, 1)).isfinite().all()
    relevance = LayerLRP(canonical, "3.conv2").attribute(images, targets)
    assert relevance.shape == at.shape and relevance.isfinite().all()
    with pytest.raises(ExplainError, match="no layer nowhere"):
        LayerLRP(canonical, "nowhere")
