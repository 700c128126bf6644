"""Normalisations spelt out by hand are one module; what only looks like one is left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import canonize
from canonize import nn as cnn
from canonize.capture import capture
from canonize.explain import attribute
from canonize.inputs import normalise
from canonize.normalize import normalize
from tests import checks

WIDTH = 6


class _Between(nn.Module):
    """A normalisation between two linear layers, written as a function of the value and of a weight."""

    def __init__(self, written: Callable[[Tensor, Tensor], Tensor], scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.written = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3), written
        self.weight = nn.Parameter(torch.tensor([0.0, 1e-30, -1.5, 0.7, 1.0, 2.0]))
        self.first.weight.data.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.written(self.first(x), self.weight))


def _llama(x: Tensor, w: Tensor) -> Tensor:
    y = x.to(torch.float32)
    return w * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-4)).to(x.dtype)


def _gemma(x: Tensor, w: Tensor) -> Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-4)
    return (y * (1.0 + w.float())).type_as(x)


def _centred(x: Tensor, w: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return w * (x - mean) / torch.sqrt((x - mean).pow(2).mean(-1, keepdim=True) + 1e-4)


RECOGNISED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "llama": _llama,
    "gemma": _gemma,
    "centred": _centred,
    "quotient": lambda x, w: w * x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + 1e-4),
    "root as a method": lambda x, w: x / ((x**2).mean(-1, keepdim=True) + 1e-4).sqrt() * w,
    "function of a mean": lambda x, w: w * (x * torch.rsqrt(torch.mean(x**2, -1, True) + 1e-4)),
    "negative power": lambda x, w: x * (1e-4 + x.square().mean(-1, keepdim=True)).pow(-0.5) * w,
    "statistics alone are wide": lambda x, w: (
        x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-4).type_as(x) * w
    ),
    "functional": lambda x, w: nn.functional.rms_norm(x, (WIDTH,), w, 1e-4),
}

LEFT_ALONE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "third power": lambda x, w: x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-4),
    "root of the power three": lambda x, w: x * (x.square().mean(-1, keepdim=True) + 1e-4).pow(-1.5),
    "another value": lambda x, w: torch.tanh(x) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-4),
    "multiplied by the root": lambda x, w: x * torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-4),
    "upside down": lambda x, w: torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-4) / x,
    "a sum": lambda x, w: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-4),
    "scaled inside": lambda x, w: x * torch.rsqrt(2.0 * x.pow(2).mean(-1, keepdim=True) + 1e-4),
    "rounded quotient": lambda x, w: torch.div(
        x, torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-4), rounding_mode="floor"
    ),
}
TRACERS = ("symbolic_trace", "torch.export")


def _kinds(model: nn.Module, tracer: str) -> list[type]:
    inputs = normalise(torch.randn(2, 5, WIDTH, dtype=next(model.parameters()).dtype))
    network = normalize(capture(model, inputs, tracer), inputs, "Between")
    return [type(module) for module in network.modules.values()]


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("name", RECOGNISED)
def test_one_module(name, tracer):
    kinds = _kinds(_Between(RECOGNISED[name]).eval(), tracer)
    assert sum(issubclass(kind, nn.RMSNorm) for kind in kinds) == 1
    assert cnn.Gate not in kinds and cnn.Call not in kinds


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", RECOGNISED)
def test_same_function_in_every_precision(name, dtype):
    model = _Between(RECOGNISED[name]).to(dtype).eval()
    example = torch.randn(2, 5, WIDTH).to(dtype)
    canonical = canonize.canonize(model, example)
    for shape in ((2, 5, WIDTH), (1, 9, WIDTH), (3, 1, WIDTH)):
        x = torch.randn(shape).to(dtype)
        expected, found = model(x), canonical(x)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
    assert canonical.report.canonical, canonical.report.findings


@pytest.mark.parametrize("name", RECOGNISED)
def test_exact_in_float64(name):
    model = _Between(RECOGNISED[name], scale=40.0).double().eval()
    example = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    canonical = canonize.canonize(model, example, verify=False)
    x = torch.randn(3, 7, WIDTH, dtype=torch.float64)
    wide = name in ("llama", "gemma", "statistics alone are wide")  # these compute in float32 inside, whatever comes in
    assert checks.relative_error(canonical(x), model(x)) <= (1e-6 if wide else 1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_relevance_in_every_precision(dtype):
    model = nn.Sequential(_Between(_llama), nn.Flatten(), nn.Linear(15, 4)).to(dtype).eval()
    x = torch.randn(2, 5, WIDTH).to(dtype)
    found = attribute(canonize.canonize(model, x), x, 1, method="epsilon")
    assert isinstance(found.relevance, Tensor)
    assert bool(found.relevance.isfinite().all())


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone(name, tracer):
    kinds = _kinds(_Between(LEFT_ALONE[name]).eval(), tracer)
    assert not any(issubclass(kind, nn.RMSNorm) for kind in kinds)


@pytest.mark.parametrize("ending", ["out.pt", "folder"])
def test_written_and_read(ending, tmp_path):
    model = _Between(_llama).bfloat16().eval()
    x = torch.randn(2, 5, WIDTH).bfloat16()
    canonical = canonize.canonize(model, x)
    canonize.save(canonical, tmp_path / ending, example_inputs=x)
    assert torch.equal(canonize.load(tmp_path / ending, trust=True)(x), canonical(x))
