"""A call, resolved: torch's operator, its arguments by name, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from canonize.vocabulary.schemas import Traits, traits_of
from canonize.vocabulary.table import NOTHING, ROWS, Row

# What a normalisation counts in.
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Operation:
    """What a call is.

    Attributes
    ----------
    name : str
        Of torch's own operator, without the underscore of the version that works in place: ``add``, ``softmax``.
    bound : dict
        The arguments that were given, by the names of the operator's schema (``self`` is called ``input``); defaults
        are left out. Empty where the call fits no schema.
    overload : OpOverload, optional
        The ATen operator; ``None`` for what Python computes itself (``F.interpolate``, ``x.shape``).
    in_place : bool
        Whether it is the spelling that overwrites its first argument (``add_``, ``+=``, ``inplace=True``).
    """

    name: str
    bound: dict[str, Any]
    overload: torch._ops.OpOverload | None = None
    in_place: bool = False

    @property
    def row(self) -> Row:
        """What the table says of the operator."""
        return ROWS.get(self.name, NOTHING)

    @property
    def traits(self) -> Traits:
        """What torch's schema and tags say of the operator."""
        return traits_of(self.overload)

    @property
    def is_view(self) -> bool:
        """Whether the result may share its memory with an argument: as the schema says, or as is known."""
        return self.traits.is_view or self.row.hands_back

    @property
    def writes(self) -> tuple[str, ...]:
        """Names of the arguments that the call overwrites."""
        if self.row.statistics:  # torch's schemas keep silent about it
            return tuple(name for name in STATISTICS if self.counts and self.bound.get(name) is not None)
        written = dict.fromkeys(name for name in self.traits.writes if self.bound.get(name) is not None)
        if self.in_place and not written:
            written = dict.fromkeys(list(self.bound)[:1])
        if self.row.writes_if and self.bound.get(self.row.writes_if[0]) is not None:
            written[self.row.writes_if[1]] = None
        if self.bound.get("out") is not None:
            written["out"] = None
        return tuple(written)

    @property
    def counts(self) -> bool:
        """Whether it normalises by the batch's own statistics, and only keeps count in the running ones."""
        return self.row.statistics and bool(self.get("training") or self.get("use_input_stats"))

    @property
    def pointwise(self) -> bool:
        """Whether every element of the result follows from the elements at its place."""
        return self.traits.pointwise

    @property
    def reduction(self) -> bool:
        """Whether it makes one element out of many."""
        return self.traits.reduction

    @property
    def random(self) -> bool:
        """Whether it draws random numbers: dropout only where it trains, attention where it drops."""
        if not self.traits.random:
            return False
        if self.row.attends:
            return bool(self.get("dropout_p"))
        return bool(self.get("training", True)) and self.get("p") != 0

    @property
    def asks_size(self) -> bool:
        """Whether it asks a tensor for its size, dtype or device, and for no value."""
        return self.row.asks

    @property
    def moves(self) -> bool:
        """Whether the result's elements are those of the first argument, elsewhere or as often as needed."""
        # x.view(torch.int32) reads the same memory as other numbers.
        return self.row.moves and not (self.name == "view" and "dtype" in self.bound)

    @property
    def copies(self) -> bool:
        """Whether every element of the result is an argument's, or a constant beside them."""
        row = self.row
        return self.moves or row.splits or row.gathers or row.pads or row.drops or row.idle

    @property
    def linear_in(self) -> tuple[str, ...]:
        """Names of the arguments in each of which, the others fixed, the result is linear."""
        return self.row.linear_in

    def get(self, name: str, default: Any = None) -> Any:
        """An argument by name, or its default: the schema's, else the one given here."""
        if name in self.bound:
            return self.bound[name]
        return self.traits.defaults.get(name, default)
