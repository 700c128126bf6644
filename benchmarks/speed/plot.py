"""The figures as a picture."""

from __future__ import annotations

from pathlib import Path

from benchmarks.speed.row import Row


def write_plot(rows: list[Row], path: Path) -> None:
    """Write the picture."""
