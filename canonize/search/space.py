"""What is searched: names of parameters, and what each may be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canonize.errors import InputError
from canonize.evaluate.experiment import CHOICES, parse_canonization

GROUPS = ("low", "middle", "high", "classifier")
RULES = ("gamma", "epsilon", "alpha-beta", "z-plus")
FRONTS = ("group", "flat", "z-box")
GAMMAS = (0.0, 0.1, 0.25, 0.5, 1.0, 10.0)


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A number between two others, evenly or by its logarithm."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Space:
    """A search space.

    Attributes
    ----------
    parameters : dict of str to Choice or Range
        ``canonization``: the canonical form, as `canonize.evaluate.experiment.Experiment` spells it (strategy, and
        which patterns). ``rule.GROUP``: ``gamma`` (by default), ``epsilon``, ``alpha-beta`` or ``z-plus``, where GROUP
        is ``low``, ``middle``, ``high`` (thirds of the convolutions) or ``classifier`` (dense layers). ``gamma.GROUP``,
        ``epsilon.GROUP``, ``alpha.GROUP`` (beta is alpha - 1): of that rule, asked for where the rule is chosen.
        ``front``: ``group``, or ``flat`` or ``z-box`` in the first layers. ``threshold``, ``gate``, ``sum``, ``pool``,
        ...: rules of everything else, as `canonize.explain.Choices` has them.
    groups : mapping of str to tuple of str, optional
        Groups of one's own in place of those four: names, glob patterns or places of layers, as
        `canonize.explain.grouping.select_layers` takes them (``{"early": ("1",), "body": ("2-10",)}``). A layer belongs
        to the first group that names it; one in no group gets the rules of epsilon-plus.
    """

    parameters: Mapping[str, Choice | Range]
    groups: Mapping[str, tuple[str, ...]] | None = None

    def check(self) -> None:
        """Refuse what means nothing.

        Raises
        ------
        InputError
            With what there is instead.
        """
        if not self.parameters:
            raise InputError("the space has no parameters", hint="Give at least one, or use --space papers")
        groups = GROUPS if self.groups is None else tuple(self.groups)
        if self.groups is not None and not all(self.groups.values()):
            raise InputError("a group has no layers", hint='Write {"groups": {"body": ["2-10"]}, "gamma.body": [0, 1]}')
        for name, dimension in self.parameters.items():
            _check_name(name, groups)
            if isinstance(dimension, Range):
                _check_range(name, dimension)
            else:
                _check_values(name, dimension.values)

    @property
    def size(self) -> int | None:
        """Number of configurations of the grid; None if a parameter is a range."""
        counts = [len(d.values) if isinstance(d, Choice) else None for d in self.parameters.values()]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def to_json(self) -> dict[str, Any]:
        """What `read_space` reads."""
        groups = {} if self.groups is None else {"groups": {name: list(of) for name, of in self.groups.items()}}
        return groups | {
            name: list(d.values) if isinstance(d, Choice) else {"low": d.low, "high": d.high, "log": d.log}
            for name, d in self.parameters.items()
        }


def _check_name(name: str, groups: tuple[str, ...]) -> None:
    kind, _, group = name.partition(".")
    if kind in ("rule", "gamma", "epsilon", "alpha") and group in groups:
        return
    if name not in ("canonization", "front", *CHOICES):
        raise InputError(
            f"there is no parameter {name!r}",
            hint=f"canonization, front, {', '.join(CHOICES)}; rule, gamma, epsilon, alpha .{', .'.join(groups)}",
        )


def _check_range(name: str, dimension: Range) -> None:
    if name.partition(".")[0] not in ("gamma", "epsilon", "alpha"):
        raise InputError(f"{name} is no number", hint="List its values")
    if not dimension.low < dimension.high or (dimension.log and dimension.low <= 0):
        raise InputError(
            f"{name} has no values between {dimension.low} and {dimension.high}", hint="A logarithm needs low > 0"
        )


def _check_values(name: str, values: tuple[Any, ...]) -> None:
    kind = name.partition(".")[0]
    if not values:
        raise InputError(f"{name} has no values", hint="List at least one")
    for value in values:
        if name == "canonization":
            parse_canonization(str(value))
        elif kind in ("gamma", "epsilon", "alpha"):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"{value!r} is no number", where=name, hint="List numbers")
        elif (kind == "rule" and value not in RULES) or (kind == "front" and value not in FRONTS):
            raise InputError(
                f"there is no {value!r}", where=name, hint=f"{', '.join(RULES if kind == 'rule' else FRONTS)}"
            )


_GAMMA_GRID: dict[str, Choice | Range] = {f"gamma.{group}": Choice(GAMMAS) for group in GROUPS}
SPACES: dict[str, Space] = {
    # The grid of the papers: 2 x 6^4 = 2592 configurations.
    "papers": Space({"canonization": Choice(("none", "threshold")), **_GAMMA_GRID}),
    # Everything: the canonical form with sub-canonizations, the rule of each group with its parameter, the front.
    "wide": Space(
        {
            "canonization": Choice(("none", "structure", "threshold", "untangle", "threshold-bn_linear")),
            "threshold": Choice(("pass", "gradient")),
            "sum": Choice(("norm", "gradient")),
            "front": Choice(FRONTS),
            **{f"rule.{group}": Choice(("gamma", "epsilon", "alpha-beta")) for group in GROUPS},
            **{f"gamma.{group}": Range(0.01, 10.0, log=True) for group in GROUPS},
            **{f"epsilon.{group}": Range(1e-6, 1.0, log=True) for group in GROUPS},
            **{f"alpha.{group}": Choice((1.0, 2.0)) for group in GROUPS},
        }
    ),
}


def read_space(text: str) -> Space:
    """A space by name, or from a JSON file.

    Parameters
    ----------
    text : str
        ``papers``, ``wide``, or a file such as ``{"canonization": ["none", "threshold"], "gamma.low": {"low": 0.01,
        "high": 10, "log": true}}``, with ``"groups": {"body": ["2-10"]}`` for groups of one's own.

    Raises
    ------
    InputError
        If there is no such space or the file makes no sense.
    """
    if text in SPACES:
        return SPACES[text]
    file = Path(text)
    if not file.is_file():
        raise InputError(f"there is no space {text!r}", hint=f"Use {', '.join(SPACES)}, or a JSON file")
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        groups = told.pop("groups", None)
        if groups is not None:
            groups = {name: (of,) if isinstance(of, str) else tuple(map(str, of)) for name, of in groups.items()}
        space = Space({name: _dimension(value) for name, value in told.items()}, groups)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"is no space ({error!r})",
            where=text,
            hint='Write {"gamma.low": [0, 1], "gamma.high": {"low": 0, "high": 1}}',
        ) from error
    space.check()
    return space


def _dimension(value: Any) -> Choice | Range:
    if isinstance(value, list):
        return Choice(tuple(value))
    return Range(float(value["low"]), float(value["high"]), bool(value.get("log", False)))
