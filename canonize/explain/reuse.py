"""Modules that are called more than once under a rule: the rule sees the last call alone, and says nothing."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from canonize.explain.libraries import require


@dataclass
class Calls:
    """How often each module with a rule was called."""

    counts: Counter[str] = field(default_factory=Counter)

    def notes(self, batches: int) -> tuple[str, ...]:
        """One line for all of the modules that were called more than once a batch."""
        reused = [name for name, count in self.counts.items() if count > batches]
        if not reused:
            return ()
        shown = ", ".join(reused[:3]) + (f" and {len(reused) - 3} more" if len(reused) > 3 else "")
        return (
            f"called more than once, so that their rules see the last call alone: {shown}; canonize the model first",
        )


@contextlib.contextmanager
def counted_calls(model: nn.Module, composite: Any) -> Iterator[Calls]:
    """Count the calls of modules whose rule looks at the values that pass: all but Pass and those of ReLUs."""
    calls, handles = Calls(), []
    rules = require("zennit.rules")
    ignored = (rules.Pass, rules.ReLUGuidedBackprop, rules.ReLUDeconvNet)
    context: dict[str, Any] = {}
    for name, module in model.named_modules():
        hook = composite.mapping(context, name, module)
        if hook is not None and not isinstance(hook, ignored):
            handles.append(module.register_forward_pre_hook(_counter(calls.counts, name)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _counter(counts: Counter[str], name: str) -> Any:
    def count(module: nn.Module, inputs: Any) -> None:
        counts[name] += 1

    return count
