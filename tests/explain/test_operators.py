"""torch's own corpus of operators, each between two linear layers: every heatmap is right, or refused by name.

Right is: relevance conserves its sum; or it is what follows from the piecewise linear function itself, input times
gradient over output (which biases and constants take their share of); or nothing of the output depends on the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import canonize
from canonize.errors import ExplainError
from canonize.explain import attribute

corpus = pytest.importorskip("torch.testing._internal.common_methods_invocations")
# The affine of a normalisation is in the layer behind, whose bias takes its share; nothing is linear then.
ACCOUNTED = {"nn.functional.group_norm", "nn.functional.instance_norm", "nn.functional.layer_norm", "softmax"}
ACCOUNTED |= {"masked.softmax", "masked.softmin", "nn.functional.softmin"}

# Every fourth operator is tried, and these; all of them take some minutes.
EXPLAINED = {"add", "mean", "sum", "max", "nn.functional.conv2d", "where", "cumsum", "div", "amax", "matmul"}
REFUSED = {"exp", "std", "sqrt", "prod", "norm", "cumprod", "logsumexp"}


class Between(nn.Module):
    """linear -> operator -> linear, without biases."""

    def __init__(self, operator: Any, sample: Any) -> None:
        super().__init__()
        self.operator, self.sample = operator, sample
        self.first = nn.Linear(5, sample.input.numel(), bias=False)
        self.last: nn.Module = nn.Identity()

    def middle(self, x: Tensor) -> Any:
        value = self.first(x)[0].reshape(self.sample.input.shape)
        found = self.operator.op(value, *self.sample.args, **self.sample.kwargs)
        return found[0] if isinstance(found, tuple | list) else found

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.middle(x).reshape(1, -1))
        return output


def models(count: int) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Operators that give floating tensors for small ones, each with its first samples."""
    for position, operator in enumerate(corpus.op_db):
        if torch.float64 not in operator.dtypes or (position % 4 and operator.name not in EXPLAINED | REFUSED):
            continue
        tried = 0
        for sample in operator.sample_inputs("cpu", torch.float64, requires_grad=False):
            given = sample.input
            usable = isinstance(given, Tensor) and given.is_floating_point() and given.ndim > 0
            if not usable or not 0 < given.numel() < 500:
                continue
            tried += 1
            model, x = Between(operator, sample).double().eval(), torch.randn(1, 5, dtype=torch.float64)
            try:
                with torch.no_grad():
                    value = model.middle(x)
                if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0:
                    model.last = nn.Linear(value.numel(), 3, bias=False).double()
                    yield operator.name, model, x
            except Exception:  # an operator that takes something else
                pass
            if tried == count:
                break


def is_right(model: nn.Module, x: Tensor, relevance: Tensor) -> bool:
    given = x.clone().requires_grad_()
    output = model(given)[0, 1]
    if not output.requires_grad:
        return not bool(relevance.any())
    (gradient,) = torch.autograd.grad(output, given, allow_unused=True)
    if gradient is None or not bool(gradient.any()):
        return not bool(relevance.any())
    wanted = (given * gradient / output).detach()
    close = (wanted - relevance).abs().max() < 1e-6 * max(1.0, float(wanted.abs().max()))
    return bool(close) or abs(float(relevance.sum()) - 1) < 1e-6


@pytest.mark.filterwarnings("ignore")
def test_each_operator_of_torch_is_explained_rightly_or_refused() -> None:
    torch.manual_seed(0)
    wrong: list[str] = []
    explained, refused = set(), set()
    for name, model, x in models(1):
        try:
            canonical = canonize.canonize(model, x, verify=False)
            canonical(x)
        except Exception:  # what canonize refuses; or would, were it not told to prove nothing
            continue
        try:
            found = attribute(canonical, x, 1, method="epsilon", epsilon=1e-13, stabilizer=1e-13)
        except ExplainError as error:
            if "batch of another size" in str(error):  # one sample is not what batches look like to torch.export
                continue
            refused.add(name)
            if "no rule" not in str(error):
                wrong.append(f"{name}: {error}")
            if canonical.report.canonical:
                wrong.append(f"{name} is refused though the model is said to be canonical")
            continue
        explained.add(name)
        assert isinstance(found.relevance, Tensor)
        if any("no rule is known" in finding.what for finding in canonical.report.findings):
            wrong.append(f"{name} is explained though the model is said to hold what has no rule")
        if name in ACCOUNTED:
            assert abs(found.ledger.unaccounted) < 1e-9
        elif not is_right(model, x, found.relevance):
            wrong.append(f"{name} gives {float(found.relevance.sum())}, silently")
    assert not wrong, "\n".join(wrong)
    assert explained >= EXPLAINED, EXPLAINED - explained
    assert refused >= REFUSED, REFUSED - refused
