"""How many pieces, loop turns or rows there are may follow from a size: other sizes are right, or refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import canonize
from canonize.capture.captured import GUARD
from tests.statistics import harden

Forward = Callable[["Rows", Tensor], Tensor]


class Rows(nn.Module):
    """A head for each piece of what a Linear gives."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.i, self.b, self.o = nn.Linear(6, 8), harden(nn.BatchNorm1d(8)), nn.Linear(8, 2)
        self.made = forward

    def each(self, piece: Tensor) -> Tensor:
        return self.o(torch.relu(self.b(piece)))

    def forward(self, x: Tensor) -> Tensor:
        return self.made(self, x)


def _loop(m: Rows, x: Tensor) -> Tensor:
    total = m.each(m.i(x))
    for _ in range(x.shape[0] // 4):
        total = total + 1
    return total


FORWARDS: dict[str, Forward] = {
    "chunk": lambda m, x: torch.cat([m.each(c) for c in m.i(x).chunk(max(1, x.shape[0] // 4), 0)]),
    "a fixed number of chunks": lambda m, x: torch.cat([m.each(c) for c in m.i(x).chunk(5)]),
    "tensor_split": lambda m, x: torch.cat([m.each(c) for c in torch.tensor_split(m.i(x), x.shape[0] // 4)]),
    "a list of sizes": lambda m, x: torch.cat([m.each(c) for c in m.i(x).split([4] * (x.shape[0] // 4))]),
    "split": lambda m, x: torch.cat([m.each(c) for c in m.i(x).split(4)]),
    "ceil": lambda m, x: torch.cat([m.each(c) for c in m.i(x).chunk(math.ceil(x.shape[0] / 4), 0)]),
    "unbind": lambda m, x: torch.stack([m.each(r[None])[0] for r in m.i(x).unbind(0)]),
    "rows": lambda m, x: torch.stack([m.each(r[None])[0] for r in m.i(x)]),
    "their number": lambda m, x: m.each(m.i(x)) / len(m.i(x).split(4)),
    "a loop": _loop,
    "the last": lambda m, x: m.each(m.i(x).split(4)[-1]),
    "numbered": lambda m, x: sum(m.each(c).sum() * (k + 1) for k, c in enumerate(m.i(x).split(4))),  # type: ignore[misc]
    "hsplit": lambda m, x: torch.cat(list(torch.vsplit(m.each(m.i(x)), x.shape[0] // 2))),
    "zip": lambda m, x: torch.cat([m.each(a) + b for a, b in zip(m.i(x).split(4), (1.0, 2.0, 3.0), strict=False)]),
}


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("name", FORWARDS)
def test_other_numbers_of_rows_are_right_or_refused(name: str, verify: bool) -> None:
    torch.manual_seed(0)
    model = Rows(FORWARDS[name]).double().eval()
    built = canonize.canonize(model, torch.randn(8, 6, dtype=torch.float64), verify=verify)
    taken = []
    for rows in (2, 4, 5, 8, 12, 16, 17):
        x = torch.randn(rows, 6, dtype=torch.float64)
        try:
            wanted = model(x)
        except RuntimeError:
            continue
        try:
            found = built(x)
        except AssertionError as error:
            if GUARD not in str(error):
                raise
            continue
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        taken.append(rows)
    assert 8 in taken


def test_the_check_names_the_line_and_what_is_counted() -> None:
    built = canonize.canonize(Rows(FORWARDS["split"]).eval(), torch.randn(8, 6), verify=False)
    (note,) = built.report.notes
    assert "len(i.split(4)) is 2 (test_pieces.py:" in note


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.each(m.i(x)).reshape(len(x), -1),
        lambda m, x: m.each(m.i(x)) / len(x),
        lambda m, x: m.each(m.i(x)) + torch.arange(len(m.i(x)))[:, None] / 10,
        lambda m, x: torch.cat([m.each(p) for p in m.i(x).chunk(2, -1)[0][:, :8].repeat(1, 2).split(8, 1)]),
    ],
)
def test_the_number_of_rows_stays_free(forward: Forward) -> None:
    model = Rows(forward).double().eval()
    built = canonize.canonize(model, torch.randn(3, 6, dtype=torch.float64))
    assert built.report.captured_by == "symbolic_trace" and not built.report.notes
    for rows in (1, 2, 7):
        x = torch.randn(rows, 6, dtype=torch.float64)
        torch.testing.assert_close(built(x), model(x), rtol=1e-10, atol=1e-10)
