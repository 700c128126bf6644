"""torch's own corpus of operators, each between two linear layers: every heatmap is right, or refused by name.

Right is: relevance conserves its sum; or it is what follows from the piecewise linear function itself, input times
gradient over output (which biases and constants take their share of); or nothing of the output depends on the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import canonize
from canonize.errors import ExplainError
from canonize.explain import attribute

# The affine of a normalisation is in the layer behind, whose bias takes its share; nothing is linear then.
ACCOUNTED = {"nn.functional.group_norm", "nn.functional.instance_norm", "nn.functional.layer_norm", "softmax"}
ACCOUNTED |= {"masked.softmax", "masked.softmin", "nn.functional.softmin"}


@dataclass(frozen=True)
class Judged:
    """What became of one sample: ``conserves``, ``linear``, ``constant``, ``accounted``, ``refused`` or ``wrong``."""

    operator: str
    outcome: str
    detail: str = ""


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


def models(operator: Any, count: int) -> Iterator[tuple[nn.Module, Tensor]]:
    """An operator with its first samples, where it makes a floating tensor of a small one."""
    if torch.float64 not in operator.dtypes:
        return
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
                yield model, x
        except Exception:  # an operator that takes something else
            pass
        if tried == count:
            return


def explained(operator: Any, count: int = 1) -> Iterator[Judged]:
    """Judge the heatmap of each sample that can be canonized."""
    name = operator.name
    for model, x in models(operator, count):
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
            said = "no rule" in str(error) and not canonical.report.canonical
            yield Judged(name, "refused" if said else "wrong", str(error))
            continue
        assert isinstance(found.relevance, Tensor)
        if any("no rule is known" in finding.what for finding in canonical.report.findings):
            yield Judged(name, "wrong", "explained though the model is said to hold what has no rule")
        elif name in ACCOUNTED:
            yield Judged(name, "accounted" if abs(found.ledger.unaccounted) < 1e-9 else "wrong", "its ledger")
        else:
            yield Judged(name, *_right(model, x, found.relevance))


def _right(model: nn.Module, x: Tensor, relevance: Tensor) -> tuple[str, str]:
    """How a heatmap is right, and what it sums to."""
    total = float(relevance.sum())
    given = x.clone().requires_grad_()
    output = model(given)[0, 1]
    gradient = torch.autograd.grad(output, given, allow_unused=True)[0] if output.requires_grad else None
    if gradient is None or not bool(gradient.any()):
        return "wrong" if bool(relevance.any()) else "constant", f"sum {total}"
    if abs(total - 1) < 1e-6:
        return "conserves", f"sum {total}"
    wanted = (given * gradient / output).detach()
    close = bool((wanted - relevance).abs().max() < 1e-6 * max(1.0, float(wanted.abs().max())))
    return "linear" if close else "wrong", f"sum {total}"
