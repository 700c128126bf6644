"""Models whose forward writes into themselves: none of the user's tensors may change, and no state may be lost."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import canonize
from canonize.errors import StatefulError
from canonize.twins.writes import WriteError, WriteGuard
from tests.statistics import harden

ROWS, NUMBERS = torch.randn(2, 4, dtype=torch.float64), torch.tensor([[0, 9, 3], [3, 1, 1]])


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        self.register_buffer("count", torch.ones(1))
        self.kept = [torch.ones(2)]
        harden(self)

    def answer(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.linear(x))
        return found


class ClampsItsWeight(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.linear.weight.data.clamp_(-0.1, 0.1)
        return self.answer(x)


class HalvesItsWeight(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.linear.weight.mul_(0.5)
        return self.answer(x)


class WalksItsParameters(Base):
    def forward(self, x: Tensor) -> Tensor:
        for parameter in self.linear.parameters():
            parameter.data.clamp_(-0.1, 0.1)
        return self.answer(x)


class CountsAndScales(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return self.answer(x) * self.count


class WritesIntoAList(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.kept[0][0] += 5
        return self.answer(x)


class ShortensRows(Base):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(10, 4, dtype=torch.float64) * 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.embedding(x, self.table, max_norm=1.0))


class ExchangesLayers(Base):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.linear, self.other = self.other, self.linear
        return self.answer(x)


class CountsInPython(Base):
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.answer(x)


class Counts(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return self.answer(x)


class CountsByTable(Base):
    def forward(self, x: Tensor) -> Tensor:
        self._buffers["count"].add_(1)  # type: ignore[union-attr]
        return self.answer(x)


class KeepsTheMean(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.count.copy_(x.mean())
        return self.answer(x) * self.count


def unchanged(model: nn.Module, before: nn.Module) -> bool:
    pairs = zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    kept: Any = zip(model.kept, before.kept, strict=True)
    return all(torch.equal(a, b) for a, b in (*pairs, *kept))


@pytest.mark.parametrize("verify", [True, False], ids=["proven", "unproven"])
@pytest.mark.parametrize(
    ("kind", "inputs", "what"),
    [
        (ClampsItsWeight, ROWS, "linear.weight"),
        (HalvesItsWeight, ROWS, "linear.weight"),
        (WalksItsParameters, ROWS, "tensors"),
        (CountsAndScales, ROWS, "count"),
        (WritesIntoAList, ROWS, "tensors"),
        (ShortensRows, NUMBERS, "table"),
        (ExchangesLayers, ROWS, "linear"),
    ],
)
def test_refuses_because_it_writes_into(kind: type[nn.Module], inputs: Tensor, what: str, verify: bool) -> None:
    model = kind().double().eval()
    before = copy.deepcopy(model)
    with pytest.raises(StatefulError, match=f"writes into its own {what} in eval mode"):
        canonize.canonize(model, inputs, verify=verify)
    assert unchanged(model, before)


@pytest.mark.parametrize("kind", [ClampsItsWeight, WalksItsParameters, WritesIntoAList, Counts])
def test_looking_for_a_shape_changes_nothing(kind: type[nn.Module]) -> None:
    model = kind().eval()
    before = copy.deepcopy(model)
    canonize.inputs.infer(model)
    assert unchanged(model, before)


@pytest.mark.parametrize("kind", [Counts, CountsByTable, KeepsTheMean])
def test_leaves_out_state_that_the_output_does_not_depend_on(kind: type[nn.Module]) -> None:
    model = kind().double().eval()
    before, expected = copy.deepcopy(model), copy.deepcopy(model)(ROWS)
    found = canonize.canonize(model, ROWS)
    assert unchanged(model, before)
    assert found.report.count("absorbed") == 1
    assert any("count" in note and "leaves that out" in note for note in found.report.notes)
    assert torch.allclose(found(ROWS), expected, rtol=0, atol=1e-12)
    assert torch.equal(found(ROWS), found(ROWS))


def test_a_counter_in_python_is_noted() -> None:
    model = CountsInPython().double().eval()
    found = canonize.canonize(model, ROWS)
    assert model.calls == 0
    assert found.report.notes == ["the forward counts in calls; the canonical model is what it computes at first"]


@pytest.mark.parametrize("norm_type", [2.0, 1.0])
def test_an_embedding_with_max_norm_is_shortened_once(norm_type: float) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(10, 4, max_norm=1.0, norm_type=norm_type)
    with torch.no_grad():
        table.weight[::2] *= 5
        table.weight[1::2] *= 0.05
    model = nn.Sequential(table, nn.Linear(4, 3), nn.LayerNorm(3)).double().eval()
    before = copy.deepcopy(model)
    found = canonize.canonize(model, NUMBERS)
    assert torch.equal(model[0].weight, before[0].weight)
    held = {name: value.clone() for name, value in found.state_dict().items()}
    assert torch.allclose(found(NUMBERS), before(NUMBERS), rtol=0, atol=1e-12)
    assert all(torch.equal(held[name], value) for name, value in found.state_dict().items())
    assert not torch.equal(before[0].weight, model[0].weight), "the original shortens its rows as it goes"


class ShortensComputedRows(Base):
    """The rows are read again behind the embedding, shortened."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(10, 4, dtype=torch.float64) * 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table.detach() * x.max()
        return self.linear(F.embedding(x, rows, max_norm=1.0)) + rows.sum()


def test_rows_that_are_computed_are_read_shortened() -> None:
    model = ShortensComputedRows().double().eval()
    found = canonize.canonize(model, NUMBERS, verify=False)
    assert torch.allclose(found(NUMBERS), model(NUMBERS), rtol=0, atol=1e-10)


def test_an_embedding_of_short_rows_is_shared() -> None:
    model = nn.Sequential(nn.Embedding(10, 4, max_norm=100.0), nn.Linear(4, 3)).eval()
    found = canonize.canonize(model, NUMBERS)
    assert found.get_parameter("0.weight").data_ptr() == model[0].weight.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_comparing_changes_neither_model(dtype: torch.dtype) -> None:
    """The first forward of a model that writes into its parameters is stopped, and run on a copy."""
    model, other = (ClampsItsWeight().to(dtype).eval() for _ in range(2))
    other.load_state_dict(model.state_dict())
    before = copy.deepcopy(model)
    verdict = canonize.check_equivalence(model, other, ROWS.to(dtype), gradients=False)
    assert verdict.passed, verdict.reason
    assert unchanged(model, before)
    assert unchanged(other, before)


class TestWriteGuard:
    def test_stops_a_write_into_what_was_there(self) -> None:
        held = torch.zeros(3)
        for write in (
            lambda: held.add_(1),
            lambda: held[1:].fill_(2),
            lambda: held.view(3, 1).data.mul_(2),
            lambda: torch.add(held, 1, out=held),
            lambda: torch._foreach_add_([torch.zeros(2), held], 1),
            lambda: held.__setitem__(0, 5.0),
        ):
            with pytest.raises(WriteError), WriteGuard([held]):
                write()
            assert held.abs().sum() == 0

    def test_leaves_others_alone(self) -> None:
        held, other = torch.zeros(3), torch.zeros(3)
        with WriteGuard([held]):
            other.add_(held + 1)
        assert other.sum() == 3

    def test_by_default_only_what_was_made_inside_may_be_written(self) -> None:
        held = torch.zeros(3)
        with WriteGuard():
            made = torch.tensor([1.0, 2.0])
            made[0] = 3
            torch.zeros(3)[1:].add_(1)
            torch.arange(3).mul_(2)
            (held + 1).mul_(2)
        with pytest.raises(WriteError), WriteGuard():
            held[1:].add_(1)
        assert held.abs().sum() == 0


# ------------------------------------------------------------------------------- statistics that are only counted in


class OverTheBatch(nn.Module):
    """Normalises by its input's statistics, and counts in running ones."""

    def __init__(self, normalise: Any, reads: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)
        self.normalise, self.reads = normalise, reads
        self.weight, self.bias = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(torch.relu(self.normalise(self, self.first(x))))
        return y * self.mean.sum() if self.reads else y


COUNTING: dict[str, Any] = {
    "F.batch_norm": lambda m, x: F.batch_norm(x, m.mean, m.var, m.weight, m.bias, training=True, eps=3e-3),
    "without affine": lambda m, x: F.batch_norm(x, m.mean, m.var, None, None, True, 0.3, 1e-2),
    "torch.batch_norm": lambda m, x: torch.batch_norm(x, m.weight, m.bias, m.mean, m.var, True, 0.1, 1e-2, False),
    "_native_batch_norm_legit": lambda m, x: torch.ops.aten._native_batch_norm_legit(
        x, m.weight, m.bias, m.mean, m.var, True, 0.1, 1e-2
    )[0],
    "native_batch_norm": lambda m, x: torch.native_batch_norm(x, m.weight, m.bias, m.mean, m.var, True, 0.1, 1e-2)[0],
    "F.instance_norm": lambda m, x: F.instance_norm(x, m.mean, m.var, m.weight, m.bias, eps=1e-2),
}


@pytest.mark.parametrize("spelling", COUNTING)
@torch.no_grad()
def test_running_statistics_that_are_only_counted_in_stay_as_they_are(spelling: str) -> None:
    torch.manual_seed(0)
    model = harden(OverTheBatch(COUNTING[spelling])).double().eval()
    before = copy.deepcopy(model.state_dict())
    canonical = canonize.canonize(model, torch.randn(2, 3, 9, 9, dtype=torch.float64))
    assert {"mean", "var"} == {note.split()[5].strip(";") for note in canonical.report.notes if "leaves that" in note}
    inputs = torch.randn(3, 3, 11, 8, dtype=torch.float64)
    state = copy.deepcopy(canonical.state_dict())
    found = canonical(inputs)
    assert all(torch.equal(value, canonical.state_dict()[key]) for key, value in state.items())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    wanted = model(inputs)
    assert (found - wanted).abs().max() <= 1e-10 * wanted.abs().max()


@pytest.mark.parametrize("spelling", COUNTING)
def test_refuses_because_statistics_that_are_counted_in_are_read_too(spelling: str) -> None:
    torch.manual_seed(0)
    model = OverTheBatch(COUNTING[spelling], reads=True).eval()
    with pytest.raises(StatefulError, match="mean"):
        canonize.canonize(model, torch.randn(2, 3, 9, 9), verify=False)
