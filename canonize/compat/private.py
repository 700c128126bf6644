"""torch's private names that canonize reads, each with the versions that have it and what is done without it.

Public ways are used wherever there is one. Whatever stands here may be gone in torch's next version: the newest one is
tried by the scheduled job of the test workflow.
"""

from __future__ import annotations

from typing import Any

import torch


def guards_of(program: Any) -> list[str] | None:
    """Conditions on the sizes of its inputs that an exported program holds under, as torch writes them in Python.

    ``ExportedProgram._guards_code``: torch 2.9 to 2.15 at least. The public way, running ``program.module()``, checks
    them and cannot tell them. Without it (None) a graph is held to the sizes that it was captured with.
    """
    found = getattr(program, "_guards_code", None)
    return None if found is None else [str(line) for line in found]


def has_tag(overload: Any, name: str) -> bool:
    """Whether torch tags an operator so.

    ``torch.Tag`` is public; its members are not the same in all versions (``reduction`` and ``out`` are later than
    torch 2.9, where nothing is tagged so).
    """
    tag = getattr(torch.Tag, name, None)
    return tag is not None and tag in overload.tags
