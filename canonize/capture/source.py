"""Lines of the code that is captured, for messages."""

from __future__ import annotations

import os
import sys
from types import FrameType

# Whose frames are no part of a model's code.
_BENEATH = ("torch", "canonize", "contextlib", "functools", "importlib", "inspect", "builtins")


def current_line() -> str | None:
    """The line of the model's own code that is being executed, as ``model.py:12``; None where there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_own(frame):
            return told(frame.f_code.co_filename, frame.f_lineno)
        if frame.f_code.co_name == "capture" and frame.f_globals.get("__name__") == "canonize.capture.tracers":
            return None  # whoever called canonize
        frame = frame.f_back
    return None


def is_own(frame: FrameType) -> bool:
    """Whether a frame runs a model's code, not torch's or ours."""
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package not in _BENEATH and not frame.f_code.co_filename.startswith("<")


def told(file: str, line: int) -> str:
    """A line as messages name it: without the folders, which are those of one machine."""
    return f"{os.path.basename(file)}:{line}"
