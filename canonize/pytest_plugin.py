"""For pytest: ``-p canonize.pytest_plugin``, or ``pytest_plugins = ["canonize.pytest_plugin"]`` in a conftest.

It adds one fixture, `assert_equivalent`, and a line for each comparison at the end of the run. It imports nothing heavy
until a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from canonize.report import Verdict

# Name of the property that a test's report carries, in JUnit XML too.
PROPERTY = "canonize"


@pytest.fixture
def assert_equivalent(request: pytest.FixtureRequest) -> Callable[..., Verdict]:
    """`canonize.assert_equivalent`, whose verdict is also told in the summary and in pytest's own JUnit XML.

    Returns
    -------
    callable
        With the parameters of `canonize.assert_equivalent`.
    """

    def compare(model: Any, other: Any, example_inputs: Any = None, **options: Any) -> Verdict:
        __tracebackhide__ = True
        from canonize.errors import NotEquivalentError
        from canonize.report.verdict import headline
        from canonize.verify import assert_equivalent

        def note(verdict: Any) -> None:
            request.node.user_properties.append((PROPERTY, f"{headline(verdict)}{_worst(verdict)}"))

        try:
            verdict = assert_equivalent(model, other, example_inputs, **options)
        except NotEquivalentError as error:
            note(error.verdict)
            raise
        note(verdict)
        return verdict

    return compare


def _worst(verdict: Verdict) -> str:
    from canonize.report.rows import check_line

    worst = verdict.worst()
    return f"; worst {check_line(worst)}" if worst is not None else ""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was compared."""
    told = [
        (report.nodeid, value)
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == PROPERTY
    ]
    if told:
        terminalreporter.section("model equivalence (canonize)")
        for nodeid, value in told:
            terminalreporter.line(f"{nodeid}: {value}")
