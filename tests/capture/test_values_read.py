"""A forward that reads values: what it reads of the data is read again at each call, or refused with the line."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import canonize
from tests.statistics import harden

Forward = Callable[["Reads", Tensor, Tensor], Tensor]


class Reads(nn.Module):
    """Sequences and their lengths."""

    kept: Tensor

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.i, self.b, self.o = nn.Linear(6, 8), harden(nn.BatchNorm1d(8)), nn.Linear(8, 2)
        self.register_buffer("kept", torch.tensor([3, 5]))
        self.made = forward

    def net(self, x: Tensor) -> Tensor:
        y: Tensor = self.o(torch.relu(self.b(self.i(x).transpose(1, 2)).transpose(1, 2)))
        return y.mean(1)

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return self.made(self, x, n)


def _swallows(m: Reads, x: Tensor, n: Tensor) -> Tensor:
    try:
        most = int(n.max())
    except Exception:
        most = 3
    return m.net(x[:, :most])


def _halves(m: Reads, x: Tensor, n: Tensor) -> Tensor:
    while x.abs().max().item() > 1.0:
        x = x / 2
    return m.net(x)


REFUSED: dict[str, Forward] = {
    "a branch on item": lambda m, x, n: m.net(x) if (n > 8).all().item() else m.net(-x),
    "a loop": lambda m, x, n: sum(m.net(x) * i for i in range(n.max().item())),  # type: ignore[misc,arg-type]
    "int": lambda m, x, n: m.net(x) + x.new_zeros(int(n[0].item()), 2).sum(0) + x.new_ones(int(n[1]), 2).sum(0),
    "float": lambda m, x, n: m.net(x) * float(n.float().mean()),
    "equal": lambda m, x, n: m.net(x) if torch.equal(n, n.sort()[0]) else m.net(-x),
    "is_nonzero": lambda m, x, n: m.net(x) if torch.is_nonzero(n[0] > 5) else m.net(-x),
    "allclose": lambda m, x, n: m.net(x) if torch.allclose(x, x.abs()) else m.net(-x),
    "a branch on tolist": lambda m, x, n: m.net(x) if n.tolist()[0] > 3 else m.net(-x),
    "a table": lambda m, x, n: m.net(x) * {0: 1.0, 1: 2.0, 2: 3.0}[int(n[0] % 3)],
    "a list": lambda m, x, n: m.net(x) * [1.0, 2.0, 3.0][n[0] % 3],
    "numpy": lambda m, x, n: m.net(x) if np.asarray(n.numpy()).max() > 3 else m.net(-x),
    "a maximum of Python's": lambda m, x, n: m.net(x) * max(n.float().mean().item(), 3.0),
    "a text": lambda m, x, n: m.net(x) * len(f"{n[0]}"),
    "an exception swallowed": _swallows,
    "while": _halves,
    "clean": lambda m, x, n: m.net(torch.nan_to_num(x) if torch.isnan(x).any().item() else x),
}
KEPT: dict[str, Forward] = {
    "a slice": lambda m, x, n: m.net(x[:, : n.max().item()]),
    "a factor": lambda m, x, n: m.net(x / x.abs().max().item()),
    "a list of slices": lambda m, x, n: m.net(x[:, : n.tolist()[0]]),
    "a constant": lambda m, x, n: m.net(x[:, : m.kept.max().item()]),
    "a branch on a parameter": lambda m, x, n: m.net(x) if m.b.weight.sum().item() > 0 else m.net(-x),
    "a size": lambda m, x, n: m.net(x) * torch.arange(x.shape[-1]).max().item(),
    "how many there are": lambda m, x, n: m.net(x) * (n > 8).nonzero().shape[0],
}


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_a_decision_on_values_is_refused(name: str, verify: bool) -> None:
    torch.manual_seed(0)
    model = Reads(REFUSED[name]).eval()
    with pytest.raises(canonize.CanonizeError):
        canonize.canonize(model, (torch.randn(2, 12, 6), torch.tensor([12, 9])), verify=verify)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("name", KEPT)
def test_what_can_be_read_at_each_call_is(name: str, verify: bool) -> None:
    torch.manual_seed(0)
    model = Reads(KEPT[name]).double().eval()
    built = canonize.canonize(model, (torch.randn(2, 12, 6).double(), torch.tensor([12, 9])), verify=verify)
    for lengths in ((12, 9), (7, 5), (2, 4)):
        given = torch.randn(2, 12, 6, dtype=torch.float64), torch.tensor(lengths)
        torch.testing.assert_close(built(*given), model(*given), rtol=1e-10, atol=1e-10)


def test_the_refusal_names_the_line() -> None:
    model = Reads(REFUSED["a branch on item"]).eval()
    with pytest.raises(canonize.CaptureError, match=r"test_values_read\.py:\d+.*depends on the values of a tensor"):
        canonize.canonize(model, (torch.randn(2, 12, 6), torch.tensor([12, 9])))
