"""What once was refused by mistake is taken: exported programs, inference mode, deep nests, adaptive maxima."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import canonize
from canonize.capture.captured import GUARD
from canonize.capture.size_wording import expression
from canonize.inputs import normalise
from canonize.pipeline import Options, rewritten
from tests.statistics import harden

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), harden(nn.BatchNorm2d(4)), nn.ReLU(), nn.Conv2d(4, 2, 1)
    return nn.Sequential(*layers).double().eval()


def assert_same(built: nn.Module, model: nn.Module, x: Tensor = X) -> None:
    torch.testing.assert_close(built(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("verify", [False, True])
def test_the_module_of_an_exported_program(verify: bool) -> None:
    free = torch.export.export(net(), (X,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    built = canonize.canonize(free, X, verify=verify)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in built.modules())
    assert_same(built, net(), torch.randn(5, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(AssertionError, match=GUARD):
        built(torch.randn(2, 3, 9, 8, dtype=torch.float64))


def test_the_module_of_a_program_of_fixed_sizes_refuses_others() -> None:
    built = canonize.canonize(torch.export.export(net(), (X,)).module(), X)
    assert_same(built, net())
    with pytest.raises(AssertionError, match="dimension 0 of input is 2"):
        built(X[:1])


def test_an_exported_program_itself() -> None:
    program = torch.export.export(net(), (X,))
    assert_same(canonize.canonize(program), net())  # its own example inputs are known
    assert_same(canonize.canonize(program, X), net())
    assert not canonize.inspect(program).canonical


def test_inside_inference_mode() -> None:
    with torch.inference_mode():
        built = canonize.canonize(net(), torch.randn(1, 3, 8, 8, dtype=torch.float64))
    given = X.clone().requires_grad_()
    built(given).sum().backward()
    assert given.grad is not None
    assert_same(built, net())


def test_made_inside_inference_mode() -> None:
    with torch.inference_mode():
        model, x = net(), X.clone()
    built = canonize.canonize(model, x)
    given = X.clone().requires_grad_()
    built(given).sum().backward()
    assert_same(built, net())


def test_the_meta_device_is_named() -> None:
    with pytest.raises(canonize.CanonizeError, match=r"0\.weight: it is on the meta device, which holds no values"):
        canonize.canonize(net().to("meta"), X.to("meta"))


class Around(nn.Module):
    """A module around another."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


def test_modules_nested_150_deep() -> None:
    model: nn.Module = net()
    for _ in range(150):
        model = Around(model)
    found: list[Any] = []
    # A thread of its own: how deep the test runner itself stands does not count.
    thread = threading.Thread(target=lambda: found.append(canonize.canonize(model.eval(), X)))
    thread.start()
    thread.join()
    assert_same(found[0], net())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("tracer", ["symbolic_trace", "torch.export"])
def test_adaptive_maxima(dims: int, tracer: str) -> None:
    conv, norm, pool = (getattr(nn, f"{kind}{dims}d") for kind in ("Conv", "BatchNorm", "AdaptiveMaxPool"))
    model = nn.Sequential(conv(3, 4, 3), harden(norm(4)), pool(2)).double().eval()
    x = torch.randn(2, 3, *(8,) * dims, dtype=torch.float64)
    network, _ = rewritten(model, normalise(x), tracer, Options())
    built = network.build()
    assert any(isinstance(layer, pool) for layer in built.modules())
    for rows in (1, 2, 3):
        assert_same(built, model, torch.randn(rows, 3, *(8,) * dims, dtype=torch.float64))


# -------------------------------------------------------------------------------------------------- time limits


def test_words_about_sizes_stop_at_data_and_take_no_exponential_time() -> None:
    graph = fx.Graph()
    node = graph.placeholder("x")
    for _ in range(300):
        node = graph.call_function(torch.add, (node, node))
    size = graph.call_method("size", (node, 1))
    assert expression(size, lambda n: n is not size) == f"{node.name}.size(1)"
    for _ in range(300):
        size = graph.call_function(torch.sym_max, (size, size))
    assert len(expression(size, lambda n: n is node)) < 10_000


class _LimitError(Exception):
    """A caller's own."""


@pytest.mark.parametrize("error", [TimeoutError, _LimitError])
@pytest.mark.parametrize("verify", [False, True])
def test_a_time_limit_of_the_callers_passes_through(error: type[Exception], verify: bool) -> None:
    calls = []

    def expired(number: int, frame: Any) -> None:
        raise error("too long")

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            signal.raise_signal(signal.SIGUSR1)
            y: Tensor = self.c(x)
            return y

    before = signal.signal(signal.SIGUSR1, expired)
    try:
        with pytest.raises(error, match="too long"):
            canonize.canonize(Slow().eval(), torch.randn(2, 3, 8, 8), verify=verify)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(calls) == 1  # no second trace


def test_an_error_of_the_models_own_is_no_time_limit() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("of its own")

    with pytest.raises(canonize.CanonizeError):
        canonize.canonize(Fails().eval(), torch.randn(2, 3, 8, 8))
