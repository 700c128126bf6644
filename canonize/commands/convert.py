"""``canonize MODEL -o OUT``: a model in, its canonical form out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import nn

from canonize.api import canonize
from canonize.commands.common import GOOD, GivenInputs, Screen, Source, given_inputs, load_model, told_different
from canonize.commands.reports import check_model_report, write_model_report
from canonize.errors import CanonizeError, LoadError, NotEquivalentError
from canonize.export import check_output, save
from canonize.inputs import parse_shape
from canonize.report import Report
from canonize.twins.module_tree import nan_in


def convert(
    source: Source,
    feed: GivenInputs,
    *,
    out: Path | None,
    strategy: Literal["threshold", "untangle"],
    skip: tuple[str, ...],
    forms: tuple[str, ...],
    report_file: Path | None,
    certificate: Path | None,
    verify: bool,
    paranoid: bool,
    dry_run: bool,
    screen: Screen,
) -> int:
    """Canonize a model and write it. Nothing is written unless it is equivalent."""
    # Everything that can be known to be wrong is said before the long work.
    if out is not None and not dry_run:
        check_output(out)
    check_model_report(report_file)
    if certificate is not None and not verify:
        raise CanonizeError("--certificate and --no-verify exclude each other", hint="Leave one of them out")
    shapes = [parse_shape(s) for s in feed.shapes]
    loaded = load_model(source, shapes)
    _refuse_nan(loaded.model)
    inputs = given_inputs(loaded.model, shapes, feed.file)
    try:
        with screen.progress() as progress:
            canonical = canonize(
                loaded.model,
                inputs,
                strategy=strategy,
                skip=skip,
                forms=forms,
                verify=verify,
                paranoid=paranoid,
                progress=progress,
            )
    except NotEquivalentError as error:
        return told_different(error, out)
    report = canonical.report
    assert isinstance(report, Report)
    report.notes[:0] = loaded.notes
    report.source = loaded.source
    if not verify:
        report.notes.append("not verified: --no-verify")
    loader = ""
    if out is not None and not dry_run:
        saved = save(canonical, out, example_inputs=inputs)
        report.notes.extend(saved.notes)
        loader = saved.loader
    write_model_report(report, report_file)
    if certificate is not None:
        certificate.write_text(report.certificate, encoding="utf-8")
    screen.report(report)
    if loader:
        screen.say(f"\nwritten to {out}; load it with\n\n" + "\n".join(f"    {line}" for line in loader.splitlines()))
    elif dry_run:
        screen.say("\ndry run: nothing was written")
    return GOOD


def _refuse_nan(model: nn.Module) -> None:
    found = nan_in(model)
    if found is not None:
        name, count, total = found
        raise LoadError(
            f"holds NaN in {count} of {total} numbers",
            where=name,
            hint="Its outputs are NaN whatever comes in: the training diverged, or the file is damaged",
        )
