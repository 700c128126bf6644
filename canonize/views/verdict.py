"""A verdict as text."""

from __future__ import annotations

from canonize.report import Verdict


def render_verdict(verdict: Verdict, verbose: bool = False) -> str:
    """Later."""
    return str(verdict.checks)
