"""``canonize inspect``: what is not canonical in a model, or what an explainer has no rule for."""

from __future__ import annotations

from pathlib import Path

from canonize import api
from canonize.commands.common import DIFFERENT, GOOD, GivenInputs, Screen, Source, given_inputs, load_model
from canonize.commands.reports import check_model_report, write_model_report
from canonize.compat import need
from canonize.inputs import parse_shape
from canonize.report import Report


def inspect(
    source: Source, feed: GivenInputs, *, report_file: Path | None, screen: Screen, explainer: str | None = None
) -> int:  # fmt: skip
    """Print what is not canonical in a model; or, for an explainer, what that has no rule for."""
    check_model_report(report_file)
    if explainer in ("zennit", "captum"):
        need((explainer,), f"asking for the rules of {explainer}")
    shapes = [parse_shape(s) for s in feed.shapes]
    loaded = load_model(source, shapes)
    if explainer is not None:
        from canonize.explain.support import blockers, listed

        found = blockers(loaded.model, given_inputs(loaded.model, shapes, feed.file), explainer)
        for line in listed(found):
            screen.say(line)
        screen.say(
            f"{explainer}: {len(found)} layers without a rule" if found else f"{explainer}: every layer has a rule"
        )
        return DIFFERENT if found else GOOD
    report: Report = api.inspect(loaded.model, given_inputs(loaded.model, shapes, feed.file))
    report.notes[:0] = loaded.notes
    write_model_report(report, report_file)
    screen.report(report)
    return GOOD if report.canonical else DIFFERENT
