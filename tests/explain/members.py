"""Small models of one operation each between linear layers, and what each of their heatmaps must be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Way = Callable[["Member", Tensor, Tensor], Tensor]


class Member(nn.Module):
    """Two linear maps a and b of the input, what a way makes of them, and a linear layer; no biases."""

    k: Tensor
    w: Tensor

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.a, self.b, self.last = (nn.Linear(i, o, bias=False) for i, o in ((5, 6), (5, 6), (6, 3)))
        self.c = nn.Linear(5, 36, bias=False)
        self.register_buffer("k", torch.randn(6))
        self.register_buffer("w", torch.randn(6, 6))
        self.cell, self.pair, self.slopes = nn.GRUCell(6, 6), nn.Bilinear(6, 6, 6), nn.PReLU(6)
        self.encoder = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        self.matrices = self.c(x).view(-1, 6, 6)
        output: Tensor = self.last(self.way(self, self.a(x), self.b(x)))
        return output


class Straight(torch.autograd.Function):
    """Rounding whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def written(a: Tensor, b: Tensor) -> Tensor:
    y = a.clone()
    y[:, 1:3] += b[:, 1:3]
    return y


def halved(s: Member, a: Tensor, b: Tensor) -> Tensor:
    return F.glu(torch.cat([a, b], 1))


# Relevance sums to 1: nothing keeps any.
CONSERVED: dict[str, Way] = {
    "a difference with a factor": lambda s, a, b: torch.sub(a, b, alpha=2),
    "a difference the other way round": lambda s, a, b: torch.rsub(a, b, alpha=3),
    "a sum of a list": lambda s, a, b: sum([a, b, a], torch.zeros(())),
    "a product with itself": lambda s, a, b: a * a,
    "one value as both operands of a sum of products": lambda s, a, b: torch.einsum("bi,bj->bj", a, a),
    "one value as both matrices": lambda s, a, b: torch.bmm(s.matrices, s.matrices)[:, 0],
    "a matrix that is computed": lambda s, a, b: torch.bmm(s.matrices, a.unsqueeze(-1)).squeeze(-1),
    "a quadratic form": lambda s, a, b: (a @ s.w) * a,
    "an outer product": lambda s, a, b: torch.einsum("bi,bj->bij", a, b).sum(2),
    "a constant that a gate scales": lambda s, a, b: s.k * torch.sigmoid(a),
    "a gate by hand": lambda s, a, b: F.silu(a) * b,
    "a gated unit": halved,
    "weights by softmax": lambda s, a, b: a * b.softmax(1),
    "a choice between two": lambda s, a, b: torch.where(a > 0, a, b),
    "leaky, by a condition": lambda s, a, b: torch.where(a > 0, a, 0.1 * a),
    "the larger": lambda s, a, b: torch.fmax(a, b),
    "deviations from the mean": lambda s, a, b: a - a.mean(1, keepdim=True),
    "root mean square by hand": lambda s, a, b: a * torch.rsqrt(a.pow(2).mean(1, keepdim=True) + 1e-3),
    "unit length": lambda s, a, b: F.normalize(a, dim=1),
    "sorted": lambda s, a, b: a.sort(1)[0],
    "the largest": lambda s, a, b: a.topk(6, 1).values,
    "written in place": lambda s, a, b: written(a, b),
    "a power of a size": lambda s, a, b: a * a.shape[-1] ** -0.5,
    "the logarithm of a size": lambda s, a, b: a / math.log(a.size(1)),
    "counted ones": lambda s, a, b: a * torch.ones_like(a).sum(1, keepdim=True),
    "counted positives": lambda s, a, b: a * (a > 0).sum(1, keepdim=True),
    "slopes that were learned": lambda s, a, b: s.slopes(a),
    "a minimum, by hand": lambda s, a, b: -F.max_pool1d(-a.unsqueeze(1), 3, 1, 1).squeeze(1),
    "windows that overlap": lambda s, a, b: a.unfold(1, 3, 1).sum(2)[:, [0, 1, 2, 3, 0, 1]],
    "half of what was interpolated": lambda s, a, b: F.interpolate(a.unsqueeze(1), scale_factor=2).squeeze(1)[:, ::2],
}
# What has no rule, and the name that is said.
REFUSED: dict[str, tuple[Way, str]] = {
    "one over it": (lambda s, a, b: 1 / (2 + a * a), "div"),
    "divided by itself": (lambda s, a, b: a / (a + 3), "div"),
    "divided by a norm": (lambda s, a, b: a / a.norm(1, dim=1, keepdim=True), "div"),
    "standardised": (lambda s, a, b: (a - a.mean(1, keepdim=True)) / a.std(1, keepdim=True), "std|div"),
    "detached": (lambda s, a, b: a / (b.detach().abs().sum(1, keepdim=True) + 1), "detach"),
    "rounded straight through": (lambda s, a, b: Straight.apply(a * 3), "apply"),
    "a cell": (lambda s, a, b: s.cell(a, b), "GRUCell"),
    "bilinear": (lambda s, a, b: s.pair(a, b), "Bilinear"),
    "a block in one piece": (lambda s, a, b: s.encoder(torch.stack([a, b], 1)).mean(1), "MultiheadAttention"),
    "three operands": (lambda s, a, b: torch.einsum("bi,bi,bi->bi", a, b, a), "einsum"),
    "between two by a gate": (lambda s, a, b: torch.lerp(a, b, torch.sigmoid(a)), "lerp"),
    "a bound that is computed": (lambda s, a, b: torch.clamp(a, min=b), "clamp"),
    "distances": (lambda s, a, b: torch.cdist(a.unsqueeze(1), b.unsqueeze(1)).squeeze(1).expand(-1, 6), "cdist"),
    "sampled at computed places": (
        lambda s, a, b: F.grid_sample(
            a.view(-1, 1, 2, 3), torch.tanh(torch.stack([b, a], -1).view(-1, 2, 3, 2)), align_corners=False
        ).flatten(1),
        "grid_sample",
    ),
    "added at places": (
        lambda s, a, b: torch.zeros_like(a).index_add(1, torch.tensor([0, 0, 1, 1, 2, 5]), a),
        "index_add",
    ),
    "the absolute value": (lambda s, a, b: a.abs(), "abs"),
    "a waveform": (lambda s, a, b: torch.fft.rfft(a).abs()[:, [0, 1, 2, 3, 0, 1]], "fft"),
}


def member(way: Way) -> tuple[nn.Module, Tensor]:
    """A model in float64, and two samples."""
    torch.manual_seed(0)
    return Member(way).double().eval(), torch.randn(2, 5, dtype=torch.float64)
