"""What torch itself says of its operators: names of arguments, views and writes, tags."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch

from canonize.compat.private import has_kernel, has_tag

# numpy's words, which torch takes everywhere.
NUMPY = {"axis": "dim", "axes": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input", "x2": "other"}


@dataclass(frozen=True)
class Parameter:
    """One argument of a schema.

    Attributes
    ----------
    name : str
    kind : str
        ``Tensor``, ``int``, ``float``, ``bool``, ``number``, ``str`` or another type of TorchScript.
    many : bool
        Whether it takes a list.
    optional : bool
        Whether it takes ``None``.
    single : bool
        Whether a list of it may be given as one value.
    keyword : bool
        Whether it is only taken by name.
    required : bool
    """

    name: str
    kind: str
    many: bool
    optional: bool
    single: bool
    keyword: bool
    required: bool


@dataclass(frozen=True)
class Traits:
    """What a schema and its tags say.

    Attributes
    ----------
    writes : tuple of str
        Arguments that are overwritten.
    is_view : bool
        Whether a result may lie in the memory of an argument that is not overwritten.
    pointwise, reduction, random : bool
    composite : bool
        Whether torch computes it by calling other operators.
    defaults : dict
    """

    writes: tuple[str, ...] = ()
    is_view: bool = False
    pointwise: bool = False
    reduction: bool = False
    random: bool = False
    composite: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)


UNKNOWN = Traits()


def traits_of(overload: torch._ops.OpOverload | None) -> Traits:
    """What torch says of an operator."""
    return UNKNOWN if overload is None else _traits(overload)


@functools.cache
def _traits(overload: torch._ops.OpOverload) -> Traits:
    schema = overload._schema
    written = tuple(_name(a.name) for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    return Traits(
        writes=written,
        is_view=views,
        pointwise=has_tag(overload, "pointwise"),
        reduction=has_tag(overload, "reduction"),
        random=has_tag(overload, "nondeterministic_seeded"),
        composite=has_kernel(overload.name(), "CompositeImplicitAutograd"),
        defaults={_name(a.name): a.default_value for a in schema.arguments if a.has_default_value()},
    )


@functools.cache
def parameters(overload: torch._ops.OpOverload) -> tuple[Parameter, ...]:
    """The arguments of an operator, in order."""
    found = []
    for argument in overload._schema.arguments:
        kind = str(argument.real_type)
        optional, many = kind.startswith("Optional["), False
        kind = kind.removeprefix("Optional[").removesuffix("]") if optional else kind
        if kind.startswith("List["):
            many, kind = True, kind.removeprefix("List[").removesuffix("]").removeprefix("Optional[").removesuffix("]")
        kind = {"SymInt": "int", "SymBool": "bool", "SymFloat": "float", "Scalar": "number"}.get(kind, kind)
        found.append(
            Parameter(
                name=_name(argument.name),
                kind=kind,
                many=many,
                optional=optional,
                single=argument.N is not None,  # type: ignore[attr-defined]
                keyword=argument.kwarg_only,
                required=not argument.has_default_value(),
            )
        )
    return tuple(found)


@functools.cache
def overloads(packet: torch._ops.OpOverloadPacket) -> tuple[torch._ops.OpOverload, ...]:
    """The versions of an operator that compute on tensors, those that name dimensions by words left out."""
    found = []
    for name in packet.overloads():
        overload = getattr(packet, name)
        types = [str(argument.type) for argument in overload._schema.arguments]
        tensors = any("Tensor" in kind for kind in (*types, *(str(r.type) for r in overload._schema.returns)))
        if tensors and has_kernel(overload.name()) and not any("Dimname" in kind for kind in types):
            found.append(overload)
    # Versions with ``out=`` come last: they take what others take, and more.
    return tuple(sorted(found, key=lambda one: any(a.is_out for a in one._schema.arguments)))


def _name(name: str) -> str:
    return "input" if name == "self" else name
