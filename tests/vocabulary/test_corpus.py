"""A slice of torch's own samples, in every spelling; ``python -m tests.corpus`` takes all of them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.judge import judge
from tests.corpus.known import reason, reasons

# Each stands for a kind: a sum, a product, a reduction, a movement, a split, a write, a normalisation, a question.
NAMES = (
    *("add", "mul", "__rsub__", "matmul", "addmm", "einsum", "mean", "sum", "cumsum", "permute", "reshape", "expand"),
    *("split", "hsplit", "unbind", "cat", "softmax", "nn.functional.batch_norm", "nn.functional.instance_norm"),
    *("nn.functional.relu", "nn.functional.leaky_relu", "nn.functional.linear", "nn.functional.avg_pool2d", "clamp"),
    *("eq", "to", "type_as", "uniform", "as_strided", "argwhere", "addcmul", "lerp", "view_copy"),
)


def _operators(name: str) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return [op for op in op_db if op.name == name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_no_spelling_is_wrong(name: str) -> None:
    pytest.importorskip("expecttest")
    results = [result for op in _operators(name)[:2] for result in judge(op, 1)]
    faults = [result for result in results if reason(result) is None]
    assert not faults, "\n".join(f"{f.outcome}: {f.operator} ({f.spelling}): {f.detail}" for f in faults)


def test_the_page_gives_the_reasons_that_the_code_accepts() -> None:
    page = (Path(__file__).parents[2] / "docs/operators.md").read_text(encoding="utf-8")
    told = {why for _, why in re.findall(r"^\| `([^`]+)` \| \d+ \| (.+) \|$", page, re.MULTILINE)}
    assert told and told <= reasons()
