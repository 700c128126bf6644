"""nn.Module -> torch.fx graph, without touching the module.

Two tracers. ``torch.fx`` is fast and keeps every size free; ``torch.export`` is behind it, for models whose code does
what no proxy can. Which one was used shows in the report, and nowhere else: both give a graph over the same eval-mode
copy of the model, and ``canonize.normalize`` gives both the same vocabulary.
"""

from __future__ import annotations

from canonize.capture.captured import Captured
from canonize.capture.leaves import is_leaf
from canonize.capture.model_hooks import refuse_what_a_trace_would_drop
from canonize.capture.tracers import capture
from canonize.twins.copying import eval_copy

__all__ = ["Captured", "capture", "eval_copy", "is_leaf", "refuse_what_a_trace_would_drop"]
