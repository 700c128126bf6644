"""Reports written to files, laid out by the file's ending."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from canonize.errors import ExportError
from canonize.export.atomic import write_whole
from canonize.report import Report, Verdict
from canonize.report.junit import verdict_junit
from canonize.report.markdown import verdict_markdown
from canonize.report.text import render
from canonize.report.verdict import render_verdict

VERDICT_ENDINGS = (".json", ".xml", ".md", ".txt")


def check_report_path(path: Path | None, endings: tuple[str, ...]) -> None:
    """Say before the long work what is wrong with a report's name.

    Raises
    ------
    ExportError
        If no view has this ending, or the folder does not exist.
    """
    if path is None:
        return
    if path.suffix.lower() not in endings:
        kinds = f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise ExportError(f"a report is {kinds}", where=str(path), hint="Give such a name to --report")
    if not path.parent.is_dir():
        raise ExportError(f"there is no folder {path.parent}", where=str(path), hint="Make it first")


def verdict_json(verdict: Verdict, name: str = "canonize verify") -> str:
    """A verdict as JSON: its fields, see ``docs/report.md``. Infinite and undefined numbers are strings."""
    return json.dumps(_plain({"name": name, **verdict.to_dict()}), indent=2)


def write_verdict(verdict: Verdict, path: Path, name: str = "canonize verify") -> None:
    """Write a verdict as JSON, JUnit XML, Markdown or text, by the file's ending.

    Parameters
    ----------
    verdict : Verdict
    path : Path
    name : str
        Of the comparison.
    """
    views = {
        ".json": lambda: verdict_json(verdict, name),
        ".xml": lambda: verdict_junit(verdict, name),
        ".md": lambda: verdict_markdown(verdict, name),
        ".txt": lambda: render_verdict(verdict, verbose=True),
    }
    text = views[path.suffix.lower()]()
    write_whole(path, lambda passing: _write(passing, text), lambda passing: None)


def check_model_report(path: Path | None) -> None:
    """As `check_report_path`, for what `write_model_report` writes."""
    check_report_path(path, (".json", ".txt"))


def write_model_report(report: Report, path: Path | None) -> None:
    """Write a model's report as JSON or text, by the file's ending; nothing without a path."""
    if path is not None:
        text = report.to_json() if path.suffix == ".json" else render(report, verbose=True)
        write_whole(path, lambda passing: _write(passing, text), lambda passing: None)


def _write(path: Path, text: str) -> None:
    path.write_text(text.rstrip() + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
