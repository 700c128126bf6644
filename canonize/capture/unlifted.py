"""Modules that ``ExportedProgram.module()`` makes: graphs that check their inputs in hooks, and in a module."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.capture.captured import GUARD

# How the checks of sizes begin that torch.export writes.
_TOLD = "Guard failed: "


def is_checking(hook: Any) -> bool:
    """Whether a hook is torch.export's own, which only looks at the inputs; see `guard_fixed_sizes`."""
    return str(getattr(hook, "__module__", "")).startswith("torch.export.")


def check_in_words(message: Any) -> str | None:
    """A check of torch.export's as one of ours; None for other messages."""
    if not isinstance(message, str) or not message.startswith(_TOLD):
        return None
    return f"{GUARD}: this canonical model holds where {message.removeprefix(_TOLD)}. Export it again for other sizes."


def guard_fixed_sizes(graph: fx.Graph, model: nn.Module) -> None:
    """Check in a captured graph the sizes that an exported program was made for.

    Parameters
    ----------
    graph : fx.Graph
    model : nn.Module
        What it was captured from; nothing is done unless ``ExportedProgram.module()`` has made it.
    """
    if not isinstance(model, fx.GraphModule) or not any(map(is_checking, model._forward_pre_hooks.values())):
        return
    theirs = [node for node in model.graph.nodes if node.op == "placeholder"]
    ours = [node for node in graph.nodes if node.op == "placeholder"]
    behind = next(node for node in reversed(graph.nodes) if node.op == "placeholder").next
    for placeholder, made in zip(ours, theirs, strict=False):
        example: Any = made.meta.get("val")
        for dim, size in enumerate(example.shape if isinstance(example, Tensor) else ()):
            if type(size) is not int:
                continue
            said = f"{GUARD}: this canonical model holds where dimension {dim} of {placeholder.target} is {size}"
            with graph.inserting_before(behind):
                own = graph.call_method("size", (placeholder, dim))
                holds = graph.call_function(operator.eq, (own, size))
                check = graph.call_function(torch._assert, (holds, f"{said}. Export it again for other sizes."))
            for node in (own, holds, check):
                node.meta["path"] = ""
