"""Conversions and proofs in some threads leave no trace in others: dtypes, random numbers, warnings, forwards."""

from __future__ import annotations

import copy
import random
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import canonize
from canonize.compat.threads import Replaced, exporting, no_printing, no_warnings
from canonize.twins.float64 import in_float64
from canonize.twins.randomness import PrivateRandom, Streams
from tests.statistics import harden

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Sized(nn.Module):
    """What only torch.export follows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = plain(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y * 2 if torch.sum(torch.ones(3)).item() > 1 and y.shape[-1] == 4 else y


def plain(width: int) -> nn.Module:
    layers = (nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3), nn.BatchNorm2d(4))
    return harden(nn.Sequential(*layers))


def together(*jobs: Callable[[], Any]) -> list[BaseException]:
    """Run jobs in threads of their own; what they raised."""
    raised: list[BaseException] = []

    def guarded(job: Callable[[], Any]) -> None:
        try:
            job()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_eight_conversions_at_once_leave_no_trace_in_other_threads() -> None:
    models = [(plain if i % 4 else Sized)(4 + i).eval() for i in range(8)]
    served = models[1]
    expected = served(X)
    stop = threading.Event()
    drawn: list[tuple[float, ...]] = []
    seen: set[Any] = set()
    filters = list(warnings.filters)
    streams = sys.stdout, sys.stderr
    state = random.getstate()

    def draw() -> None:
        while not stop.is_set():
            drawn.append(tuple(torch.rand(4).tolist()))

    def make() -> None:
        while not stop.is_set():
            tensors = (torch.zeros(2), torch.tensor(0.5), torch.linspace(0, 1, 3), torch.ones(2, dtype=torch.int32) / 3)
            seen.update(tensor.dtype for tensor in tensors)
            seen.add(torch.get_default_dtype())

    def serve() -> None:
        while not stop.is_set():
            with torch.no_grad():
                y = served(X)
            assert type(y) is Tensor and torch.equal(y, expected)

    graphs: list[Any] = []

    def convert(model: nn.Module) -> Callable[[], None]:
        return lambda: graphs.append(canonize.canonize(model, X))

    def all_of_them() -> None:
        try:
            failures.extend(together(*(convert(model) for model in models)))
        finally:
            stop.set()

    failures: list[BaseException] = []
    failures.extend(together(all_of_them, draw, make, serve))
    assert not failures, failures
    assert len(graphs) == len(models) and all(graph.report.verdict.passed for graph in graphs)
    assert len(set(drawn)) == len(drawn) > 0, "random numbers were drawn twice"
    assert seen == {torch.float32}
    assert torch.get_default_dtype() == torch.float32
    assert list(warnings.filters) == filters and (sys.stdout, sys.stderr) == streams
    assert random.getstate() == state


@pytest.mark.parametrize("verify", [True, False])
def test_a_conversion_draws_nothing(verify: bool) -> None:
    """Not even what is drawn and given back."""
    for model in (plain(4), Sized(4)):
        before = torch.get_rng_state()
        drawing = _Counts()
        with drawing:
            canonize.canonize(model, X, verify=verify)
        assert torch.equal(before, torch.get_rng_state())
        assert drawing.count == 0


class _Counts(PrivateRandom):
    """Counts what is drawn from the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
        self.count += drawn and (kwargs or {}).get("generator") is None
        return func(*args, **(kwargs or {}))


def test_what_a_forward_draws_comes_from_generators_of_their_own() -> None:
    layer = nn.Dropout(0.5)
    before = torch.get_rng_state()
    with PrivateRandom(Streams()) as watch:
        made = [
            *(torch.rand(3), torch.randn(3), torch.randint(9, (3,)), torch.randint(2, 9, (3,)), torch.randperm(4)),
            *(torch.rand_like(X), torch.randn_like(X), torch.normal(0.0, 1.0, (3,)), torch.empty(3).uniform_()),
            *(layer(X), torch.bernoulli(torch.full((3,), 0.5)), torch.multinomial(torch.ones(4), 2)),
            *(torch.empty(3).exponential_(), torch.empty(3).random_(), torch.poisson(torch.ones(3))),
        ]
    assert watch.drew and len(made) == 15
    assert torch.equal(before, torch.get_rng_state())
    with PrivateRandom() as watch:
        nn.Conv2d(3, 4, 3)
    assert torch.equal(before, torch.get_rng_state())
    streams = Streams()
    with PrivateRandom(streams):
        first = torch.rand(3)
    with PrivateRandom(streams):
        assert not torch.equal(first, torch.rand(3)), "noise would look deterministic"


THIRD = torch.tensor(1 / 3, dtype=torch.float64)
MADE: dict[str, Callable[[], Any]] = {
    "tensor": lambda: torch.tensor(1 / 3),
    "full": lambda: torch.full((), 1 / 3),
    "full_like": lambda: torch.full_like(torch.tensor(1 / 3), 1 / 3),
    "scalar_tensor": lambda: torch.scalar_tensor(1 / 3),
    "linspace": lambda: torch.linspace(0, 1, 4)[1],
    "arange": lambda: torch.arange(0, 1, 1 / 3)[1],
    "division": lambda: torch.tensor(1) / 3,
    "division of two": lambda: torch.tensor(1) / torch.tensor(3),
    "division of a number": lambda: 1 / torch.tensor(3),
    "division of a mask": lambda: torch.tensor(True) / 3,
    "product": lambda: torch.tensor(1) * (1 / 3),
    "sum": lambda: torch.tensor([0]) + (1 / 3),
    "power": lambda: torch.tensor(3) ** -1.0,
    "where": lambda: torch.where(torch.tensor(True), 1 / 3, 0.2),
    "exponential": lambda: (torch.tensor(1).exp() / torch.tensor(3)) / torch.tensor(1).exp(),
    "eye": lambda: torch.eye(1)[0, 0] / 3,
    "zeros": lambda: torch.zeros(()) + 1 / 3,
    "named": lambda: torch.tensor(1 / 3, dtype=torch.float32),
    "cast": lambda: torch.tensor(1).float() / 3,
}


@pytest.mark.parametrize("name", MADE)
def test_the_default_dtype_is_read_as_float64_where_asked_for(name: str) -> None:
    with in_float64():
        made = MADE[name]()
    assert made.dtype == torch.float64
    assert abs(made.double() - THIRD).max() < 1e-15
    with in_float64():
        assert torch.tensor(1j).dtype == torch.complex128
        assert torch.tensor([1, 2]).dtype == torch.int64 and (torch.tensor(1) > 0).dtype == torch.bool
        assert torch.ones(2, dtype=torch.float64).sum().dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32 and torch.zeros(1).dtype == torch.float32


def test_operators_of_torchscript_are_read_as_float64_too() -> None:
    @torch.jit.script
    def third(x: Tensor) -> Tensor:
        return x * torch.linspace(0.0, 1.0, 4)[1] + torch.full([2], 0.1)

    with in_float64(operators=True):
        made = third(torch.ones(2, dtype=torch.float64))
    assert made.dtype == torch.float64 and abs(made - (1 / 3 + 0.1)).max() < 1e-15


def test_warnings_of_other_threads_are_heard() -> None:
    inside, done = threading.Event(), threading.Event()
    heard: list[str] = []

    def quiet() -> None:
        with no_warnings():
            warnings.warn("own", stacklevel=1)
            inside.set()
            done.wait()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=quiet)
        thread.start()
        inside.wait()
        warnings.warn("other", stacklevel=1)
        done.set()
        thread.join()
        heard = [str(warning.message) for warning in caught]
    assert heard == ["other"]
    with pytest.warns(UserWarning, match="again"):
        warnings.warn("again", stacklevel=1)


def test_printing_of_other_threads_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with no_printing("stdout"):
        print("own")
        with no_printing("stdout"):
            print("own again")
        together(lambda: print("other"))
        print("still own")
    assert sys.stdout is before
    print("afterwards")
    assert capsys.readouterr().out == "other\nafterwards\n"


def test_a_function_is_replaced_for_one_thread() -> None:
    import types

    home = types.SimpleNamespace(answer=lambda: "theirs")
    original = home.answer
    answers: list[str] = []
    with Replaced(home, "answer", lambda: "mine"), Replaced(home, "answer", lambda: "innermost"):
        assert home.answer() == "innermost"
        together(lambda: answers.append(home.answer()))
    assert answers == ["theirs"] and home.answer is original


def test_exporting_does_not_set_the_generator_back() -> None:
    model = copy.deepcopy(plain(4)).eval()
    rewound = torch.random.set_rng_state
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.random, "set_rng_state", lambda state: (calls.append(1), rewound(state)))
        with exporting():
            torch.export.export(model, (X,)).run_decompositions()
        assert not calls
        torch.export.export(model, (X,)).run_decompositions()
    assert calls, "nothing is set back anyway: the replacement may go"
