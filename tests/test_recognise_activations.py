"""Activations spelt out by hand get their name; functions that only come close keep their own calls."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import canonize
from canonize import nn as cnn
from canonize.capture import capture
from canonize.inputs import normalise
from canonize.normalize import normalize
from tests import checks

TRACERS = ("symbolic_trace", "torch.export")
ROOT = math.sqrt(2.0 / math.pi)
NAMED: dict[str, tuple[Callable[[Tensor], Tensor], type[nn.Module]]] = {
    "gelu": (lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))), nn.GELU),
    "gelu, other order": (lambda x: (torch.erf(x * 2**-0.5) + 1.0) * x / 2, nn.GELU),
    "new gelu": (lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 3.0)))), nn.GELU),
    "gelu by products": (lambda x: x * 0.5 * (1 + torch.tanh(x * ROOT * (1 + 0.044715 * x * x))), nn.GELU),
    "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), cnn.SigmoidGELU),
    "silu": (lambda x: x / (1 + torch.exp(-x)), nn.SiLU),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), nn.Mish),
    "softcap": (lambda x: 2.5 * torch.tanh(x / 2.5), cnn.SoftCap),
}
KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "constant cut off": lambda x: 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
    "another constant": lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.0447 * x**3))),
    "scaled tanh": lambda x: 1.5 * torch.tanh(0.3 * x),
    "shifted": lambda x: x * torch.sigmoid(1.702 * x + 0.1),
    "squared rectifier": lambda x: torch.relu(x) ** 2,
    "negative cap": lambda x: -2.5 * torch.tanh(x / 2.5),
}


class _Between(nn.Module):
    def __init__(self, written: Callable[[Tensor], Tensor], also: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)
        self.written, self.also = written, also

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.second(self.written(y))
        return z + y[..., :3] if self.also else z


class _Two(nn.Module):
    """A product of two values is no function of one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other, self.second = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * torch.sigmoid(1.702 * self.other(x)))


class _ReadInside(nn.Module):
    """What another layer reads in the middle must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        gate = torch.sigmoid(1.702 * y)
        return self.second(y * gate) + self.third(gate)


def _kinds(model: nn.Module, tracer: str) -> list[type]:
    inputs = normalise(torch.randn(2, 5, 6))
    return [type(m) for m in normalize(capture(model.eval(), inputs, tracer), inputs, "Between").modules.values()]


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("name", NAMED)
def test_named(name, tracer):
    written, kind = NAMED[name]
    assert Counter(_kinds(_Between(written), tracer)) == {nn.Linear: 2, kind: 1}


@pytest.mark.parametrize("name", NAMED)
def test_named_where_its_input_has_other_readers(name):
    written, kind = NAMED[name]
    assert kind in _kinds(_Between(written, also=True), "symbolic_trace")


@pytest.mark.parametrize("name", [*NAMED, *KEPT])
def test_exact(name):
    written = NAMED[name][0] if name in NAMED else KEPT[name]
    model = _Between(written).double().eval()
    model.first.weight.data.mul_(4.0)
    canonical = canonize.canonize(model, torch.randn(2, 5, 6, dtype=torch.float64))
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    assert checks.relative_error(canonical(x), model(x)) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMED)
def test_other_precisions(name, dtype):
    model = _Between(NAMED[name][0]).to(dtype).eval()
    x = torch.randn(2, 5, 6).to(dtype)
    assert canonize.canonize(model, x)(x).dtype == dtype


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("name", KEPT)
def test_kept(name, tracer):
    new = {nn.GELU, nn.SiLU, nn.Mish, cnn.SigmoidGELU, cnn.SoftCap}
    assert not new & set(_kinds(_Between(KEPT[name]), tracer))


@pytest.mark.parametrize("model", [_Two(), _ReadInside()], ids=["two values", "read inside"])
def test_kept_where_it_is_no_function_of_one_value(model):
    assert cnn.SigmoidGELU not in _kinds(model, "symbolic_trace")


@pytest.mark.parametrize("name", ["quick gelu", "softcap"])
@pytest.mark.parametrize("ending", ["out.pt", "folder"])
def test_written_and_read(name, ending, tmp_path):
    model, x = _Between(NAMED[name][0]).eval(), torch.randn(2, 5, 6)
    canonical = canonize.canonize(model, x)
    canonize.save(canonical, tmp_path / ending, example_inputs=x)
    assert torch.equal(canonize.load(tmp_path / ending, trust=True)(x), canonical(x))
