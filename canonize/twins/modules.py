"""What a model is made of, read without calling any of it."""

from __future__ import annotations

import torch
from torch import nn


def named_modules(root: nn.Module, *, repeated: bool = False) -> list[tuple[str, nn.Module]]:
    """What ``root.named_modules()`` gives, in the same order, in one flat walk.

    torch's own generator hands every module up through every level.

    Parameters
    ----------
    root : nn.Module
    repeated : bool
        Give a module under each of its names, as ``remove_duplicate=False`` does.

    Returns
    -------
    list of (str, nn.Module)
        Qualified names, that of the root empty.
    """
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module]] = [("", root)]
    while waiting:
        name, module = waiting.pop()
        if not repeated:
            if id(module) in seen:
                continue
            seen.add(id(module))
        found.append((name, module))
        if module._modules:
            prefix = f"{name}." if name else ""
            waiting.extend([(prefix + key, child) for key, child in module._modules.items() if child is not None][::-1])
    return found


def class_name(model: nn.Module) -> str:
    """Name of a model's class, which of a scripted model is that of the class that was scripted."""
    return str(model.original_name) if isinstance(model, torch.jit.ScriptModule) else type(model).__name__
