"""The speed command on one tiny model: what comes out has the right shape. No test looks at how long anything took."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from benchmarks.speed import __main__ as command
from benchmarks.speed import convert, growth, memory, parts, peak, peers, subjects, timing
from benchmarks.speed.page import write_page
from benchmarks.speed.row import Row, Settings, read, write

TINY = "timm:test_resnet"
QUICK = ["--model", TINY, "--rounds", "1", "--edge", "32", "--no-inductor"]
CASES = {
    "convert": ["torch.fx fuse", "fuse_conv_bn_eval", "zennit", "onnxsim", "onnxslim", "onnxscript"],
    "verify": ["proof, batch 1", "proof, batch 8"],
    "forward": ["NCHW, batch 1", "NCHW, batch 8", "channels-last, batch 1", "channels-last, batch 8"],
    "compile": ["eager", "aot_eager"],
    "onnx": ["ONNX Runtime alone", "onnxsim", "onnxslim", "the fastest of these"],
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The command sets the number of threads for all of the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(command.main)
    where = ["--results", str(folder / "speed.json"), "--page", str(folder / "speed.md")]
    done = CliRunner().invoke(app, [*arguments, *where])
    return done.exit_code, done.output


@pytest.mark.parametrize("part", CASES)
def test_a_part_measures_every_contestant(part: str, tmp_path: Path) -> None:
    code, output = run(tmp_path, part, *QUICK)
    assert code == 0, output
    rows = read(tmp_path / "speed.json")
    own = [row for row in rows if "GPU" not in row.case]
    assert [(row.part, row.subject, row.case) for row in own] == [(part, TINY, case) for case in CASES[part]]
    for row in own:
        if part == "compile":
            assert (row.more["graphs"], row.more["breaks"], row.note) == (1, 0, "")
        elif "ModuleNotFoundError" not in row.note:
            assert row.canonize > 0 and row.other > 0 and row.low <= row.ratio <= row.high and row.rounds == 1, row
    page = (tmp_path / "speed.md").read_text()
    assert page.count(f"| {TINY} |") >= len(own)
    assert part == "compile" or (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_growth_measures_every_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "DEPTHS", (1, 2))
    monkeypatch.setattr(growth, "WIDTHS", (2, 4))
    assert run(tmp_path, "growth", *QUICK)[0] == 0
    rows = read(tmp_path / "speed.json")
    assert [(row.subject, row.case) for row in rows] == [("depth", "1"), ("depth", "2"), ("width", "2"), ("width", "4")]
    assert all(row.canonize > 0 for row in rows)


def test_memory_is_measured_in_a_fresh_process() -> None:
    found = memory._peak(TINY, "allocator", "canonize", Settings(edge=32))
    assert float(found["peak"]) >= float(found["folded"]) > 0
    assert "no such model" in str(memory._peak("timm:no such model", "allocator", "canonize", Settings())["failed"])


def test_the_peak_is_that_of_what_is_held_at_once() -> None:
    def two_after_one() -> torch.Tensor:
        torch.zeros(3_000_000, dtype=torch.uint8).max()
        return torch.ones(2_000_000, dtype=torch.uint8)

    _, found = peak.allocator_peak(two_after_one)
    assert 3_000_000 <= found < 3_100_000
    found = peak.resident_peak(lambda: torch.ones(64_000_000, dtype=torch.uint8))[1]
    assert found > 32_000_000


def test_new_bytes_are_those_that_the_model_does_not_have() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    assert peak.new_bytes(nn.Sequential(model[0], nn.Linear(2, 3)), model) == 4 * (6 + 3)


def test_contestants_take_turns_and_the_first_run_does_not_count() -> None:
    order: list[str] = []
    seconds = {"a": iter([1.0, 2.0, 9.0]), "b": iter([1.0, 4.0, 3.0])}
    contestants = {name: lambda name=name: order.append(name) or name for name in "ab"}
    times = timing.interleaved(contestants, Settings(rounds=3), lambda run: next(seconds[run()]))
    assert order == list("ab" * 4)
    assert times == {"a": [1.0, 2.0, 9.0], "b": [1.0, 4.0, 3.0]}
    row = timing.compare(Row("convert", "m", "c"), times["a"], times["b"])
    assert (row.canonize, row.other, row.ratio, row.low, row.high) == (2000, 3000, 1.0, 0.75, 2.0)


def test_a_comparison_that_takes_long_ends_after_three_rounds() -> None:
    times = timing.interleaved({"a": lambda: None}, Settings(rounds=9, seconds=-1), lambda run: 1.0)
    assert len(times["a"]) == timing.LEAST_ROUNDS


def test_a_tool_that_fails_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*anything: object) -> None:
        raise ValueError("not this | model in /home/someone/file")

    monkeypatch.setattr(convert, "PEERS", {"torch.fx fuse": fails})
    monkeypatch.setattr(convert, "ON_FILES", {"onnxsim": peers.onnxsim})
    monkeypatch.setattr(convert, "exported", fails)
    rows = convert.measure(TINY, Settings(rounds=1, edge=32))
    assert [row.note for row in rows] == [
        "ValueError: not this | model in ...",
        "no ONNX file: ValueError: not this | model in ...",
    ]
    assert all(math.isnan(row.ratio) for row in rows)
    write(rows, tmp_path / "rows.json")
    write_page(read(tmp_path / "rows.json"), tmp_path / "page.md")
    assert "| ValueError: not this \\| model in ... |" in (tmp_path / "page.md").read_text()


def test_the_command_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def interrupted(subject: str, settings: Settings) -> list[Row]:
        asked.append(subject)
        if subject == "timm:b" and asked.count(subject) == 1:
            raise KeyboardInterrupt
        return [Row("convert", subject, "x", canonize=1.0, other=2.0, ratio=0.5, low=0.5, high=0.5, rounds=2, mark=0.4)]

    monkeypatch.setattr(convert, "measure", interrupted)
    arguments = ["convert", "--model", "timm:a", "--model", "timm:b"]
    code, output = run(tmp_path, *arguments)
    assert (code, [row.subject for row in read(tmp_path / "speed.json")]) == (130, ["timm:a"])
    assert "goes on from here" in output
    code, output = run(tmp_path, *arguments)
    assert code == 0 and asked == ["timm:a", "timm:b", "timm:b"], "it was not measured again"
    assert "2 figures in speed.md: 0 of 2 marks reached" in output
    assert "| convert | timm:b | x | 0.50 (0.50 to 0.50) | 0.40 |" in (tmp_path / "speed.md").read_text()
    assert run(tmp_path, *arguments, "--again")[0] == 0
    assert asked[3:] == ["timm:a", "timm:b"]


def test_a_model_that_cannot_be_measured_stops_nothing(tmp_path: Path) -> None:
    code, output = run(tmp_path, "verify", "--model", "timm:no_such", *QUICK)
    assert code == 0 and "verify timm:no_such: " in output
    first, *others = read(tmp_path / "speed.json")
    assert first.subject == "timm:no_such" and {row.subject for row in others} == {TINY}
    assert "no_such" in first.note and math.isnan(first.ratio) and all(row.ratio > 0 for row in others)


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    code, output = run(tmp_path, "walk")
    assert code == 2 and "convert" in output


def test_a_mark_is_reached_to_the_digits_of_the_table() -> None:
    assert Row("", "", "", ratio=1.004, mark=1.0).reached is True
    assert Row("", "", "", ratio=1.006, mark=1.0).reached is False
    assert Row("", "", "", mark=1.0).reached is False, "what has no figures has not reached its mark"
    assert Row("", "", "", ratio=1.0).reached is None


def test_every_part_is_asked_for_every_model_and_growth_for_its_own() -> None:
    asked = [(part.name, subject) for part, subject in parts.units(["convert", "growth"], [])]
    assert asked == [*(("convert", name) for name in subjects.SUBJECTS), ("growth", "depth"), ("growth", "width")]
    assert [subject for _, subject in parts.units(["onnx"], [TINY])] == [TINY]
