"""Faults that only some inputs, sizes, types or ways to call show."""

from __future__ import annotations

import pytest

from canonize.verify import check_equivalence
from tests.verify.campaign.conditions import CONDITIONS, UNSEEN, X, base

SEEN = [name for name in CONDITIONS if name not in UNSEEN]


def test_most_of_them_are_seen() -> None:
    assert CONDITIONS.keys() >= UNSEEN
    assert len(SEEN) / len(CONDITIONS) >= 77 / 89


@pytest.mark.parametrize("name", SEEN)
def test_seen(name: str) -> None:
    verdict = check_equivalence(base(), CONDITIONS[name](), X, locate=False)
    assert not verdict.passed
    assert verdict.reason


@pytest.mark.parametrize("double", [False, True])
def test_the_network_itself_is_sound(double: bool) -> None:
    model, other = (m.double() if double else m for m in (base(), base()))
    verdict = check_equivalence(model, other, X.double() if double else X)
    assert verdict.passed, verdict
    assert {check.quantity for check in verdict.checks} >= {"output", "input gradient"}
    names = {check.name for check in verdict.checks}
    assert "channels last, normal, batch 1" in names and "normal, batch 1, size 15x17" in names
    assert any(name.startswith("NaN") for name in names) is False
    assert any(name == "normal, a row of not finite, batch 4" for name in names)
