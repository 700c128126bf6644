"""What a module may carry beside its ``forward``, and no tracer sees."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from canonize.capture.baking import is_weight_hook
from canonize.capture.unlifted import is_checking
from canonize.errors import CaptureError
from canonize.twins.module_tree import named_modules


def refuse_what_a_trace_would_drop(model: nn.Module) -> None:
    """Raise where a module carries something that is not in its ``forward``.

    Raises
    ------
    CaptureError
        For forward hooks and backward hooks: they run around ``forward``, where no tracer sees them. For lazy
        modules, which have no parameters yet.
    """
    for name, module in named_modules(model):
        where = name or type(model).__name__
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise CaptureError(
                "it is a lazy module without parameters yet", where, "Run the model once on an input, then canonize it."
            )
        for kind, hooks in (
            ("forward pre-hook", module._forward_pre_hooks),
            ("forward hook", module._forward_hooks),
            ("backward hook", module._backward_hooks),
            ("backward pre-hook", module._backward_pre_hooks),
        ):
            for hook in hooks.values():
                if is_weight_hook(hook):  # bake_weights evaluates it
                    continue
                if _only_watches(hook) or is_checking(hook):
                    continue
                raise CaptureError(
                    f"it carries a {kind} ({_describe(hook)}), which a trace would silently drop",
                    where,
                    "Remove the hook (its handle has .remove()) and register it on the canonical model instead.",
                )


def _only_watches(hook: Any) -> bool:
    """Whether a hook only collects what a library's own forward asks for; transformers hangs such on every model."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"


def _describe(hook: Any) -> str:
    return getattr(hook, "__qualname__", None) or type(hook).__name__
