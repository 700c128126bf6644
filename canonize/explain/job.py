"""What is asked for, the same for every batch, and what comes back for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from canonize.errors import ExplainError
from canonize.explain.methods import Method
from canonize.explain.watch import LawWatch


def refuse_class(index: int, classes: int) -> None:
    """Refuse a class that a model does not have.

    Raises
    ------
    ExplainError
    """
    if not 0 <= index < classes:
        raise ExplainError(f"there is no class {index}", hint=f"The model has {classes}, counted from 0")


@dataclass(frozen=True)
class Start:
    """Where relevance starts: what is asked for, and what that means for a batch of outputs."""

    target: Any
    initial: str

    def __post_init__(self) -> None:
        if self.initial not in ("one", "output"):
            raise ExplainError(f"there is no initial relevance {self.initial!r}", hint="Use 'one' or 'output'")

    def of(self, output: Tensor, first: int, total: int) -> tuple[Tensor, list[Tensor]]:
        """Targets of the samples from ``first`` on, of ``total``, and the initial relevances of each."""
        output = output.detach()
        if output.ndim < 2:
            raise ExplainError(
                f"the output has shape {tuple(output.shape)}: there are no classes to choose from",
                hint="Give output=... to pick a tensor of shape (N, classes)",
            )
        target = self._tensor(output, first, total)
        if target.is_floating_point():
            return target, [target.to(output)]
        for extreme in (int(target.min()), int(target.max())) if target.numel() else ():
            refuse_class(extreme, output.shape[1])
        columns = target[:, None] if target.ndim == 1 else target
        return target, [self._one(output, column) for column in columns.unbind(1)]

    def _tensor(self, output: Tensor, first: int, total: int) -> Tensor:
        if self.target is None:
            scores = output.flatten(2).sum(2) if output.ndim > 2 else output
            return scores.argmax(1)
        given = torch.as_tensor(self.target, device=output.device)
        if given.is_floating_point():
            if given.shape != (total, *output.shape[1:]):
                raise ExplainError(
                    f"initial relevance of shape {tuple(given.shape)} does not fit the output",
                    hint=f"It is {(total, *output.shape[1:])}; classes are integers",
                )
        elif given.ndim == 0:
            given = given.expand(total)
        elif given.ndim > 2 or len(given) != total:
            raise ExplainError(
                f"targets of shape {tuple(given.shape)} do not fit {total} samples",
                hint="Give one class, one for each sample, or several for each",
            )
        return given[first : first + len(output)]

    def _one(self, output: Tensor, classes: Tensor) -> Tensor:
        """1, or the output's value, at the class of each sample; elsewhere 0."""
        index = classes.long().view(-1, *[1] * (output.ndim - 1))
        mask = torch.zeros_like(output).scatter_(1, index.expand(-1, 1, *output.shape[2:]), 1)
        return mask if self.initial == "one" else mask * output


@dataclass(frozen=True)
class Job:
    """All that is the same for every batch."""

    model: nn.Module
    method: Method
    settings: dict[str, Any]
    start: Start
    pick: Callable[[Any], Tensor]
    watch: LawWatch | None = None


@dataclass(frozen=True)
class Part:
    """The result for one batch: relevance of each input, or None."""

    relevance: list[Tensor | None]
    output: Tensor
    target: Tensor
    started: float = 0.0


def is_explained(value: Any) -> bool:
    """Whether an input gets relevance: floating tensors do."""
    return isinstance(value, Tensor) and value.is_floating_point()
