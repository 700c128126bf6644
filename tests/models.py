"""The zoo of small hard models; its rooms are in ``tests/zoo``."""

from __future__ import annotations

from tests.zoo import (
    absorbing,
    activations,
    blocks,
    concatenation,
    control,
    folding,
    graphs,
    movement,
    parametrised,
    relation_network,
    variants,
)
from tests.zoo.case import Case

ROOMS = (
    folding,
    absorbing,
    movement,
    activations,
    graphs,
    concatenation,
    blocks,
    variants,
    parametrised,
    relation_network,
    control,
)

CASES: tuple[Case, ...] = tuple(case for room in ROOMS for case in room.CASES)

BY_NAME: dict[str, Case] = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "two cases share a name"
