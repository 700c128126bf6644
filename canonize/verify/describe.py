"""A verdict in words."""

from __future__ import annotations

import math

from canonize.report import Check, Verdict


def describe(verdict: Verdict, at_most: int = 5) -> str:
    """What was compared, what failed, where, and the smallest tolerance that would pass.

    Parameters
    ----------
    verdict : Verdict
    at_most : int
        Failed checks to list, worst first.

    Returns
    -------
    str
        Several lines.
    """
    failed = [check for check in verdict.checks if not check.passed]
    head = "equivalent" if verdict.passed else "not equivalent"
    lines = [f"{head}: {len(verdict.checks) - len(failed)} of {len(verdict.checks)} checks passed"]
    if verdict.reason:
        lines.append(f"reason: {verdict.reason}")
    for check in sorted(failed, key=lambda c: -c.error)[:at_most]:
        lines.append(f"failed: {describe_check(check)}")
    if len(failed) > at_most:
        lines.append(f"... and {len(failed) - at_most} more")
    if verdict.passed:
        seen = dict.fromkeys((check.precision, check.quantity) for check in verdict.checks)
        for precision, quantity in seen:
            worst = verdict.worst(precision, quantity)
            if worst is not None:
                lines.append(f"worst: {describe_check(worst)}")
    lines += [f"note: {note}" for note in verdict.notes]
    return "\n".join(lines)


def describe_check(check: Check) -> str:
    """One comparison in one line."""
    text = f"{check.quantity} in {check.precision} on '{check.name}'"
    if math.isfinite(check.error):
        text += f": error {check.error:.3g} of the scale, tolerance {check.tolerance:.3g}"
    return f"{text}: {check.detail}" if check.detail else text
