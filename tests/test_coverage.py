"""The coverage command on one small architecture of each family, and the tools around it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from benchmarks.coverage import __main__ as command
from benchmarks.coverage import measure, table
from benchmarks.coverage.measure import Row
from benchmarks.coverage.sample import EXPLICIT, SAMPLE
from benchmarks.coverage.zoo import Architecture, architectures

# Their proof takes minutes or their images are large: the full table has them.
SLOW = {"timm:xcit_nano_12_p8_224"}


ALL = architectures()


@pytest.mark.parametrize("key", [key for key in SAMPLE if key not in SLOW])
def test_every_batch_norm_of_an_architecture_is_absorbed(key: str) -> None:
    """Other weights and inputs than those of the table."""
    (architecture,) = [it for it in ALL if it.key == key]
    row = measure.measure(architecture, most_parameters=60, seed=1)
    assert row.outcome == "exact", row
    assert row.error <= 1e-10
    assert row.batch_norms > 0
    assert row.batch_norms_left == 0
    assert row.norms - row.norms_absorbed == EXPLICIT.get(key, 0), row.unabsorbed
    assert row.left == 0, row.unabsorbed


def test_an_error_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = measure.canonize

    def wrong(model: nn.Module, inputs: tuple[torch.Tensor, ...], **options: bool) -> nn.Module:
        canonical = real(model, inputs, **options)
        with torch.no_grad():
            canonical.get_submodule("conv1").weight.mul_(1 + 1e-6)
        return canonical

    monkeypatch.setattr(measure, "canonize", wrong)
    row = measure.measure(Architecture("torchvision", "resnet18", "resnet"), most_parameters=60, seed=0)
    assert row.outcome == "different"


def test_a_large_one_is_skipped_and_says_so() -> None:
    row = measure.measure(Architecture("torchvision", "resnet18", "resnet"), most_parameters=1, seed=0)
    assert (row.outcome, row.reason) == ("skipped", "more than 1 million parameters")


def test_all_architectures_are_listed() -> None:
    listed = ALL
    assert len({it.key for it in listed}) == len(listed) > 1000
    assert {it.library for it in listed} == {"torchvision", "timm"}
    assert all(key in {it.key for it in listed} for key in SAMPLE)
    order = command.interleaved(listed)
    families = {(it.library, it.family) for it in listed}
    assert {(it.library, it.family) for it in order[: len(families)]} == families


def test_the_command_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    results, page = tmp_path / "r.jsonl", tmp_path / "page.md"
    known = Row("torchvision:mnasnet0_5", "mnasnet", "exact", captured_by="symbolic_trace", norms=1, norms_absorbed=1)
    results.write_text(json.dumps(known.to_dict()) + '\n{"key": "cut off')
    import typer

    app = typer.Typer()
    app.command()(command.main)
    asked = ["torchvision:mnasnet0_5", "torchvision:squeezenet1_1", "--jobs", "1"]
    done = CliRunner().invoke(app, [*asked, "--results", str(results), "--table", str(page)])
    assert done.exit_code == 0, done.output
    rows = command.read(results)
    assert list(rows) == ["torchvision:mnasnet0_5", "torchvision:squeezenet1_1"]
    assert rows["torchvision:mnasnet0_5"].norms == 1, "it was not measured again"
    assert rows["torchvision:squeezenet1_1"].outcome == "exact"
    assert "| torchvision:squeezenet1_1 |" in page.read_text()


def test_the_page_says_what_is_not_good(tmp_path: Path) -> None:
    rows = [
        Row("timm:a", "x", "exact", captured_by="symbolic_trace", norms=3, norms_absorbed=2, error=1e-15,
            unabsorbed={"last resort: BatchNorm2d: nobody | can": 1}),
        Row("timm:b", "x", "different", error=0.5),
        Row("timm:c", "x", "out of time", reason="more than 1 s"),
        Row("timm:d", "x", "skipped"),
    ]  # fmt: skip
    table.write(rows, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "3 BatchNorms, 2 absorbed (66.67 %)" in text
    assert "| timm:a | nobody \\| can | 3 | 1 |" in text
    assert "| timm:b | different | error 5.0e-01 |" in text
    assert "Skipped for their size (1): timm:d." in text
    assert "1.0e-15" in text and not math.isnan(rows[0].error)
