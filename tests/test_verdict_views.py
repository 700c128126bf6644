"""A verdict as text, JSON, JUnit XML and Markdown, from the command line and from pytest."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from torch import nn

from canonize.cli import main
from canonize.commands.reports import verdict_json
from canonize.report import Verdict
from canonize.report.junit import verdict_junit
from canonize.report.markdown import verdict_markdown
from canonize.report.verdict import bins, histogram
from canonize.verify import check_equivalence
from tests.verify.nets import FAULTS, X, make

pytest_plugins = ["pytester"]


@pytest.fixture(scope="module")
def failed() -> Verdict:
    return check_equivalence(make(), FAULTS["one bias"](), X)


def test_numbers_of_an_output_are_those_of_its_difference() -> None:
    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = x.clone()
            y[0, 1] += 0.25
            return {"y": y}

    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": x + 0}

    x = torch.tensor([[4.0, 1.0, 2.0, -8.0]], dtype=torch.float64)
    verdict = check_equivalence(Same(), Shifted(), x, gradients=False)
    check = next(check for check in verdict.checks if check.name == "examples, batch 1")
    (output,) = check.outputs
    assert (output.output, output.where, output.scale) == ("output['y']", "output['y'][0, 1]", 8.0)
    assert (output.largest, output.mean, output.error) == (0.25, 0.0625, 0.25 / 8)
    assert (output.reference, output.candidate) == (1.0, 1.25)
    assert output.allclose == 0.125
    assert dict(bins(output.histogram))["equal"] == 3
    assert dict(bins(output.histogram))["< 1e-1"] == 1
    assert output.top_k == ((1, 1.0),)
    assert not output.passed


def test_a_histogram_in_a_line() -> None:
    counts = [0] * 19
    counts[0], counts[5], counts[7] = 4, 1, 10
    assert histogram(counts) == "equal 4, < 1e-12 ▂ █ < 1e-10"


def test_json_can_be_read_by_anyone(failed: Verdict) -> None:
    nan = check_equivalence(make(), FAULTS["nan in one element"](), X)
    for verdict in (failed, nan):
        data = json.loads(verdict_json(verdict, "a and b"), parse_constant=lambda word: pytest.fail(word))
        assert data["name"] == "a and b"
        assert data["passed"] is False
        assert len(data["checks"]) == len(verdict.checks)
    assert data["checks"][0]["error"] == "inf"
    assert json.loads(verdict_json(failed))["divergence"]["layer"] == "conv2"


def test_junit_counts_and_tells(failed: Verdict) -> None:
    root = ET.fromstring(verdict_junit(failed, "a \x00 and <b>"))
    suite = root.find("testsuite")
    assert suite is not None
    assert suite.get("name") == "a ? and <b>"
    bad = sum(not check.passed for check in failed.checks)
    assert (suite.get("tests"), suite.get("failures")) == (str(len(failed.checks)), str(bad))
    assert len(suite.findall("testcase/failure")) == bad
    told = suite.find("testcase/failure")
    assert told is not None and told.text is not None
    assert "first layer that differs: conv2" in told.text
    empty = ET.fromstring(verdict_junit(Verdict(False, (), "nothing could be compared")))
    assert empty.find("testsuite/testcase/error") is not None


def test_markdown_holds_a_table(failed: Verdict) -> None:
    text = verdict_markdown(failed, "a and b")
    assert text.startswith("## ❌ a and b: NOT EQUIVALENT")
    assert "- first layer that differs: conv2 (Conv2d)" in text
    assert "| `output` | float64 | **fail** |" in text
    assert verdict_markdown(check_equivalence(make(), make(), X)).startswith("## ✅")


def test_reports_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    torch.save(net, tmp_path / "a.pt")
    with torch.no_grad():
        net[2].bias[1] += 1e-3
    torch.save(net, tmp_path / "b.pt")
    files = [tmp_path / f"verdict.{ending}" for ending in ("json", "xml", "md", "txt")]
    options = [word for file in files for word in ("--report", str(file))]
    both = [str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    assert main(["verify", *both, *options, "--dump", str(tmp_path / "dump")]) == 1
    assert "first layer that differs: 2 (Linear)" in capsys.readouterr().out
    assert all("2 (Linear)" in file.read_text() for file in files[1:])
    assert sorted(p.name for p in (tmp_path / "dump").iterdir()) == ["candidate.pt", "inputs.pt", "reference.pt"]
    assert main(["verify", both[0], both[0], "--inputs", str(tmp_path / "dump" / "inputs.pt"), "--quick", "-q"]) == 0
    assert main(["verify", *both, "--report", str(tmp_path / "verdict.pdf")]) == 2
    assert main(["verify", *both, "--report", str(tmp_path / "no" / "verdict.xml")]) == 2
    assert "a report is .json, .xml, .md or .txt" in capsys.readouterr().err
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert main(["verify", both[0], str(tmp_path / "broken.onnx")]) == 2
    assert "ONNX Runtime cannot read it" in capsys.readouterr().err


def test_the_pytest_plugin(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import torch
        from torch import nn

        net, x = nn.Linear(3, 2), torch.randn(2, 3)
        other = nn.Linear(3, 2)

        def test_good(assert_equivalent):
            assert assert_equivalent(net, net, x).passed

        def test_bad(assert_equivalent):
            assert_equivalent(net, other, x, thorough=False)
        """
    )
    result = pytester.runpytest_inprocess("-p", "canonize.pytest_plugin", "-p", "no:xdist", "--junitxml=out.xml")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*model equivalence (canonize)*", "*test_good: equivalent: *"])
    result.stdout.fnmatch_lines(["*NotEquivalentError: the two models do not compute the same function*"])
    assert "NOT EQUIVALENT" in (pytester.path / "out.xml").read_text()
