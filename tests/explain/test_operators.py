"""A slice of torch's corpus: each heatmap is right or refused; ``python -m tests.corpus --heatmaps`` is all of it."""

from __future__ import annotations

import pytest
import torch

# Every fourth operator is tried, and these; all of them take some minutes.
EXPLAINED = {"add", "mean", "sum", "max", "nn.functional.conv2d", "where", "cumsum", "div", "amax", "matmul", "topk"}
REFUSED = {"exp", "std", "sqrt", "prod", "norm", "cumprod", "logsumexp"}

corpus = pytest.importorskip("torch.testing._internal.common_methods_invocations")
heatmaps = pytest.importorskip("tests.corpus.heatmaps")


@pytest.mark.filterwarnings("ignore")
def test_each_operator_of_torch_is_explained_rightly_or_refused() -> None:
    torch.manual_seed(0)
    judged = [
        result
        for position, operator in enumerate(corpus.op_db)
        if position % 4 == 0 or operator.name in EXPLAINED | REFUSED
        for result in heatmaps.explained(operator)
    ]
    assert not [result for result in judged if result.outcome == "wrong"]
    refused = {result.operator for result in judged if result.outcome == "refused"}
    right = {result.operator for result in judged if result.outcome != "refused"}
    assert right >= EXPLAINED, EXPLAINED - right
    assert refused >= REFUSED, REFUSED - refused
