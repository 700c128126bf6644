"""The rows as a page of the documentation."""

from __future__ import annotations

from pathlib import Path

from benchmarks.coverage.measure import Row


def write(rows: list[Row], path: Path) -> None:
    """Write the table."""
    path.write_text(str(len(rows)))
