"""The ways of spelling a call: Python's operators, methods, attributes, functions and ATen's own operators."""

from __future__ import annotations

import builtins
import functools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from canonize.compat.private import HOMES, has_tag
from canonize.vocabulary.table import ALIASES, ROWS

# Where torch's functions live; ``_VariableFunctions`` holds what torch's own Python functions call.
SPACES: dict[str, Any] = {
    "torch": torch,
    "torch.nn.functional": F,
    "operator": operator,
    **HOMES,
    "torch.linalg": torch.linalg,
    "torch.special": torch.special,
    "torch.fft": torch.fft,
}
IN_PLACE_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    operator.imatmul: operator.matmul,
    operator.ilshift: operator.lshift,
    operator.irshift: operator.rshift,
}
_OPERATORS: dict[str, str] = {
    "truediv": "div",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pos": "positive",
    "invert": "bitwise_not",
    "inv": "bitwise_not",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "not": "logical_not",
    "lshift": "bitwise_left_shift",
    "rshift": "bitwise_right_shift",
}
# Attributes of a tensor that are operators of their own.
_ATTRIBUTES = {"T": "numpy_T", "H": "matrix_H", "mH": "adjoint", "data": "detach"}
# Methods that are casts; ATen has one operator for all.
_CASTS: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "bool": torch.bool,
    "byte": torch.uint8,
    "cdouble": torch.complex128,
    "cfloat": torch.complex64,
    "chalf": torch.complex32,
    "char": torch.int8,
    "double": torch.float64,
    "float": torch.float32,
    "half": torch.float16,
    "int": torch.int32,
    "long": torch.int64,
    "short": torch.int16,
}
_DEVICES = {"cuda": "cuda", "cpu": "cpu", "xpu": "xpu", "ipu": "ipu"}
# Functions of Python whose names are those of other operators.
_OTHERWISE: dict[Any, str] = {F.unfold: "im2col", F.fold: "col2im", F.threshold: "threshold"}
# What Python calls an argument that the schema calls otherwise.
_RENAMED: dict[str, dict[str, str]] = {
    "embedding": {"input": "indices"},
    "embedding_bag": {"input": "indices"},
    "dropout": {"train": "training"},
    "alpha_dropout": {"train": "training"},
    "feature_dropout": {"train": "training"},
    "feature_alpha_dropout": {"train": "training"},
    "split": {"split_size_or_sections": "split_size", "split_sizes": "split_size"},
    "split_with_sizes": {"split_sizes": "split_size"},
    "tensor_split": {"tensor_indices_or_sections": "indices_or_sections", "indices": "indices_or_sections",
                     "sections": "indices_or_sections"},
    "mm": {"mat2": "other"},
    "bmm": {"mat2": "other"},
    "mv": {"vec": "other"},
    "dot": {"tensor": "other"},
    "view": {"size": "shape"},
    "transpose": {"axis0": "dim0", "axis1": "dim1"},
}  # fmt: skip


# What these modules hold, as it is on import: tracers exchange some of it meanwhile.
_HELD: dict[str, dict[str, Any]] = {
    home: {name: getattr(space, name, None) for name in dir(space)}
    for home, space in (*SPACES.items(), ("builtins", builtins), ("math", math))
}


def _home_of(target: Any) -> tuple[str, str]:
    """Where a function is found, under which name; empty where it is not torch's or Python's."""
    name = str(getattr(target, "__name__", ""))
    return next(((home, name) for home, held in _HELD.items() if held.get(name) is target), ("", name))


@dataclass(frozen=True)
class Spelling:
    """One way to spell an operator.

    Attributes
    ----------
    name : str
        Of the operator.
    packet : OpOverloadPacket, optional
        ATen's, whose schemas bind the arguments; ``None`` for what Python computes itself.
    function : callable, optional
        What Python calls, where its own signature binds the arguments.
    overload : OpOverload, optional
        Where the call names it.
    in_place : bool
    swapped : bool
        Whether the operands come in the other order (``__rsub__``).
    preset : mapping
        Arguments that the name of a method stands for (``half``).
    renamed : mapping
        Names of arguments, as given and as the operator has them.
    """

    name: str
    packet: Any = None
    function: Any = None
    overload: Any = None
    in_place: bool = False
    swapped: bool = False
    preset: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)


def aten(name: str) -> Any:
    """ATen's operator of a name; ``None`` where there is none."""
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    return packet if isinstance(packet, torch._ops.OpOverloadPacket) else None


def common(name: str) -> str:
    """The name of an operator, by whichever of its names; one that copies instead of giving a view has the view's."""
    return ALIASES.get(name, name.removesuffix("_copy") if name not in ROWS and _copies_a_view(name) else name)


def _copies_a_view(name: str) -> bool:
    packet = aten(name) if name.endswith("_copy") else None
    return packet is not None and any(has_tag(getattr(packet, one), "view_copy") for one in packet.overloads())


@functools.cache
def of_method(name: str) -> Spelling | None:
    """A method of tensors."""
    if name in _CASTS:
        return Spelling("to", aten("to"), preset={"dtype": _CASTS[name]})
    if name in _DEVICES:
        return Spelling("to", aten("to"), preset={"device": _DEVICES[name]})
    if name.startswith("__") and name.endswith("__"):
        return _of_magic(name[2:-2])
    if not hasattr(torch.Tensor, name):
        return None
    method = getattr(torch.Tensor, name)
    python = method if type(method).__name__ == "function" else None
    return _named(name, python)


@functools.cache
def of_attribute(name: str) -> Spelling | None:
    """An attribute of tensors, read by ``getattr``."""
    name = _ATTRIBUTES.get(name, name)
    return Spelling(name, aten(name))


def of_function(target: Any) -> Spelling | None:
    """A function, whichever module it is taken from; ``None`` where it is not torch's."""
    try:
        return _of_function(target)
    except TypeError:  # no hash
        return None


@functools.cache
def _of_function(target: Any) -> Spelling | None:
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        return _of_aten(name, target) if namespace in ("aten", "prims") else None
    if isinstance(target, torch._ops.OpOverloadPacket):
        namespace, _, name = target._qualified_op_name.partition("::")
        return _of_aten(name, None) if namespace in ("aten", "prims") else None
    if target in IN_PLACE_OPERATORS:
        pure = of_function(IN_PLACE_OPERATORS[target])
        assert pure is not None
        return Spelling(pure.name, pure.packet, in_place=True, renamed=pure.renamed)
    home, name = _home_of(target)
    if home == "operator":
        return _of_operator(name.strip("_"))
    if target in _OTHERWISE:
        return Spelling(_OTHERWISE[target], aten(_OTHERWISE[target]), target)
    if home in ("builtins", "math"):
        return Spelling(common(name), None)
    if home:
        return _named(name, target if type(target).__name__ == "function" else None)
    if getattr(torch.Tensor, name, None) is target:
        return of_method(name)
    found = common(name)
    if found in ROWS and ROWS[found].drops:  # of libraries of models: torchvision's stochastic_depth, timm's drop_path
        return Spelling(found, None, target)
    return None


def _of_aten(name: str, overload: Any) -> Spelling:
    packet = aten(name)
    own = name.removesuffix("_") if not name.endswith("__") and name != "_" else name
    if own.startswith("__") and own.endswith("__"):
        inner = own.strip("_")
        pure = inner[1:] if inner.startswith("i") and inner[1:] in ("and", "or", "xor", "lshift", "rshift") else inner
        found = "getitem" if pure == "getitem" else _OPERATORS.get(pure, own)
        return Spelling(found, packet, overload=overload, in_place=pure != inner, renamed=_RENAMED.get(found, {}))
    own = common(own)
    return Spelling(own, packet, overload=overload, in_place=name.endswith("_"), renamed=_RENAMED.get(own, {}))


def _of_operator(name: str) -> Spelling:
    if name in ("getitem", "setitem"):
        places = {"a": "input", "b": "index", "c": "value"}
        return Spelling(name, None, getattr(operator, name), in_place=name == "setitem", renamed=places)
    found = common(_OPERATORS.get(name, name))
    return Spelling(found, aten(found), renamed=_RENAMED.get(found, {}))


def _of_magic(name: str) -> Spelling | None:
    """``__add__`` and its kin."""
    if name in ("getitem", "setitem", "len"):
        return _of_operator(name) if name != "len" else Spelling("len", None)
    target = getattr(operator, f"__{name}__", None)
    if target in IN_PLACE_OPERATORS:
        return of_function(IN_PLACE_OPERATORS[target] if target is None else target)
    if target is not None:
        return _of_operator(target.__name__.strip("_"))
    if name.startswith("r") and hasattr(operator, f"__{name[1:]}__"):
        pure = _of_operator(name[1:])
        return Spelling(pure.name, pure.packet, swapped=True, renamed=pure.renamed)
    if name == "rdiv":
        return Spelling("div", aten("div"), swapped=True)
    return None


def _named(name: str, python: Any) -> Spelling:
    """A function or method of torch by its name."""
    in_place = name.endswith("_") and not name.endswith("__")
    own = common(name.removesuffix("_") if in_place else name)
    renamed = dict(_RENAMED.get(own, {}))
    packet = aten(name) or aten(own)
    if python is not None:
        first = next(iter(_parameters(python)), "input")
        if first in ("self", "tensor"):
            renamed[first] = "input"
    return Spelling(own, packet, python, in_place=in_place, renamed=renamed)


def _parameters(function: Any) -> list[str]:
    from canonize.vocabulary.binding import signature

    known = signature(function)
    return list(known.parameters) if known is not None else []
