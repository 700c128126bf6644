"""``canonize patterns``: the catalogue."""

from __future__ import annotations

from canonize.commands.common import GOOD
from canonize.forms import FORMS
from canonize.patterns import catalogue


def patterns() -> int:
    """Print the catalogue of patterns, and of optional forms."""
    rows: list[tuple[str, str, str]] = [(pattern.name, pattern.strategy, pattern.summary) for pattern in catalogue()]
    rows += [(form.name, "--form", form.summary) for form in FORMS]
    width, when = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, strategy, summary in rows:
        print(f"{name.ljust(width)}  {strategy.ljust(when)}  {summary}")
    return GOOD
