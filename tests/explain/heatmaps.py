"""Heatmaps of zennit's rules, and how alike two of them are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zennit.attribution import Gradient
from zennit.core import Composite


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
