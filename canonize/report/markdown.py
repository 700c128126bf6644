"""A verdict as Markdown, for the summary of a CI job."""

from __future__ import annotations

import math

from canonize.report.record import VerdictRecord
from canonize.report.verdict import divergence_lines, headline, histogram


def verdict_markdown(verdict: VerdictRecord, name: str = "canonize verify") -> str:
    """A heading, where the models part, a table of outputs and one of checks.

    Parameters
    ----------
    verdict : Verdict
    name : str
        Of the comparison.
    """
    lines = [f"## {'✅' if verdict.passed else '❌'} {_escaped(name)}: {headline(verdict)}", ""]
    if verdict.reason:
        lines += [_escaped(verdict.reason), ""]
    found = divergence_lines(verdict.divergence)
    lines += [f"- {_escaped(line.strip())}" for line in found] + ([""] if found else [])
    table = verdict.outputs()
    if table:
        lines += _row("output", "precision", "verdict", "error / scale", "allowed", "largest", "mean", "where", "on")
        lines += _row(*["---"] * 9)
        for check, output in table:
            lines += _row(
                f"`{output.output}`", check.precision, "pass" if output.passed else "**fail**", _number(output.error),
                _number(output.tolerance), _number(output.largest), _number(output.mean), f"`{output.where}`",
                check.name,
            )  # fmt: skip
        lines.append("")
        lines += [
            f"- `{output.output}` in {check.precision}: {histogram(output.histogram)}"
            for check, output in table
            if output.histogram and output.largest
        ]
        lines.append("")
    lines += ["<details><summary>All checks</summary>", ""]
    lines += _row("check", "quantity", "precision", "error", "allowed", "verdict") + _row(*["---"] * 6)
    for check in verdict.checks:
        result = "pass" if check.passed else "**fail**"
        lines += _row(
            check.name, check.quantity, check.precision, _number(check.error), _number(check.tolerance), result
        )
    lines += ["", "</details>", ""]
    lines += [f"- {_escaped(note)}" for note in verdict.notes]
    lines += ["", ", ".join(f"{key}: {value}" for key, value in verdict.environment.items())]
    return "\n".join(lines).rstrip() + "\n"


def _row(*cells: str) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"]


def _number(value: float) -> str:
    return f"{value:.2e}" if math.isfinite(value) else "∞"


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|")
