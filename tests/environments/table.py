"""A row for each environment, of what `check` printed there: ``python -m tests.environments.table FILE.jsonl ...``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

COLUMNS = ("base", "zoo", "onnx", "explain", "evaluate", "search")


def row(file: Path) -> str:
    """One line of the table in docs/versions.md."""
    first, *rest = [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")]
    versions = first["versions"]
    cells = []
    for column in COLUMNS:
        checks = [line for line in rest if (line["extra"] or "base") == column]
        failed = [line["check"] for line in checks if line["problem"]]
        refused = any(line["check"] == "refuses" for line in checks)
        good = "refuses, by name" if refused else f"{len(checks)} of {len(checks)}"
        cells.append("not run" if not checks else f"fails: {', '.join(failed)}" if failed else good)
    about = [versions.get(name, "-") for name in ("python", "torch", "numpy", "zennit", "captum", "onnxruntime")]
    return "| " + " | ".join([*about, *cells]) + " |"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(row(Path(name)))
