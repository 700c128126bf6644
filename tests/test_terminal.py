"""Exit codes are verdicts: nothing about a terminal changes one. What is mistyped gets the closest name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import canonize
from canonize.cli import EPILOGS, main
from canonize.commands.terminal import PLAIN, Steady, spelled
from canonize.report.record import Divergence, VerdictRecord
from canonize.report.verdict import render_summary

ROOT = Path(canonize.__file__).parents[1]
BOTH = {"model.pt": 0, "same.pt": 0, "other.pt": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models")
    for name, seed in BOTH.items():
        torch.manual_seed(seed)
        torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval(), folder / name)
    return folder


def shell(line: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    line = line.replace("canonize ", f"{sys.executable} -m canonize ")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


VERIFY = "canonize verify model.pt {} --input 1x3x8x8 --quick"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (f"{VERIFY.format('same.pt')} -v | true; exit ${{PIPESTATUS[0]}}", 0),
        (f"{VERIFY.format('other.pt')} -v | true; exit ${{PIPESTATUS[0]}}", 1),
        ("canonize patterns | true; exit ${PIPESTATUS[0]}", 0),
        (f"{VERIFY.format('same.pt')} >&-", 0),
        (f"{VERIFY.format('other.pt')} >&- 2>&-", 1),
        (f"{VERIFY.format('other.pt')} 2>&1 | true; exit ${{PIPESTATUS[0]}}", 1),
    ],
)
def test_a_closed_pipe_leaves_the_verdict(line: str, code: int, models: Path) -> None:
    done = shell(line, models)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_said_and_no_verdict_of_difference_is_lost(models: Path) -> None:
    full = shell("canonize patterns > /dev/full", models)
    assert full.returncode == 2 and "No space left" in full.stderr and "Traceback" not in full.stderr
    assert shell(f"{VERIFY.format('other.pt')} > /dev/full", models).returncode == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
@pytest.mark.parametrize(("other", "code"), [("same.pt", 0), ("other.pt", 1)])
def test_a_terminal_that_lacks_characters_leaves_the_verdict(
    encoding: str, other: str, code: int, models: Path
) -> None:
    done = shell(f"{VERIFY.format(other)} -v", models, PYTHONIOENCODING=encoding)
    assert done.returncode == code and done.stderr == "" and "checks" in done.stdout


def test_what_an_encoding_lacks_is_spelled_and_what_it_has_stays() -> None:
    assert spelled("▁▄█ ↑ ×", "ascii") == "_~# ^ x" and spelled("▁ ×", "cp1252") == "_ ×"
    assert spelled("▁▄█", "utf-8") == "▁▄█" and spelled("ж", "ascii") == "\\u0436"
    assert spelled("\udcff", "utf-8") == "\\udcff"  # of a file name that is no UTF-8
    assert all(text.isascii() for text in PLAIN.values())
    nowhere = Steady(None)
    assert nowhere.write("text") == 4 and not nowhere.isatty() and nowhere.failure is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verfy", "a", "b"], "Did you mean canonize verify?"),
        (["-q", "Inspect", "m.pt"], "Did you mean canonize inspect?"),
        (["eval", "m.pt"], "Did you mean canonize evaluate?"),
        (["convert", "m.pt"], "canonize MODEL -o OUT"),
        (["modle.pt", "-o", "x.pt"], "Did you mean model.pt?"),
        (["model.pt", "-o", "x.pt", "--inputs", "sampels.npy"], "Did you mean samples.npy?"),
        (["verify", "model.pt", "model.pt", "--input", "1x4x8x8"], "--input"),
    ],
)
def test_what_is_mistyped_gets_the_closest_name(
    arguments: list[str], words: str, models: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model.pt", "another.pt"):
        (tmp_path / name).write_bytes((models / "model.pt").read_bytes())
    (tmp_path / "samples.npy").touch()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert words in err and "example_inputs" not in err and err.count("\n") == 1


def test_a_model_may_be_called_like_a_command_mistyped(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), "inspekt")
    assert main(["inspekt", "--dry-run", "--input", "1x3x8x8"]) == 0


def test_the_help_of_explain_names_all_methods() -> None:
    from canonize.explain.methods import methods

    assert EPILOGS["explain"].startswith(f"Methods: {', '.join(methods())}.")


def test_a_verdict_is_told_in_five_lines_and_in_full_where_asked(models: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(models)
    asked = ["verify", "model.pt", "other.pt", "--input", "1x3x8x8", "--quick"]
    assert main(asked) == 1
    short = capsys.readouterr().out
    assert main([*asked, "-v"]) == 1
    long = capsys.readouterr().out
    assert len(short.splitlines()) <= 8 < len(long.splitlines())
    for word in ("NOT EQUIVALENT", "largest difference", "at output[", "first layer that differs: 0", "--dump DIR"):
        assert word in short
    assert "device" in long


def test_models_without_a_layer_in_common_are_called_different() -> None:
    verdict = VerdictRecord(False, (), "", divergence=Divergence("", reference="the reference"))
    told = render_summary(verdict)
    assert "different architectures" in told and "0 layers" not in told and "last layer" not in told


def test_a_place_that_takes_no_file_is_not_called_a_full_disk(tmp_path: Path) -> None:
    from canonize.export import save

    if not Path("/proc/self").is_dir():
        pytest.skip("there is no /proc")
    g = canonize.canonize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(canonize.CanonizeError) as caught:
        save(g, "/proc/model.pt")
    assert "full" not in str(caught.value)
