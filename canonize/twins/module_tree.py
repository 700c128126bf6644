"""What a model is made of, read without calling any of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


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


def put(root: nn.Module, name: str, part: Any) -> None:
    """Put a layer, a parameter or a tensor under a dotted name; the containers on the way are made.

    Raises
    ------
    TypeError
        If the part is none of these.
    """
    *above, last = name.split(".")
    owner = root
    for step in above:
        child = owner._modules.get(step)
        if child is None:
            child = owner._modules[step] = nn.Module()
            child.__dict__["training"] = False
        owner = child
    if isinstance(part, nn.Module):
        owner._modules[last] = part
    elif isinstance(part, nn.Parameter):
        owner.register_parameter(last, part)
    elif isinstance(part, Tensor):
        owner.register_buffer(last, part)
    else:
        raise TypeError(f"{name} is a {type(part).__name__}, neither a layer nor a tensor")


def nan_in(root: nn.Module) -> tuple[str, int, int] | None:
    """The first tensor of a model that holds NaN: its qualified name, how many there are, of how many numbers."""
    for path, module in named_modules(root):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_floating_point():
                count = int(torch.isnan(tensor).sum())
                if count:
                    return f"{path}.{name}".strip("."), count, tensor.numel()
    return None
