"""What has no rule is refused by name, on every surface; what the plain gradient was taken of is noted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zennit.composites import EpsilonPlus

import canonize
from canonize.errors import ExplainError
from canonize.explain import attribute
from canonize.explain.captum import LRP, DeepLift
from canonize.explain.support import blockers
from canonize.explain.zennit import Canonizer
from canonize.inputs import normalise
from tests.explain.heatmaps import difference
from tests.explain.nets import Plain, Residual, ready

TINY: dict[str, Any] = {"epsilon": 1e-13, "stabilizer": 1e-13}


class Net(nn.Module):
    """linear -> something -> linear."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.way = nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False), way

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.way(self.first(x)))
        return output


def net(way: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Net(way).double().eval(), torch.randn(4, 6, dtype=torch.float64)


@pytest.mark.parametrize("way", [torch.exp, lambda h: h / h.norm(dim=1, keepdim=True), lambda h: h.detach() + h * 2])
def test_what_has_no_rule_is_refused_everywhere_and_said_by_inspect(way: Callable[[Tensor], Tensor]) -> None:
    model, x = net(way)
    canonical = canonize.canonize(model, x)
    assert not canonical.report.canonical
    with pytest.raises(ExplainError, match="no rule for"):
        attribute(canonical, x, 1)
    with pytest.raises(ExplainError, match="no rule for"):
        LRP(canonical).attribute(x, target=1)
    with pytest.raises(ExplainError, match="no rule for"), EpsilonPlus(canonizers=[Canonizer(x)]).context(model):
        pass
    for explainer in ("zennit", "captum"):
        assert any("no rule" in blocker.what for blocker in blockers(canonical, normalise(x), explainer))
    found = attribute(canonical, x, 1, unruled="gradient")
    assert "the plain gradient was taken" in found.notes[0]
    if way is torch.exp:
        assert LRP(canonical, unruled="gradient").attribute(x, target=1).isfinite().all()


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "the root of a size": lambda h: h / math.sqrt(h.size(-1)),
    "a size": lambda h: h * h.shape[1],
    "a tensor made of a number": lambda h: h / torch.tensor(4.0, dtype=h.dtype),
    "a table of constants": lambda h: h * torch.arange(1, 9).to(h),
}


@pytest.mark.parametrize("name", SCALES)
def test_a_product_with_what_follows_from_sizes_is_one_with_a_number(name: str) -> None:
    model, x = net(SCALES[name])
    canonical = canonize.canonize(model, x)
    assert canonical.report.canonical
    found = attribute(canonical, x, 1, method="epsilon", **TINY)
    assert isinstance(found.relevance, Tensor)
    assert (found.relevance.sum(1) - 1).abs().max() < 1e-6 and found.notes == ()


def test_masks_sizes_and_gates_are_not_on_the_way() -> None:
    def way(h: Tensor) -> Tensor:
        mask = (h.detach() > -1).to(h.dtype)
        return h * mask * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1.0)

    model, x = net(way)
    canonical = canonize.canonize(model, x)
    assert attribute(canonical, x, 1).notes == (), "the gate gets nothing, so that nothing passes what makes it"
    assert not any("no rule is known" in finding.what for finding in canonical.report.findings)


def test_other_models_are_explained_with_notes() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.conv2d(x, self.weight)).mean((2, 3))

    x = torch.randn(2, 3, 8, 8)
    (note,) = attribute(Functional(), x, 1).notes
    assert all(word in note for word in ("convolution", "relu", "mean"))
    (note,) = attribute(Functional(), x, 1, method="guided-backprop").notes
    assert "relu" in note and "convolution" not in note
    assert attribute(Functional(), x, 1, method="gradient").notes == ()
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval())
    assert "convolution" in attribute(scripted, x, 1).notes[0]
    model, images, targets = ready(Plain)
    (note,) = attribute(model, images, targets).notes
    assert "BatchNorm2d" in note and "canonize the model" in note


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output


class Gated(nn.Module):
    """A gate of the signal's shape, two first layers, and a ReLU whose input has another reader."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 5, padding=2)
        self.c, self.l = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) * torch.sigmoid(self.b(x))
        output: Tensor = self.l((h + self.c(F.relu(h))).mean((2, 3)))
        return output


@pytest.mark.parametrize("wrap", [Wrapper, nn.Sequential, nn.DataParallel])
@pytest.mark.parametrize("method", ["epsilon-plus", "epsilon-plus-flat", "deep-lift", "guided-backprop"])
def test_a_canonical_model_inside_another_is_explained_alike(wrap: Any, method: str) -> None:
    torch.manual_seed(0)
    model, x = Gated().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    canonical = canonize.canonize(model, x)
    bare = attribute(canonical, x, 1, method=method)
    found = attribute(wrap(canonical), x, 1, method=method)
    assert isinstance(found.relevance, Tensor) and isinstance(bare.relevance, Tensor)
    assert difference(found.relevance, bare.relevance) < 1e-12 and found.notes == bare.notes == ()


def test_captums_classes_work_in_wrappers_too() -> None:
    torch.manual_seed(0)
    model, x = Gated().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    canonical = canonize.canonize(model, x)
    assert difference(LRP(Wrapper(canonical)).attribute(x, 1), LRP(canonical).attribute(x, 1)) < 1e-12
    for explainer in (DeepLift(canonical), DeepLift(Wrapper(canonical))):
        _, delta = explainer.attribute(x, torch.randn_like(x), 1, return_convergence_delta=True)
        assert delta.abs().max() < 1e-12, "a product of two values that depend on the input is shared exactly"


def test_tokens_are_explained_at_their_embeddings() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(20, 6), nn.Linear(6, 3, bias=False)

        def forward(self, tokens: Tensor) -> Tensor:
            output: Tensor = self.head(torch.relu(self.words(tokens)).mean(1))
            return output

    torch.manual_seed(0)
    model, tokens = Text().double().eval(), torch.randint(0, 20, (2, 5))
    canonical = canonize.canonize(model, tokens)
    assert any("canonize.explain.attribute" in b.advice for b in blockers(canonical, normalise(tokens), "captum"))
    found = attribute(canonical, tokens, 1, method="epsilon", **TINY).relevance
    assert isinstance(found, Tensor) and found.shape == (2, 5, 6)
    assert (found.sum((1, 2)) - 1).abs().max() < 1e-6
    with pytest.raises(ExplainError, match=r"canonize\.explain\.attribute"):
        LRP(canonical).attribute(tokens, target=1)


def test_gradients_may_be_taken_in_inference_mode_and_of_exported_programs() -> None:
    model, x = net(torch.relu)
    canonical = canonize.canonize(model, x)
    wanted = attribute(canonical, x, 1).relevance
    with torch.inference_mode():
        found = attribute(canonical, x.clone(), 1).relevance
    assert isinstance(wanted, Tensor) and torch.equal(found, wanted)
    exported = torch.export.export(model, (x,)).module()
    assert "no rule is known" in attribute(exported, x, 1).notes[0]


def test_the_largest_part_of_a_ledger_is_named() -> None:
    model, images, targets = ready(Residual)
    canonical = canonize.canonize(model, images, verify=False)
    ledger = attribute(canonical, images, targets, method="epsilon-plus").ledger
    assert abs(ledger.unaccounted) < 1e-9 and set(ledger.kept) <= {"bias", "stabilizer"}
    assert "kept by biases" in str(ledger) and ledger.leaks(1)[0].name in str(ledger)
    assert ledger.table()[0]["layer"] == ledger.layers[0].name and '"unaccounted"' in ledger.to_json()
    written = attribute(canonical, images, targets, ledger=True)
    assert written.written is not None and written.ledger.kept.keys() == ledger.kept.keys()


def test_rules_conserve_to_rounding_where_nothing_keeps_anything(tmp_path: Any) -> None:
    model, images, targets = ready(Residual)
    canonical = canonize.canonize(model, images, verify=False)
    found = attribute(canonical, images, targets, epsilon=1e-14, stabilizer=1e-14, zero_params="bias", ledger=True)
    assert abs(sum(found.ledger.kept.values())) < 1e-9 and abs(found.ledger.unaccounted) < 1e-12
    for layer in found.ledger.layers:
        assert abs(layer.leak) < 1e-9 * max(1.0, abs(layer.received)), layer
    found.ledger.plot(tmp_path / "ledger.png")
    assert (tmp_path / "ledger.png").stat().st_size > 1000


def test_what_the_ledger_says_of_a_bias_is_what_its_equation_says() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3).double(), torch.randn(1, 5, dtype=torch.float64)
    (flow,) = attribute(layer, x, 1, method="epsilon", epsilon=0.1, ledger=True).ledger.layers
    z = layer(x)[0, 1]
    below = z + 0.1 * z.sign()
    assert abs(flow.kept["bias"] - float(layer.bias[1] / below)) < 1e-12
    assert abs(flow.kept["stabilizer"] - float(0.1 * z.sign() / below)) < 1e-12
