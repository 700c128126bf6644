"""What every view says of a report, before it is laid out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from canonize.report.record import AffineFate, Check, Finding, Proof, ReportRecord, VerdictRecord

OUTCOMES = {"absorbed": "absorbed", "last resort": "now explicit linear layers", "left": "left as they were"}


@dataclass(frozen=True)
class AffineRow:
    """One line of the table of affines; `count` of them shared a fate."""

    layer: str
    kind: str
    outcome: str
    into: str
    pattern: str
    reason: str
    count: int = 1


def rows(report: ReportRecord, verbose: bool = False) -> list[AffineRow]:
    """One row an affine; unless `verbose`, the absorbed ones of one pattern and kind share a row."""
    if verbose:
        return [_row([fate]) for fate in report.affines]
    shared: dict[tuple[str, ...], list[AffineFate]] = {}
    for number, fate in enumerate(report.affines):
        # What was not absorbed is what a reader looks for: each stands alone.
        alone = () if fate.outcome == "absorbed" else (str(number),)
        shared.setdefault((fate.outcome, fate.pattern or "", fate.kind, *alone), []).append(fate)
    return [_row(fates) for fates in shared.values()]


def _row(fates: Sequence[AffineFate]) -> AffineRow:
    first, last = fates[0], fates[-1]
    layer = first.name if len(fates) == 1 else f"{first.name} ... {last.name}"
    into = ", ".join(first.into) if len(fates) == 1 else _example(first)
    return AffineRow(layer, first.kind, first.outcome, into, first.pattern or "", first.reason, len(fates))


def _example(fate: AffineFate) -> str:
    return f"{', '.join(fate.into[:2])}, ..." if fate.into else ""


def headline(report: ReportRecord) -> str:
    """How many affines there were and where they are now, in one sentence."""
    total = len(report.affines)
    if not total and report.findings:  # inspected, not rewritten
        by_rule = Counter(finding.rule for finding in report.findings)
        counts = ", ".join(f"{count} x {rule}" for rule, count in sorted(by_rule.items()))
        return f"{report.model}: not canonical in {counted(len(report.findings), 'place')} ({counts})"
    if not total:
        return f"{report.model}: no BatchNorm and no other loose affine"
    kinds = Counter(fate.kind for fate in report.affines)
    # "+ constant" and the like are operations, not nouns: they stand in quotes.
    named = ", ".join(
        f"{count} {kind if kind[:1].isalnum() else repr(kind)}" for kind, count in kinds.most_common(4)
    ) + (" ..." if len(kinds) > 4 else "")
    fates = [f"{report.count(o)} {words}" for o, words in OUTCOMES.items() if report.count(o)]  # type: ignore[arg-type]
    return f"{report.model}: {named}: {', '.join(fates)}"


def origin(report: ReportRecord) -> str:
    """How the model was captured, and on what inputs."""
    parts = [f"inputs {report.inputs}"] if report.inputs else []
    return ", ".join([*parts, f"captured by {report.captured_by}", f"strategy {report.strategy}"])


def proof_lines(proof: Proof) -> list[str]:
    """Whether the rewrites are proven for all inputs, and which layers rest on samples."""
    broken = [unproven for unproven in proof.unproven if unproven.broken]
    if proof.proven:
        lines = [f"proven for all inputs: {proof.values} values, every rewrite"]
    elif broken:
        lines = [f"NOT PROVEN: the certificate breaks at {broken[0].layer}"]
    else:
        lines = [f"not proven for all inputs: {len(proof.unproven)} layers rest on samples"]
    lines += [f"{unproven.layer}: {unproven.reason}" for unproven in proof.unproven[:5]]
    if len(proof.unproven) > 5:
        lines.append(f"... and {len(proof.unproven) - 5} more")
    return lines + [f"assuming that {assumption}" for assumption in proof.assumptions]


def verdict_lines(verdict: VerdictRecord) -> list[str]:
    """The verdict and its numbers."""
    failed = sum(not check.passed for check in verdict.checks)
    total = len(verdict.checks)
    if verdict.passed:
        lines = [f"equivalent: {total} of {total} checks passed"]
    else:
        lines = [f"NOT EQUIVALENT: {failed} of {total} checks failed"]
    if verdict.reason:
        lines.append(verdict.reason)
    for precision in dict.fromkeys(check.precision for check in verdict.checks):
        for quantity in dict.fromkeys(check.quantity for check in verdict.checks):
            worst = verdict.worst(precision, quantity)
            if worst is not None:
                lines.append(f"worst {check_line(worst)}")
    return lines


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def check_line(check: Check) -> str:
    """One check: what was compared, how far apart, how far apart it may be."""
    sign = "<=" if check.passed else ">"
    line = f"{check.precision} {check.quantity} error {check.error:.1e} {sign} {check.tolerance:.1e} ({check.name})"
    return f"{line}: {check.detail}" if check.detail and not check.passed else line


def finding_groups(findings: Sequence[Finding], verbose: bool = False) -> list[tuple[Finding, list[str]]]:
    """Findings that say the same of several places, with the places."""
    shared: dict[tuple[str, ...], list[Finding]] = {}
    for number, finding in enumerate(findings):
        alone = (str(number),) if verbose else ()
        shared.setdefault((finding.rule, finding.what, finding.why, finding.reason, *alone), []).append(finding)
    return [(found[0], [f.where for f in found]) for found in shared.values()]


def places(names: Sequence[str]) -> str:
    """Some names in full, many cut short."""
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
