"""A verdict as text: every output with its numbers, where the models part, and what could not be said."""

from __future__ import annotations

import math
from collections.abc import Sequence

from canonize.report.record import Check, Divergence, OutputError, VerdictRecord
from canonize.report.rows import check_line, counted

# Outputs that are told in full; more are told where `verbose`.
SHOWN = 4
DIFFERENT = "the two have no layer in common: they are different architectures, or their layers have other names"
_BLOCKS = "▁▂▃▄▅▆▇█"


def render_verdict(verdict: VerdictRecord, verbose: bool = False) -> str:
    """A verdict alone, as plain text.

    Parameters
    ----------
    verdict : Verdict
    verbose : bool
        Every output and every check on a line of its own, and what it was computed on.
    """
    return "\n".join(verdict_text(verdict, verbose))


def render_summary(verdict: VerdictRecord) -> str:
    """A verdict in about five lines: what, how much, where, and what to do next.

    Parameters
    ----------
    verdict : Verdict
    """
    lines = [headline(verdict)]
    told = sorted(verdict.outputs(), key=lambda pair: (pair[1].passed, -_share(pair[1])))
    if told:
        lines += _difference(*told[0])
    elif verdict.reason:
        lines.append(verdict.reason)
    gradients = _worst_of_each([check for check in verdict.checks if not check.outputs])
    if gradients:
        lines.append("; ".join(check_line(check) for check in gradients[:2]))
    lines += [line.strip() for line in divergence_lines(verdict.divergence)[:1]]
    if verdict.divergence is not None and verdict.divergence.rewrite:
        lines[-1] += f", {verdict.divergence.rewrite}"
    if verdict.notes:
        more = f" (and {counted(len(verdict.notes) - 1, 'more note')})" if len(verdict.notes) > 1 else ""
        lines.append(f"note: {verdict.notes[0]}{more}")
    return "\n".join([*lines, _next_step(verdict)])


def _share(output: OutputError) -> float:
    """How much of what is allowed was used."""
    return output.error / output.tolerance if output.tolerance and math.isfinite(output.error) else math.inf


def _difference(check: Check, output: OutputError) -> list[str]:
    """How far apart two models are at most, and where."""
    if not math.isfinite(output.error):
        return [f"{output.output} in {check.precision} on '{check.name}': {output.why}"]
    size = f"{output.error:.1e} of the scale; up to {output.tolerance:.1e} is rounding"
    if not output.largest:
        return [f"largest difference: none at all, in {check.precision}"]
    return [
        f"largest difference: {output.largest:.1e} in {check.precision} ({size})",
        f"at {output.where} on '{check.name}': {output.reference:.6g} and {output.candidate:.6g}",
    ]


def _next_step(verdict: VerdictRecord) -> str:
    if verdict.passed:
        return "Either can stand in for the other; -v lists every output and every check"
    found = verdict.divergence
    if found is not None and found.layer:
        return f"Look at {found.layer} first; --dump DIR keeps what it computes in both, -v lists every check"
    if found is not None and not found.compared and not found.reference.startswith("nothing"):
        return "Are these the two files you meant? -v lists every output and every check"
    if not verdict.checks:
        return "Give inputs that the models compute numbers from: --inputs FILE"
    return "-v lists every output and every check; --report FILE.json, .md or .xml keeps them"


def verdict_text(verdict: VerdictRecord, verbose: bool = False) -> list[str]:
    """The lines of `render_verdict`."""
    lines = [headline(verdict)]
    if verdict.reason:
        lines.append(verdict.reason)
    lines += divergence_lines(verdict.divergence)
    told = sorted(verdict.outputs(), key=lambda pair: pair[1].passed)
    for check, output in told if verbose else told[:SHOWN]:
        lines += ["", *output_lines(check, output)]
    if len(told) > SHOWN and not verbose:
        lines += ["", f"... and {len(told) - SHOWN} more outputs (--verbose lists them)"]
    others = [check for check in verdict.checks if not check.outputs]
    listed = list(verdict.checks) if verbose else _worst_of_each(others)
    if listed:
        lines += ["", *(f"{'PASS' if check.passed else 'FAIL'}  {check_line(check)}" for check in listed)]
    if verbose and verdict.environment:
        lines += ["", *(f"{name}: {value}" for name, value in verdict.environment.items())]
    return [*lines, *(f"note: {note}" for note in verdict.notes)]


def headline(verdict: VerdictRecord) -> str:
    """The verdict in a few words."""
    failed, total = sum(not check.passed for check in verdict.checks), len(verdict.checks)
    if verdict.passed:
        return f"equivalent: {total} of {total} checks passed"
    return f"NOT EQUIVALENT: {failed} of {total} checks failed"


def divergence_lines(found: Divergence | None) -> list[str]:
    """Where two models part, in a few lines; none where nobody knows."""
    if found is None:
        return []
    if not found.layer and not found.compared:
        # Nothing has the same name and the same call in both: nothing to go by, and no place to name.
        return [f"no layer was compared: {found.reference}" if found.reference.startswith("nothing") else DIFFERENT]
    if not found.layer:
        place = "the models part behind the last layer that both have"
    else:
        call = f", call {found.call + 1}" if found.call else ""
        place = f"first layer that differs: {found.layer} ({found.kind}{call})"
    lines = [place]
    if math.isfinite(found.error) and found.layer:
        lines[0] += f", by {found.error:.2g} of its scale at {found.where}, allowed {found.tolerance:.2g}"
    if found.reads:
        lines.append(f"  what it reads agrees: {', '.join(found.reads)}")
    if found.rewrite:
        lines.append(f"  {found.rewrite}")
    lines.append(
        f"  {counted(found.compared, 'layer')} compared with {found.reference} on '{found.case}', runs: {found.passes}"
    )
    return lines


def output_lines(check: Check, output: OutputError) -> list[str]:
    """One output in one precision: what a reader needs to judge the number."""
    lines = [f"{'PASS' if output.passed else 'FAIL'}  {output.output} in {check.precision}, worst on '{check.name}'"]
    if not math.isfinite(output.error):
        return [*lines, f"      {output.why}"]
    allowed = f"minimum tolerance that passes {output.error:.2e} of the scale, allowed {output.tolerance:.2e}"
    lines.append(f"      {allowed}" + (f" ({output.why})" if output.why else ""))
    if not output.scale:
        return lines
    values = f"{output.reference:.9g} and {output.candidate:.9g}"
    lines.append(f"      largest {output.largest:.2e} at {output.where} ({values}), mean {output.mean:.2e}")
    lines.append(f"      scale {output.scale:.3g}; allclose passes from rtol = atol = {output.allclose:.1e}")
    if output.top_k:
        told = ", ".join(f"top-{k} {share:.1%}" for k, share in output.top_k)
        lines.append(f"      rows with the same best classes: {told}")
    if output.largest:
        lines.append(f"      differences over the scale: {histogram(output.histogram)}")
    return lines


def bins(counts: Sequence[int]) -> list[tuple[str, int]]:
    """The bins of a histogram with their names."""
    edges = [f"1e{power}" for power in range(-16, 1)]
    names = ["equal", *(f"< {edge}" for edge in edges), f">= {edges[-1]}"]
    return list(zip(names, counts, strict=True))


def histogram(counts: Sequence[int]) -> str:
    """A histogram in one line: a bar a decade, between the first and the last that holds anything."""
    named = bins(counts)
    equal, rest = named[0][1], named[1:]
    held = [i for i, (_, count) in enumerate(rest) if count]
    words = [f"equal {equal}"] if equal else []
    if held:
        window = rest[held[0] : held[-1] + 1]
        most = max(count for _, count in window)
        bars = "".join(_BLOCKS[math.ceil(7 * count / most)] if count else " " for _, count in window)
        first, last = window[0][0], window[-1][0]
        words.append(f"{first} {bars}" + (f" {last}" if len(window) > 1 else f" {window[0][1]}"))
    return ", ".join(words)


def _worst_of_each(checks: list[Check]) -> list[Check]:
    """Of checks without outputs (gradients, weights) the worst one of each kind."""
    kinds = dict.fromkeys((check.quantity, check.precision) for check in checks)
    worst = [VerdictRecord(False, tuple(checks)).worst(precision, quantity) for quantity, precision in kinds]
    return [check for check in worst if check is not None]
