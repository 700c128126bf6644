"""The parts of the benchmark, and which models each of them measures."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.speed.row import Row, Settings
from benchmarks.speed.subjects import SUBJECTS

Measure = Callable[[str, Settings], list[Row]]


@dataclass(frozen=True)
class Part:
    """One part: its name, its module, and its subjects where they are no models."""

    name: str
    module: str
    own: tuple[str, ...] = ()

    @property
    def measure(self) -> Measure:
        """What measures one subject; imported only when the part is asked for."""
        found: Measure = importlib.import_module(f"benchmarks.speed.{self.module}").measure
        return found


PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part("convert", "convert"),
        Part("verify", "verify"),
        Part("forward", "forward"),
        Part("compile", "compiled"),
        Part("onnx", "runtime"),
        Part("memory", "memory"),
        Part("growth", "growth", own=("depth", "width")),
    )
}


def units(parts: list[str], models: list[str]) -> list[tuple[Part, str]]:
    """What is measured and written at one go: a part on a subject."""
    return [(part, it) for part in map(PARTS.__getitem__, parts) for it in part.own or models or SUBJECTS]
