"""The law for explanations: an operation that relevance comes through and that has no rule is refused by name.

The user may ask for the plain gradient there; the result then says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from canonize.errors import ExplainError
from canonize.graph.relevance import RelevantOperation
from canonize.vocabulary.kinds import Kind, kind_of

UNRULED = ("refuse", "gradient")
GO_ON = "unruled='gradient' (--unruled gradient) takes the plain gradient there"


def check_unruled(unruled: str) -> str:
    """What to do about operations without a rule.

    Raises
    ------
    ExplainError
        If it is no choice.
    """
    if unruled not in UNRULED:
        raise ExplainError(f"there is no choice unruled={unruled!r}", hint=f"Choose from: {', '.join(UNRULED)}")
    return unruled


def advice(operations: Sequence[RelevantOperation]) -> str:
    """What can be done about operations without a rule."""
    modules = [operation.module for operation in operations if operation.module is not None]
    ways: list[str] = []
    if any(kind_of(module) is Kind.CLOSED or "attention" in getattr(module, "target", "") for module in modules):
        ways.append("canonize with forms=['open_attention'] (--form open_attention)")
    if any(module is None for module in (operation.module for operation in operations)):
        ways.append("canonize the whole model, so that each function becomes a module")
    others = [m for m in modules if kind_of(m) is not Kind.CLOSED]
    if others or not ways:
        ways.append("give it a rule of yours: layers={name: rule}")
    return "; or ".join([*ways, GO_ON])


def named(operations: Iterable[RelevantOperation], shown: int = 4) -> str:
    """Operations in a line, those alike together."""
    places: dict[str, list[str]] = {}
    for operation in operations:
        places.setdefault(operation.what, []).append(operation.where)
    parts = []
    for what, where in places.items():
        at = list(dict.fromkeys(name for name in where if name))
        more = f" and {len(at) - shown} more" if len(at) > shown else ""
        several = f"{len(where)} x " if len(where) > 1 else ""
        parts.append(f"{several}{what}" + (f" at {', '.join(at[:shown])}{more}" if at else ""))
    return "; ".join(parts)


def refuse(explainer: str, operations: Sequence[RelevantOperation]) -> ExplainError:
    """What to raise about operations without a rule."""
    first = operations[0]
    return ExplainError(
        f"{explainer} has no rule for {named(operations)}; what it would give behind it is no relevance",
        where=first.where or None,
        hint=advice(operations),
    )


def lawless(operations: Sequence[RelevantOperation]) -> tuple[str, ...]:
    """A note about operations that the plain gradient was taken of."""
    if not operations:
        return ()
    return (f"no rule is known, and the plain gradient was taken: {named(operations)}",)
