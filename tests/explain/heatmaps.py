"""Heatmaps of zennit's rules, and how alike two of them are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zennit.attribution import Gradient
from zennit.core import Composite, Hook

from canonize.nn import Sum


def heatmap(model: nn.Module, composite: Composite, input: Tensor, targets: Tensor) -> Tensor:
    """Relevance of every input value for one output of each sample, by zennit.

    Parameters
    ----------
    model : nn.Module
        Classifier; its hooks are gone again afterwards.
    composite : Composite
        Rules.
    input : Tensor, shape (N, ...)
        Samples.
    targets : Tensor, shape (N,), int64
        Class to explain for each sample. The relevance of its output starts as 1.

    Returns
    -------
    relevance : Tensor, shape (N, ...)
    """
    with Gradient(model=model, composite=composite) as attributor:
        output, relevance = attributor(input, lambda output: F.one_hot(targets, output.shape[1]).to(output))
    assert output.shape[0] == relevance.shape[0]
    assert relevance.isfinite().all()
    assert (relevance.flatten(1).abs().amax(1) > 0).all(), "an empty heatmap proves nothing"
    return torch.as_tensor(relevance).detach()


def difference(got: Tensor, wanted: Tensor) -> float:
    """Largest norm of the difference over the norm of `wanted`, over samples."""
    gap = (got - wanted).detach().flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    return float(gap.max().item())


def cosine(got: Tensor, wanted: Tensor) -> float:
    """Smallest cosine similarity over samples."""
    return F.cosine_similarity(got.flatten(1), wanted.flatten(1)).min().item()


class SumNorm(Hook):
    """The rule of zennit's ``Norm`` for a module that adds several arguments: each gets relevance by its share.

    ``zennit.rules.Norm`` knows modules of one argument only.

    Parameters
    ----------
    stabilizer : float
        Added to the sum, away from zero.
    """

    def __init__(self, stabilizer: float = 1e-6) -> None:
        super().__init__()
        self.stabilizer = stabilizer

    def copy(self) -> SumNorm:
        return SumNorm(self.stabilizer)

    def forward(self, module: Sum, input: tuple[Tensor, ...], output: Tensor) -> None:
        self.stored_tensors["input"] = input
        self.stored_tensors["output"] = output

    def backward(self, module: Sum, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        output = self.stored_tensors["output"].detach()
        stable = output + self.stabilizer * torch.where(output < 0, -1.0, 1.0).to(output)
        shares = [
            w * part.detach() / stable for w, part in zip(module.weights, self.stored_tensors["input"], strict=True)
        ]
        return tuple(share * grad_output[0] for share in shares)
