"""Numerical proof that two models are the same function: verdicts as data, and as an assertion."""

from __future__ import annotations

from canonize.verify.equivalence import assert_equivalent, check_equivalence

__all__ = ["assert_equivalent", "check_equivalence"]
