"""One figure of the table, and how to ask for it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What every part is asked to keep to.

    Attributes
    ----------
    rounds : int
        Of each comparison; in each round every contestant runs once.
    seconds : float
        Processor time after which a comparison ends early, once it has run three rounds.
    edge : int
        Of images, in pixels.
    seed : int
        Of weights, statistics and inputs.
    inductor : bool
        Whether ``torch.compile`` is also tried with its code generator, which takes minutes.
    """

    rounds: int = 7
    seconds: float = 15.0
    edge: int = 224
    seed: int = 0
    inductor: bool = True


@dataclass
class Row:
    """canonize against one contestant, in one setting, on one model.

    Attributes
    ----------
    part, subject, case : str
        The part of the benchmark, the model, and the contestant or the setting.
    unit : str
        Of ``canonize`` and ``other``.
    canonize, other : float
        Medians.
    ratio : float
        Median of the rounds' ratios, which is not the ratio of the medians; smaller is better for canonize.
    low, high : float
        Quartiles of the rounds' ratios.
    rounds : int
    mark : float, optional
        What the ratio is to stay at or below.
    note : str
        Why there are no figures, or what else to know about them.
    machine : str
        Where it was measured, in words that hold for any such machine.
    more : dict
        Further figures of the same comparison.
    """

    part: str
    subject: str
    case: str
    unit: str = "ms"
    canonize: float = math.nan
    other: float = math.nan
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    rounds: int = 0
    mark: float | None = None
    note: str = ""
    machine: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """Whether the mark is reached, to the two digits that the table shows; None where there is none."""
        return None if self.mark is None else not math.isnan(self.ratio) and round(self.ratio, 2) <= self.mark

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what was not measured is None."""
        plain = dataclasses.asdict(self)
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Row:
        """The inverse of `to_dict`."""
        numbers = ("canonize", "other", "ratio", "low", "high")
        fields: dict[str, Any] = {k: math.nan if v is None and k in numbers else v for k, v in plain.items()}
        return cls(**fields)


def read(path: Path) -> list[Row]:
    """Rows of an earlier run."""
    return [Row.from_dict(plain) for plain in json.loads(path.read_text())] if path.exists() else []


def write(rows: list[Row], path: Path) -> None:
    """One row a line; an interruption leaves the old file whole."""
    lines = ",\n".join(json.dumps(row.to_dict()) for row in rows)
    passing = path.with_suffix(".part")
    passing.write_text(f"[\n{lines}\n]\n" if rows else "[]\n")
    passing.replace(path)
