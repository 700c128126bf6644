"""Input shapes as people write them, and random tensors of that shape."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from canonize.errors import InputError
from canonize.inputs.values import Inputs


@dataclass(frozen=True)
class Shape:
    """An input as it is written on a command line: ``1x3x224x224``, ``x:1,3,224,224``, ``ids:1x16:int64``."""

    dims: tuple[int, ...]
    name: str | None = None
    dtype: torch.dtype | None = None


_SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<dims>\d+(?:[x,]\d+)*)(?::(?P<dtype>[a-z]+\d*))?")


def parse_shape(text: str) -> Shape:
    """Read one input shape.

    Parameters
    ----------
    text : str
        ``[NAME:]DIMS[:DTYPE]``, with the dimensions parted by ``x`` or by commas.

    Raises
    ------
    InputError
        If the text is no such thing, or a dimension is zero.
    """
    match = _SHAPE.fullmatch(text.strip().replace(" ", ""))
    dims = tuple(int(d) for d in re.split("[x,]", match["dims"])) if match else ()
    dtype = getattr(torch, match["dtype"], None) if match and match["dtype"] else None
    known = match is not None and (match["dtype"] is None or isinstance(dtype, torch.dtype))
    if match is None or not known or 0 in dims:
        raise InputError(
            f"{text!r} is not an input shape", hint="Write it as 1x3x224x224, x:1,3,224,224 or ids:1x16:int64"
        )
    return Shape(dims, match["name"], dtype)


def random_inputs(
    shapes: str | Shape | Sequence[str | Shape],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    below: int = 2,
) -> Inputs:
    """Random inputs of given shapes: standard normal where floating, uniform in ``[0, below)`` where integer.

    Shapes with a name become keyword arguments. `dtype` is for shapes that name none. The global random state is
    neither read nor changed.
    """
    listed = [shapes] if isinstance(shapes, (str, Shape)) else list(shapes)
    generator = torch.Generator().manual_seed(seed)
    args: list[Tensor] = []
    kwargs: dict[str, Any] = {}
    for shape in (parse_shape(s) if isinstance(s, str) else s for s in listed):
        value = _random_tensor(shape.dims, shape.dtype or dtype, generator, below).to(device)
        if shape.name is None:
            args.append(value)
        else:
            kwargs[shape.name] = value
    return Inputs(tuple(args), kwargs)


def _random_tensor(dims: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, below: int) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        # Drawn in float32 whatever the type asked for, so that the same seed gives the same picture in each.
        drawn = torch.complex64 if dtype.is_complex else torch.float32
        return torch.randn(dims, generator=generator, dtype=drawn).to(dtype)
    return torch.randint(below, dims, generator=generator).to(dtype)
