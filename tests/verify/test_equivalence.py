"""What the equivalence check must let pass, and the kinds of models it must cope with."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import canonize.verify.measure as measure
from canonize.errors import InputError
from canonize.inputs import Inputs
from canonize.verify import assert_equivalent, check_equivalence
from tests.checks import float64_bytes
from tests.verify.nets import FAULTS, Net, Wrapped, X, fold, make


def test_folding_passes_with_exact_weights_at_full_tightness() -> None:
    verdict = check_equivalence(make(), fold(make()), X, exact=fold(make(), rounded=False))
    assert verdict.passed, verdict
    wide = [c for c in verdict.checks if c.precision == "float64"]
    assert {c.tolerance for c in wide} == {1e-10}
    assert max(c.error for c in wide) < 1e-13
    assert {c.quantity for c in verdict.checks} == {"output", "input gradient", "weights"}
    assert {c.precision for c in verdict.checks} == {"float64", "float32"}


def test_folding_passes_with_rounded_weights_and_says_so() -> None:
    verdict = check_equivalence(make(), fold(make()), X)
    assert verdict.passed, verdict
    worst = verdict.worst("float64", "output")
    assert worst is not None
    assert 0 < worst.error <= worst.tolerance < 1e-4
    assert "rounded to float32" in worst.detail


@pytest.mark.parametrize("seed", range(8))
def test_folding_passes_on_many_seeds(seed: int) -> None:
    assert_equivalent(make(seed), fold(make(seed)), X, seed=seed, thorough=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    folded, exact = fold(make(dtype=dtype), rounded=False).to(dtype), fold(make(dtype=dtype), rounded=False)
    verdict = check_equivalence(make(dtype=dtype), folded, X, exact=exact)
    assert verdict.passed, verdict
    assert {c.precision for c in verdict.checks} == {"float64", name}
    faulty = make(dtype=dtype)
    with torch.no_grad():
        faulty.conv1.weight[4] *= 1.1
    assert not check_equivalence(make(dtype=dtype), faulty, X, exact=copy.deepcopy(faulty).double())


def test_float64_candidate_of_a_float32_model_is_held_to_the_tight_tolerance() -> None:
    verdict = check_equivalence(make(), fold(make(), rounded=False), X)
    assert verdict.passed
    assert {c.tolerance for c in verdict.checks} == {1e-10}
    assert not check_equivalence(make(), fold(make()).double(), X)


class Reassociated(nn.Module):
    """``sum(x * w)`` in another order."""

    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.flip = flip
        self.weight = nn.Parameter(torch.randn(300, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        terms = x * self.weight
        return terms.flip(-1).cumsum(-1)[:, -1] if self.flip else terms.sum(-1)


@pytest.mark.parametrize("seed", range(10))
def test_reassociated_sums_pass(seed: int) -> None:
    """One output element per row: the reference may round well by luck."""
    assert_equivalent(Reassociated(True), Reassociated(False), torch.randn(1, 300), seed=seed)
    assert_equivalent(Reassociated(False), Reassociated(True), torch.randn(1, 300), seed=seed, precision="working")


class Pair(nn.Module):
    def __init__(self, kind: str, swap: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)
        self.kind, self.swap = kind, swap

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Any:
        one, two = self.a(x), self.b(x)
        if mask is not None:
            two = two.masked_fill(mask, 0)
        if self.swap:
            one, two = two, one
        if self.kind == "dict":
            return {"one": one, "two": [two, None, 3]}
        if self.kind == "dataclass":
            return Box(one, two)
        return (one, (two,))


@dataclasses.dataclass
class Box:
    one: Tensor
    two: Tensor


@pytest.mark.parametrize("kind", ["dict", "dataclass", "tuple"])
def test_nested_outputs_and_keywords(kind: str) -> None:
    inputs = ((torch.randn(2, 4),), {"mask": torch.tensor([[True, False, False], [False, True, False]])})
    assert_equivalent(Pair(kind), Pair(kind), inputs)
    verdict = check_equivalence(Pair(kind), Pair(kind, swap=True), inputs)
    assert not verdict.passed
    assert "output" in verdict.reason


def test_order_of_dictionary_keys_is_no_difference() -> None:
    y = torch.randn(2)
    assert measure.compare({"a": y, "b": 2 * y}, {"b": 2 * y, "a": y}).error == 0
    assert measure.compare({"a": y, "b": 2 * y}, {"a": y}).mismatch
    assert measure.compare([y, None], [y, 1]).mismatch
    assert measure.compare([y, []], [y]).mismatch


def test_measure_is_relative_to_each_output() -> None:
    big, small = torch.tensor([1e6, 2.0]), torch.tensor([1e-6, 0.0])
    found = measure.compare([big, small], [big, small + torch.tensor([0.0, 1e-7])])
    assert found.error == pytest.approx(0.1)
    assert found.where == "output[1][1]"
    assert measure.compare(torch.zeros(3), torch.full((3,), 1e-3)).error == pytest.approx(1e-3)
    assert measure.compare(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])).error == 0.25


class Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, 4)
        self.gru = nn.GRU(4, 3, batch_first=True)

    def forward(self, ids: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        out, _ = self.gru(self.embedding(ids) * scale[:, None, None])
        return out, out.sum(-1).argmax(-1)


def test_integer_inputs_and_outputs() -> None:
    inputs = (torch.randint(0, 10, (2, 6)), torch.rand(2))
    assert_equivalent(Embedder(), Embedder(), inputs)
    other = Embedder()
    with torch.no_grad():
        other.embedding.weight[int(inputs[0][0, 0])] += 1e-3
    assert not check_equivalence(Embedder(), other, inputs)


class Casting(nn.Module):
    """Names its precision inside, as language models do."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, 16)
        self.grid = torch.linspace(0, 1, 16, dtype=torch.float32)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.softmax(self.linear(x).float() + self.grid, -1, dtype=torch.float32)
        noise = torch.zeros(16, dtype=torch.float32, device=x.device) + self.shift
        return (scores.to(torch.float32) + noise).to(x.dtype)


def test_a_model_that_casts_to_float32_inside_is_still_judged_in_float64() -> None:
    verdict = check_equivalence(Casting(), Casting(), torch.randn(2, 16), exact=Casting().double())
    assert verdict.passed
    assert verdict.worst("float64", "output").tolerance == 1e-10  # type: ignore[union-attr]
    assert not check_equivalence(Casting(), Casting(1e-8), torch.randn(2, 16), exact=Casting(1e-8).double())


class OnlyFloat32(nn.Module):
    """Refuses float64."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, 64)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        if x.element_size() != 4:
            raise TypeError("float32 only")
        return self.linear(x).tanh() + self.shift


@pytest.mark.parametrize("reference", [True, False])
def test_a_model_that_refuses_float64_is_judged_in_its_own_precision(reference: bool) -> None:
    first: nn.Module = OnlyFloat32()
    assert isinstance(first, OnlyFloat32)
    plain = nn.Sequential(copy.deepcopy(first.linear), nn.Tanh())
    pair = (first, plain) if reference else (plain, first)
    verdict = check_equivalence(*pair, torch.randn(2, 16))
    assert verdict.passed, verdict
    assert {c.precision for c in verdict.checks} == {"float32"}
    assert any("no float64 verdict" in note and "float32 only" in note for note in verdict.notes)
    faulty = Wrapped(lambda x, y: y * (1 + 1e-4), pair[1])
    assert not check_equivalence(pair[0], faulty, torch.randn(2, 16))


def test_a_model_that_is_not_deterministic_cannot_pass() -> None:
    noisy = Net(dropout=True)
    verdict = check_equivalence(noisy, noisy, X)
    assert not verdict.passed
    assert "the model itself is not deterministic in eval mode" in verdict.reason


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


def test_a_regime_on_which_the_reference_is_not_finite_says_nothing() -> None:
    verdict = check_equivalence(Log(), Log(), torch.rand(2, 40) + 0.1)
    assert verdict.passed
    assert not any(check.name.startswith(("normal", "zeros")) for check in verdict.checks)
    assert [check.name for check in verdict.checks if check.quantity == "input gradient"] == ["examples, batch 2"]
    assert any("'zeros, batch 1' says nothing: the reference gives -inf at output" in note for note in verdict.notes)


def test_nothing_compared_is_not_equivalent() -> None:
    nan = nn.Threshold(float("inf"), float("nan"))
    verdict = check_equivalence(nan, nan, torch.rand(2, 4))
    assert not verdict.passed
    assert not verdict.checks
    assert verdict.reason.startswith("nothing could be compared")


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 12) * 2


def test_a_batch_size_that_the_reference_refuses_is_a_note() -> None:
    verdict = check_equivalence(FixedBatch(), FixedBatch(), torch.rand(2, 3, 4))
    assert verdict.passed
    assert any("'normal, batch 3' was not compared: the reference refuses it" in note for note in verdict.notes)
    assert not any("normal, size" in note for note in verdict.notes)


def test_inputs_that_do_not_fit_are_an_input_error() -> None:
    with pytest.raises(InputError, match="does not run on the example inputs"):
        check_equivalence(make(), make(), torch.randn(2, 7))


def test_inputs_are_inferred_and_seeds_matter() -> None:
    net = nn.Sequential(nn.Linear(7, 3), nn.ReLU())
    assert check_equivalence(net, net)
    errors = [
        check_equivalence(net, nn.Sequential(fuse(net[0].double()), nn.ReLU()), Inputs((torch.ones(2, 7),)), seed=s)
        for s in (0, 0, 1)
    ]
    assert errors[0] == errors[1]


def test_quick_check_is_smaller() -> None:
    quick = check_equivalence(make(), make(), X, thorough=False)
    full = check_equivalence(make(), make(), X)
    assert quick.passed
    assert full.passed
    assert len(quick.checks) < len(full.checks)
    kinds = {check.name.split(",")[0] for check in quick.checks}
    assert kinds == {"examples", "normal", "large", "zeros"}


def test_a_quick_verdict_feeds_the_first_examples_where_the_models_take_fewer() -> None:
    many = torch.randn(9, 3, 4)
    quick = check_equivalence(nn.Linear(4, 4), nn.Linear(4, 4), many, thorough=False)
    assert "examples, batch 2" in {check.name for check in quick.checks}

    class Nine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(9, 12)

    assert "examples, batch 9" in {c.name for c in check_equivalence(Nine(), Nine(), many, thorough=False).checks}


class Wide(nn.Module):
    """Eight megabytes in float64, which nobody's small tensors reach."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32768), nn.Linear(32768, 16)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x).relu())
        return found


def test_a_large_model_is_held_in_float64_once_at_a_time() -> None:
    model = Wide().eval()
    before, alive = float64_bytes(), [0]

    def exact() -> nn.Module:
        alive.append(float64_bytes() - before)
        return copy.deepcopy(model).double()

    verdict = check_equivalence(model, copy.deepcopy(model), torch.randn(3, 16), exact=exact, thorough=False)
    assert verdict.passed, verdict
    assert len(alive) == 2
    assert alive[-1] < 1e6
    assert float64_bytes() - before < 1e6


def test_exact_weights_may_be_made_late_and_are_held_against_all() -> None:
    faulty = fold(make(), rounded=False)
    with torch.no_grad():
        next(faulty.parameters()).mul_(1 + 1e-6)
    verdict = check_equivalence(make(), fold(make()), X, exact=lambda: faulty, thorough=False)
    assert not verdict.passed
    assert check_equivalence(make(), fold(make()), X, exact=lambda: fold(make(), rounded=False), thorough=False).passed


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("thorough", [True, False])
def test_a_model_that_is_another_one_each_time_is_told(gradients: bool, thorough: bool) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1e-6 * torch.randn_like(x)

    verdict = check_equivalence(Noisy(), nn.Identity(), torch.randn(2, 5), gradients=gradients, thorough=thorough)
    assert not verdict.passed
    assert "not deterministic" in verdict.reason


def test_kinks_do_not_fail_rounded_models() -> None:
    """Many units near their kink: gradients of rounded weights jump now and then."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(256, 256), nn.ReLU()]
    net = nn.Sequential(*layers)
    wobbly = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wobbly.parameters():
            parameter.mul_(1 + 6e-8 * torch.randn(parameter.shape, generator=generator))
    for seed in range(4):
        assert_equivalent(net, wobbly, torch.randn(4, 256), seed=seed, thorough=False)


def _traced() -> nn.Module:
    return torch.jit.trace(make(), X)


def _exported() -> nn.Module:
    return torch.export.export(make(), (X,)).module()


@pytest.mark.parametrize("build", [_traced, _exported])
def test_compiled_forms_are_candidates_and_references(build: Callable[[], nn.Module]) -> None:
    """Their batch or image size may be fixed, which as a reference is allowed and as a candidate is a fault."""
    assert check_equivalence(build(), make(), X, thorough=False)
    assert check_equivalence(make(), build(), X, batch_sizes=(2,), thorough=False)
    assert not check_equivalence(build(), FAULTS["one head bias"](), X, thorough=False)


def test_a_model_that_refuses_normal_values_is_judged_on_its_examples() -> None:
    class Bounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if bool((x < 0).any()):
                raise ValueError("pixels are not negative")
            return x * 2

    for thorough in (True, False):
        verdict = check_equivalence(Bounded(), Bounded(), torch.rand(3, 5), thorough=thorough)
        assert verdict.passed, verdict


class Jump(nn.Module):
    """Decides by the sign of what rounding alone makes of zeros; elsewhere it is as smooth as any."""

    def __init__(self, turned: bool = False) -> None:
        super().__init__()
        self.turned = turned

    def forward(self, x: Tensor) -> Tensor:
        tiny = (x.sum(1) + 0.1) - 0.1 if not self.turned else 0.1 - (0.1 - x.sum(1))
        return (
            torch.where(tiny >= 0, x[:, 0] + 1, x[:, 0] - 1)
            if not self.turned
            else torch.where(tiny + 1e-18 >= 2e-18, x[:, 0] + 1, x[:, 0] - 1)
        )


def test_where_the_reference_jumps_nothing_is_said() -> None:
    verdict = check_equivalence(Jump().double(), Jump(turned=True).double(), torch.randn(2, 3, 8, dtype=torch.float64))
    assert verdict.passed
    assert any("the reference itself moves by" in note for note in verdict.notes)


def test_a_wrong_model_is_seen_beside_jumps() -> None:
    class Wrong(Jump):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1e-3 * x[:, 1]

    verdict = check_equivalence(Jump().double(), Wrong().double(), torch.randn(2, 3, 8, dtype=torch.float64))
    assert not verdict.passed


def test_a_reference_that_float32_cannot_hold_is_noted() -> None:
    class Cancels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.dense(x)
            return (y * 1e7 + 1e7) - y * 1e7 - 1e7 + y

    model = Cancels()
    verdict = check_equivalence(model, copy.deepcopy(model), torch.randn(64, 4), exact=copy.deepcopy(model).double())
    assert verdict.passed
    assert any("the reference itself is off by" in note for note in verdict.notes)


def test_jumps_everywhere_prove_nothing() -> None:
    """The weights agree, and in float32 the reference knows nothing: neither says that the two are one function."""

    class Chaos(nn.Module):
        def __init__(self, phase: float) -> None:
            super().__init__()
            self.dense, self.phase = nn.Linear(4, 4), phase

        def forward(self, x: Tensor) -> Tensor:
            return (1e18 * (self.dense(x) + 0.3)).sin() + self.phase * (1e17 * x).cos()

    model, other = Chaos(0.0), Chaos(0.1)
    other.load_state_dict(model.state_dict())
    verdict = check_equivalence(
        model, other, torch.randn(2, 4), exact=copy.deepcopy(other).double(), gradients=False, thorough=False
    )
    assert any("the reference itself moves by" in note for note in verdict.notes)
    assert not verdict.passed
    assert verdict.reason
