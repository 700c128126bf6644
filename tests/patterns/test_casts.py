"""Casts: affines pass those that lose nothing, and no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import canonize
from canonize.inputs import normalise
from canonize.pipeline import Options, rewritten
from canonize.report import Report
from tests import checks
from tests.statistics import harden

Cast = Callable[[Tensor], Tensor]
ROUNDS: dict[str, Cast] = {
    "to": lambda y: y.to(torch.int64).to(torch.float64),
    "to by name": lambda y: y.to(dtype=torch.int16).to(dtype=torch.float64),
    "to like another": lambda y: y.to(torch.zeros(1, dtype=torch.int64)).to(y),
    "type": lambda y: y.type(torch.int32).type(torch.float64),
    "type by name": lambda y: y.type("torch.IntTensor").type("torch.DoubleTensor"),
    "type_as": lambda y: y.type_as(torch.zeros(1, dtype=torch.int64)).double(),
    "int": lambda y: y.int().double(),
    "long": lambda y: y.long().double(),
    "bool": lambda y: y.bool().double(),
    "uint8": lambda y: y.abs().to(torch.uint8).double(),
    "float": lambda y: y.float().double(),
    "half": lambda y: y.half().double(),
    "bfloat16": lambda y: y.bfloat16().double(),
    "other numbers": lambda y: y.view(torch.int64).bitwise_and(-(2**50)).view(torch.float64),
    "other numbers by name": lambda y: y.view(dtype=torch.int64).bitwise_and(-(2**50)).view(dtype=torch.float64),
}
KEEPS: dict[str, Cast] = {
    "the same": lambda y: y.to(torch.float64).double().type_as(y),
    "the same device": lambda y: y.to("cpu").cpu(),
    "like itself": lambda y: y.to(y),
}


class Model(nn.Module):
    def __init__(self, cast: Cast, front: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.cast, self.front = cast, front

    def forward(self, x: Tensor) -> Tensor:
        if self.front:
            found: Tensor = self.conv(self.cast(self.norm(x)))
        else:
            found = self.norm(self.cast(self.conv(x)))
        return found


def _canonized(cast: Cast, front: bool, tracer: str) -> Report:
    model = harden(Model(cast, front)).double().eval()

    def inputs(batch: int) -> tuple[Tensor, ...]:
        return (3 * torch.randn(batch, 4, 6, 6, dtype=torch.float64),)

    before = checks.snapshot(model)
    network, report = rewritten(model, normalise(inputs(2)), tracer, Options())
    found = network.build()
    checks.assert_untouched(model, before)
    for batch in (1, 2, 5):
        (x,) = inputs(batch)
        with torch.no_grad():
            expected = model(x)
        assert (found(x) - expected).abs().max() <= 1e-10 * expected.abs().max()
    return report


@pytest.mark.parametrize("tracer", ["symbolic_trace", "torch.export"])
@pytest.mark.parametrize("front", [True, False], ids=["forward", "backward"])
@pytest.mark.parametrize("name", ROUNDS)
def test_refuses_because_a_cast_rounds(name: str, front: bool, tracer: str) -> None:
    report = _canonized(ROUNDS[name], front, tracer)
    assert report.count("absorbed") == 0
    assert report.count("last resort") == 1


@pytest.mark.parametrize("tracer", ["symbolic_trace", "torch.export"])
@pytest.mark.parametrize("front", [True, False], ids=["forward", "backward"])
@pytest.mark.parametrize("name", KEEPS)
def test_folds_through_a_cast_that_loses_nothing(name: str, front: bool, tracer: str) -> None:
    report = _canonized(KEEPS[name], front, tracer)
    assert report.count("absorbed") == 1


def test_folds_through_a_widening_cast() -> None:
    """A half precision network that answers in single precision."""

    class Answer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 3).float()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.linear(self.norm(x).float())
            return found

    model = harden(Answer()).eval()
    model.norm.bfloat16()
    report = canonize.canonize(model, torch.randn(2, 4).bfloat16(), verify=False).report
    assert report.count("absorbed") == 1


class Mixed(nn.Module):
    """Half precision weights, and a part that computes in float32 with fixed numbers of its own."""

    def __init__(self, part: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.dense, self.part = nn.Linear(4, 4), part
        self.register_buffer("numbers", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.dense(x).float(), self.numbers.float())


PARTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a large shift": lambda y, n: (y + 100 * torch.arange(4, dtype=torch.float32) * n + 0.3).cos(),
    "a scale": lambda y, n: (y * (1e3 + n / 3)).cos(),
    "a constant": lambda y, n: torch.where(y > 0, (n / 3).sqrt(), y),
    "a factor of shares": lambda y, n: y.softmax(-1) * (n / 3).sqrt(),
    "a bound": lambda y, n: torch.maximum(y, (n / 3).sqrt()[None].expand(6, 4)),
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PARTS)
def test_what_a_part_computes_more_exactly_stays_there(name: str, dtype: torch.dtype, verify: bool) -> None:
    model = Mixed(PARTS[name]).eval().to(dtype)
    x = torch.randn(6, 4).to(dtype)
    found = canonize.canonize(model, x, verify=verify)(x)
    expected = model(x)
    assert found.dtype == expected.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_verdict_sees_what_was_moved_into_a_narrower_precision() -> None:
    class Narrow(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            shift = (100 * torch.arange(4, dtype=torch.float32) * self.numbers.float() + 0.3).to(x.dtype)
            return (self.dense(x) + shift).float().cos()

    for dtype in (torch.bfloat16, torch.float16):
        model, narrow = (cls(PARTS["a large shift"]).eval().to(dtype) for cls in (Mixed, Narrow))
        narrow.load_state_dict(model.state_dict())
        x = torch.randn(6, 4).to(dtype)
        assert not canonize.check_equivalence(model, narrow, x).passed
        assert canonize.check_equivalence(model, model, x).passed
