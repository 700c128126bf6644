"""Two names for one tensor: what is written through one is read through the other, or the model is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import canonize
from tests.statistics import harden

HAND_THROUGH: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": nn.Dropout().eval(),
    "identity": nn.Identity(),
    "both": nn.Sequential(nn.Identity(), nn.Dropout()).eval(),
    "functional dropout": lambda y: F.dropout(y, 0.3, training=False),
    "alpha dropout": lambda y: F.alpha_dropout(y, 0.3),
    "to": lambda y: y.to(y.dtype),
    "contiguous": lambda y: y.contiguous(),
    "reshape": lambda y: y.reshape(y.shape),
    "view": lambda y: y.view(y.size(0), -1),
    "transpose": lambda y: y.transpose(1, 2),
    "expand": lambda y: y.expand(-1, -1, -1, -1),
    "flatten": lambda y: nn.Flatten()(y),
    "einsum": lambda y: torch.einsum("abcd->abdc", y),
    "a chain": lambda y: F.dropout(y.transpose(2, 3), 0.1, False).contiguous().transpose(2, 3),
    "type_as": lambda y: y.type_as(y),
    "broadcast": lambda y: torch.broadcast_tensors(y, y[:1])[0],
    "atleast": lambda y: torch.atleast_3d(y),
    "a slice": lambda y: y[:, 1:],
    "detach": lambda y: y.detach(),
    "data": lambda y: y.data,
    "clone": lambda y: y.clone(),
    "sum_to_size": lambda y: y.sum_to_size(y.shape),
}


class Written(nn.Module):
    """Writes into what is handed through, and reads the original."""

    def __init__(self, through: Callable[[Tensor], Tensor], first: bool) -> None:
        super().__init__()
        self.c, self.b = nn.Conv2d(3, 4, 3, padding=1), harden(nn.BatchNorm2d(4))
        self.through, self.first = through, first

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.c(x))
        z = self.through(y)
        if self.first:
            y += 1.5
            return torch.tanh(z)
        z += 1.5
        return torch.tanh(y)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", HAND_THROUGH)
def test_what_is_written_through_another_name_is_not_lost(name: str, first: bool, verify: bool) -> None:
    torch.manual_seed(0)
    model = Written(HAND_THROUGH[name], first).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    try:
        built = canonize.canonize(model, x, verify=verify)
    except canonize.CaptureError:
        assert name in ("einsum", "broadcast", "atleast", "detach", "data", "type_as", "sum_to_size", "alpha dropout")
        return
    for rows in (2, 1, 3):
        given = torch.randn(rows, 3, 6, 6, dtype=torch.float64)
        torch.testing.assert_close(built(given), model(given), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    "tail",
    [
        lambda y: torch.maximum(y, torch.zeros(1, 1, 1, 1, 1)),
        lambda y: torch.clamp(y, min=torch.zeros(1, 1, 1, 1, 1)),
        lambda y: y.squeeze(),
        lambda y: y.squeeze(0),
        lambda y: torch.squeeze(y) * 2,
        lambda y: y.mean(1).squeeze().unsqueeze(-1),
    ],
)
@pytest.mark.parametrize("rows", [1, 2])
def test_how_many_dimensions_there_are_follows_the_size(
    tail: Callable[[Tensor], Tensor], rows: int, verify: bool
) -> None:
    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.b = nn.Conv2d(3, 4, 3, padding=1), harden(nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            return tail(self.b(self.c(x)))

    torch.manual_seed(0)
    model = Tail().double().eval()
    built = canonize.canonize(model, torch.randn(rows, 3, 6, 6, dtype=torch.float64), verify=verify)
    for other in (1, 2, 3):
        given = torch.randn(other, 3, 6, 6, dtype=torch.float64)
        torch.testing.assert_close(built(given), model(given), rtol=1e-10, atol=1e-10)
