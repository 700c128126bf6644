"""Nothing is pinned that a model leaves free: a number is a number of any shape, and no length is a channel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import canonize

Forward = Callable[..., Tensor]


class Lengths(nn.Module):
    """Sequences of 4 numbers, of any length."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.q, self.o, self.e = nn.Linear(4, 4), nn.Linear(7, 5), nn.Embedding(11, 4)
        self.register_buffer("scale", torch.rand(4) + 0.5)
        self.made = forward

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.made(self, x) if mask is None else self.made(self, x, mask)


def _mask(m: Lengths, x: Tensor, mask: Tensor) -> Tensor:
    bias = (1.0 - mask.to(x.dtype)) * -1e4
    return torch.softmax(m.q(x) @ x.transpose(1, 2) + bias[:, None, :], -1) @ x


def _root_mean_square(m: Lengths, x: Tensor) -> Tensor:
    return m.q(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.scale)


def _positions(m: Lengths, tokens: Tensor) -> Tensor:
    return m.q(m.e(tokens) + m.e(torch.arange(len(tokens[0])) % 11)) * 0.5 + 1


def _written_view(m: Lengths, x: Tensor) -> Tensor:
    y = x.clone()
    y.view(y.shape[0], -1).mul_(0.5)
    return m.o(torch.tanh(y))


def _written_transpose(m: Lengths, x: Tensor) -> Tensor:
    y = x.clone()
    t = y.transpose(1, -1)
    t += 1
    t[..., 0] -= 1
    return torch.tanh(y)


def _written_numbers(m: Lengths, x: Tensor) -> Tensor:
    y = torch.tanh(x)
    y.view(-1)[0] = 0.5
    y.transpose(1, -1)[:, 1].copy_(x[0, 0, 0, 0])
    return m.o(y)


def _whole_numbers(m: Lengths, x: Tensor) -> Tensor:
    rows, length = int(x.shape[0]), int(x.size(1))
    halves = m.q(x).reshape(rows, length, int(x.shape[-1] / 2), 2)
    return halves.sum(-1) / float(rows) + int(length / 2)


def sequences(rows: int, length: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, length, 4).double(),)


def masked(rows: int, length: int) -> tuple[Tensor, ...]:
    mask = torch.ones(rows, length)
    mask[0, -1] = 0
    return torch.randn(rows, length, 4).double(), mask


def tokens(rows: int, length: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 11, (rows, length)),)


def images(rows: int, length: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 2, length, 7).double(),)


CASES: dict[str, tuple[Forward, Any]] = {
    "a mask": (_mask, masked),
    "a root mean square": (_root_mean_square, sequences),
    "a number on a mask": (lambda m, x, k: m.q(x) * (k.double() * 0.5 + 0.25)[..., None], masked),
    "a number on a length": (lambda m, x: m.q(x).mean(-1) * 3 - 1, sequences),
    "a number on all": (lambda m, x: (m.q(x).sum(-1) * 2 + 1).cumsum(-1), sequences),
    "positions": (_positions, tokens),
    "a view that is written": (_written_view, images),
    "a transpose that is written": (_written_transpose, images),
    "numbers that are written": (_written_numbers, images),
    "whole numbers of sizes": (_whole_numbers, sequences),
    "channels": (lambda m, x: (x * m.scale - 0.5).tanh(), sequences),
}


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("tracer", ["symbolic_trace", "torch.export"])
@pytest.mark.parametrize("name", CASES)
def test_other_rows_and_lengths_are_exact(name: str, tracer: str, rows: int) -> None:
    from canonize.inputs import normalise
    from canonize.pipeline import Options, rewritten

    forward, drawn = CASES[name]
    if name == "whole numbers of sizes" and sys.version_info < (3, 11):
        pytest.skip("bytecode does not tell there what is called")
    if tracer == "symbolic_trace" and "written" in name:
        pytest.skip("torch.fx leaves it to torch.export")
    torch.manual_seed(0)
    model = Lengths(forward).double().eval()
    network, _ = rewritten(model, normalise(drawn(rows, 6)), tracer, Options())
    built = network.build()
    for batch in (1, 2, 3):
        for length in (6, 9, 2):
            given = drawn(batch, length)
            torch.testing.assert_close(built(*given), model(*given), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_passes(name: str) -> None:
    forward, drawn = CASES[name]
    torch.manual_seed(0)
    assert canonize.canonize(Lengths(forward).double().eval(), drawn(2, 6)).report.verdict.passed


class AnyNumber(nn.Module):
    """Any number of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(4, 4)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.q(tensors[0]) * tensors[-1]


@pytest.mark.parametrize("tracer", ["symbolic_trace", "torch.export"])
@pytest.mark.parametrize("rows", [1, 2])
def test_inputs_in_any_number_leave_sizes_free(tracer: str, rows: int) -> None:
    from canonize.inputs import normalise
    from canonize.pipeline import Options, rewritten

    model = AnyNumber().double().eval()
    network, _ = rewritten(model, normalise(sequences(rows, 6) * 2), tracer, Options())
    built = network.build()
    for batch, length in ((1, 6), (3, 9)):
        given = sequences(batch, length) + sequences(batch, length)
        torch.testing.assert_close(built(*given), model(*given), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tracer", ["symbolic_trace", "torch.export"])
def test_a_tensor_that_is_given_twice_is_two_inputs(tracer: str) -> None:
    from canonize.inputs import normalise
    from canonize.pipeline import Options, rewritten

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Embedding(11, 4)

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return self.e(one) - 2 * self.e(other)

    model = Words().double().eval()
    network, _ = rewritten(model, normalise(tokens(2, 6) * 2), tracer, Options())
    given = tokens(3, 5) + tokens(3, 5)
    torch.testing.assert_close(network.build()(*given), model(*given), rtol=1e-10, atol=1e-10)


def test_names_of_numbers_are_pythons_own_afterwards() -> None:
    canonize.canonize(Lengths(_whole_numbers).double().eval(), sequences(2, 6))
    assert not {"int", "float"} & set(globals())


def test_code_that_compares_with_a_type_keeps_it() -> None:
    """A name that is also used for something else than a call is not exchanged."""
    from canonize.capture.symbolic_numbers import symbolic_numbers

    names: dict[str, Any] = {"__name__": "somebodys"}
    exec("class Own:\n def forward(s, x): return float(int(x))\ndef other(n): return type(n) is int", names)
    module = type("Own", (nn.Module,), {"forward": names["Own"].forward})()
    with symbolic_numbers(module):
        assert names.get("int") is None and (names.get("float") is not None) == (sys.version_info >= (3, 11))
        assert names["other"](3)
    assert not {"int", "float"} & set(names)
