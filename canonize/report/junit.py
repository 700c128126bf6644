"""A verdict as JUnit XML: what CI systems show as a table of tests."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from canonize.report.record import Check, VerdictRecord
from canonize.report.verdict import divergence_lines, output_lines

# What XML 1.0 cannot hold.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def verdict_junit(verdict: VerdictRecord, name: str = "canonize verify") -> str:
    """One test case a check; a verdict without checks is one error.

    Parameters
    ----------
    verdict : Verdict
    name : str
        Of the test suite.
    """
    failed = sum(not check.passed for check in verdict.checks)
    nothing = not verdict.checks
    counts = {"tests": str(len(verdict.checks) or 1), "failures": str(failed), "errors": str(int(nothing))}
    root = ET.Element("testsuites", counts)
    suite = ET.SubElement(root, "testsuite", {"name": _clean(name), **counts, "skipped": "0"})
    properties = ET.SubElement(suite, "properties")
    for key, value in verdict.environment.items():
        ET.SubElement(properties, "property", {"name": _clean(key), "value": _clean(value)})
    for check in verdict.checks:
        _case(suite, check, verdict)
    if nothing:
        case = ET.SubElement(suite, "testcase", {"classname": "canonize", "name": "equivalence"})
        ET.SubElement(case, "error", {"message": _clean(verdict.reason)})
    if verdict.notes:
        ET.SubElement(suite, "system-out").text = _clean("\n".join(verdict.notes))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True)


def _case(suite: ET.Element, check: Check, verdict: VerdictRecord) -> None:
    where = {"classname": f"canonize.{check.precision}.{check.quantity}", "name": check.name}
    case = ET.SubElement(suite, "testcase", {key: _clean(value) for key, value in where.items()})
    if check.passed:
        return
    message = f"error {check.error:.3g} > {check.tolerance:.3g}: {check.detail}"
    failure = ET.SubElement(case, "failure", {"message": _clean(message), "type": "NotEquivalent"})
    lines = [line for output in check.outputs if not output.passed for line in output_lines(check, output)]
    failure.text = _clean("\n".join([*lines, *divergence_lines(verdict.divergence)]))


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub("?", text)
