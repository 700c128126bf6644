"""Members of the kinds of operations, each right or refused by name, and the same by attribute, zennit and captum."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zennit import composites
from zennit.attribution import Gradient

import canonize
from canonize.errors import ExplainError
from canonize.explain import attribute
from canonize.explain.captum import LRP, Deconvolution, DeepLift, DeepLiftShap, GuidedBackprop, LayerDeepLift
from canonize.explain.structure import first_layers
from canonize.explain.support import blockers
from canonize.explain.zennit import Canonizer
from canonize.inputs import normalise
from tests.explain.heatmaps import difference
from tests.explain.members import CONSERVED, REFUSED, member

TINY: dict[str, Any] = {"epsilon": 1e-13, "stabilizer": 1e-13}
# DeepLIFT is exact at these.
PRODUCTS = {
    "a product with itself",
    "one value as both matrices",
    "a quadratic form",
    "an outer product",
    "a gate by hand",
}


def dropped_in(model: nn.Module, composite: Any, x: Tensor, **options: Any) -> Tensor:
    with Gradient(model=model, composite=composite(canonizers=[Canonizer(x, verify=False)], **options)) as attributor:
        return torch.as_tensor(attributor(x, lambda o: F.one_hot(torch.ones(len(o)).long(), 3).to(o))[1]).detach()


@pytest.mark.parametrize("name", CONSERVED)
def test_what_has_a_rule_conserves_and_is_the_same_everywhere(name: str) -> None:
    model, x = member(CONSERVED[name])
    canonical = canonize.canonize(model, x, verify=False)
    assert canonical.report.canonical
    found = attribute(canonical, x, 1, method="epsilon", **TINY)
    assert isinstance(found.relevance, Tensor)
    assert (found.relevance.sum(1) - 1).abs().max() < 1e-6 and found.notes == ()
    assert abs(found.ledger.unaccounted) < 1e-9 and not any(abs(kept) > 1e-6 for kept in found.ledger.kept.values())
    for method, composite in (
        ("excitation-backprop", composites.ExcitationBackprop),
        ("epsilon-plus-flat", composites.EpsilonPlusFlat),
        ("guided-backprop", composites.GuidedBackprop),
    ):
        wanted = attribute(canonical, x, 1, method=method).relevance
        assert isinstance(wanted, Tensor)
        assert (dropped_in(model, composite, x) - wanted).abs().max() < 1e-9 * wanted.abs().max(), method
    wanted = attribute(canonical, x, 1, method="epsilon", epsilon=1e-9, stabilizer=1e-9, initial="output").relevance
    assert isinstance(wanted, Tensor)
    explained = refused(lambda: LRP(canonical, epsilon=1e-9).attribute(x, target=1), "no rule for")
    assert explained is None or difference(explained, wanted) < 1e-9
    deep = DeepLift(canonical)
    lifted = refused(
        lambda: deep.attribute(x, torch.randn_like(x), 1, return_convergence_delta=True), "no rule for|miss the"
    )
    assert lifted is None or lifted[1].abs().max() < 1e-9
    assert lifted is not None or name not in PRODUCTS


def refused(explain: Callable[[], Any], said: str) -> Any:
    """What an explanation gives; None where it is refused for this reason."""
    with contextlib.suppress(ExplainError):
        return explain()
    with pytest.raises(ExplainError, match=said):
        explain()
    return None


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_name(name: str) -> None:
    way, said = REFUSED[name]
    model, x = member(way)
    canonical = canonize.canonize(model, x, verify=False)
    assert not canonical.report.canonical
    with pytest.raises(ExplainError, match=said):
        attribute(canonical, x, 1)
    with pytest.raises(ExplainError, match=said):
        dropped_in(model, composites.EpsilonPlus, x)
    assert any("no rule" in blocker.what for blocker in blockers(canonical, normalise(x), "zennit"))


def test_a_bias_that_is_computed_gets_its_share() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 4, bias=False), nn.Linear(5, 3, bias=False), nn.Linear(5, 12)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.a(x), self.c.weight.sum(1).view(3, 4), self.b(x)[0])

    torch.manual_seed(0)
    model, x = Computed().double().eval(), torch.randn(1, 5, dtype=torch.float64)
    found = attribute(canonize.canonize(model, x, verify=False), x, 1, method="epsilon", **TINY).relevance
    assert isinstance(found, Tensor) and abs(float(found.sum()) - 1) < 1e-6

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 4, bias=False), nn.Linear(5, 3, bias=False), nn.Linear(5, 12)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.a(x), torch.relu(self.c(x)).view(3, 4), self.b(x)[0])

    model = Both().double().eval()
    nn.init.zeros_(model.c.bias)
    found = attribute(canonize.canonize(model, x, verify=False), x, 1, method="epsilon", **TINY).relevance
    assert isinstance(found, Tensor) and abs(float(found.sum()) - 1) < 1e-6


class Pictures(nn.Module):
    """Convolutions; how the image enters is a choice."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.later = nn.Conv2d(7 if way == "skips" else 4, 4, 3, padding=1)
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 5, padding=2)
        self.pool, self.head, self.way = nn.MaxPool2d(3, 2, 1), nn.Linear(4, 3), way

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.one(x))
        h = h + torch.relu(self.two(x)) if self.way == "twice" else torch.cat([h, x], 1) if self.way == "skips" else h
        output: Tensor = self.head(self.pool(torch.relu(self.later(h))).mean((2, 3)))
        return output


def pictures(way: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Pictures(way).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64).clamp(-2, 2)


BOUNDS = {"low": torch.full((1, 3, 1, 1), -2.0).double(), "high": torch.full((1, 3, 1, 1), 2.0).double()}


@pytest.mark.parametrize(("way", "first"), [("once", ["one"]), ("twice", ["one", "two"]), ("skips", ["one"])])
def test_flat_and_box_go_where_the_image_enters_and_nothing_else_does(way: str, first: list[str]) -> None:
    model, x = pictures(way)
    canonical = canonize.canonize(model, x, verify=False)
    assert first_layers(canonical) == first
    for method, composite, options in (
        ("epsilon-plus-flat", composites.EpsilonPlusFlat, {}),
        ("epsilon-gamma-box", composites.EpsilonGammaBox, BOUNDS),
    ):
        wanted = attribute(canonical, x, 1, method=method, **options).relevance
        assert isinstance(wanted, Tensor)
        assert difference(dropped_in(model, composite, x, **options), wanted) < 1e-9, method
    assert any("first-layer" in b.what for b in blockers(canonical, normalise(x), "zennit")) == (len(first) > 1)


def test_a_box_that_does_not_fit_is_refused_and_leaves_the_model_as_it_was() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.conv, self.head = nn.Linear(3, 4), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.enter(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
            output: Tensor = self.head(torch.relu(self.conv(h)).mean((2, 3)))
            return output

    torch.manual_seed(0)
    model, x = Dense().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64).clamp(-2, 2)
    before = dict(model.named_modules())
    with pytest.raises(ExplainError, match="the image enters at enter"):
        dropped_in(model, composites.EpsilonGammaBox, x, **BOUNDS)
    assert dict(model.named_modules()) == before and "forward" not in vars(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model, x = pictures("once")
    canonical = canonize.canonize(model, x, verify=False)
    with pytest.raises(ExplainError, match="bounds of a box"):
        attribute(canonical, x, 1, layers={"later": ("z-box", BOUNDS)})
    found = attribute(canonical, x, 1, method="epsilon-gamma-box", low=BOUNDS["low"] / 2, high=BOUNDS["high"])
    assert "outside of the box" in found.notes[0]


def test_deep_lift_is_complete_at_overlapping_windows() -> None:
    model, x = pictures("twice")
    canonical, baseline = canonize.canonize(model, x, verify=False), torch.randn_like(x)
    found, delta = DeepLift(canonical).attribute(x, baseline, 1, return_convergence_delta=True)
    assert delta.abs().max() < 1e-12
    assert difference(DeepLiftShap(canonical).attribute(x, baseline, 1), found) > 0.1
    assert LayerDeepLift(canonical, "pool").attribute(x, baseline, 1).isfinite().all()
    assert attribute(canonical, x, 1, method="deep-lift").notes == ()


def test_contributions_that_do_not_add_up_are_refused_or_noted() -> None:
    model, x = member(lambda s, a, b: torch.where(a > 0, a, b + 1))
    canonical, baseline = canonize.canonize(model, x, verify=False), torch.randn_like(x)
    with pytest.raises(ExplainError, match=r"miss the difference .* decides by the input"):
        DeepLift(canonical).attribute(x, baseline, 1)
    assert DeepLift(canonical, unruled="gradient").attribute(x, baseline, 1).isfinite().all()
    with pytest.raises(ExplainError, match="miss the difference"):
        attribute(canonical, x, 1, method="deep-lift", baseline=baseline)
    note = attribute(canonical, x, 1, method="deep-lift", baseline=baseline, unruled="gradient").notes[-1]
    assert "miss the difference" in note


def test_samples_that_are_mixed_are_no_matter_but_to_captums_lrp() -> None:
    model, x = member(lambda s, a, b: a - b.mean(0, keepdim=True))
    canonical = canonize.canonize(model, x, verify=False)
    found = attribute(canonical, x, 1, method="epsilon", **TINY).relevance
    assert isinstance(found, Tensor) and abs(float(found.sum()) - 2) < 1e-6
    with pytest.raises(ExplainError, match="mixed"):
        LRP(canonical).attribute(x, target=1)
    assert LRP(canonical).attribute(x[:1], target=1).isfinite().all()


@pytest.mark.parametrize("target", [-1, 3, torch.tensor([0, -1]), [1, 7]])
def test_there_is_no_class_below_0_or_beyond_the_last(target: Any) -> None:
    model, x = pictures("once")
    canonical = canonize.canonize(model, x, verify=False)
    explainers: list[Any] = [LRP(canonical), DeepLift(canonical), GuidedBackprop(canonical), Deconvolution(canonical)]
    for explainer in explainers:
        with pytest.raises(ExplainError, match="there is no class"):
            explainer.attribute(x, target=target)
    with pytest.raises(ExplainError, match="there is no class"):
        LayerDeepLift(canonical, "later").attribute(x, torch.zeros_like(x), target)


def test_a_rectifier_that_is_no_module_is_refused_by_guided_backpropagation() -> None:
    model, x = member(lambda s, a, b: torch.clamp(a, min=b))
    canonical = canonize.canonize(model, x, verify=False)
    for explainer in (GuidedBackprop(canonical), Deconvolution(canonical)):
        with pytest.raises(ExplainError, match="clamp"):
            explainer.attribute(x, target=1)
