"""The command line, from the arguments to the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import canonize
from canonize.cli import dispatch, main
from canonize.inputs import Inputs
from canonize.report import Verdict

ROOT = Path(canonize.__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, eps=1e-2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(channels))
        layer.bias.copy_(torch.randn(channels))
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.copy_(torch.randn(channels))
        layer.running_var.copy_(torch.rand(channels) + 0.1)
    return layer


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm(4), nn.ReLU(), norm(4), nn.Conv2d(4, 4, 3), *head).eval()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.save(network(), "model.pt")
    return tmp_path


def outputs(path: str, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = torch.load(path, weights_only=False)(x)
    return result


def test_commands_are_told_from_models() -> None:
    assert dispatch(["inspect", "m.pt"]) == ("inspect", ["m.pt"])
    assert dispatch(["--debug", "-q", "verify", "a", "b"]) == ("verify", ["--debug", "-q", "a", "b"])
    assert dispatch(["./inspect", "-o", "x.pt"]) == (None, ["./inspect", "-o", "x.pt"])
    assert dispatch(["-o", "inspect", "m.pt"]) == (None, ["-o", "inspect", "m.pt"])
    assert dispatch(["--arch", "timm:resnet50", "-o", "x.pt"])[0] is None


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "canonize", *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_help_answers_at_once_and_fits_a_screen() -> None:
    help_text = run("--help").stdout
    assert all(word in help_text for word in ("inspect", "verify", "patterns", "Examples", "Exit codes", "--arch"))
    lines = help_text.splitlines()
    assert len(lines) <= 48 and max(map(len, lines)) <= 100
    for command in ("inspect", "verify", "patterns"):
        assert run(command, "--help").stdout.startswith(f"Usage: canonize {command}")
    # At once: nothing large is imported. (How long that takes is the machine's business.)
    loaded = "import sys; from canonize.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", loaded], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "timm", "torchvision", "onnx", "zennit"} & set(done.stderr.split())


def test_version() -> None:
    assert run("--version").stdout == f"canonize {canonize.__version__}\n"


@pytest.mark.parametrize("ending", ["pt", "pt2", "onnx"])
def test_a_model_is_canonized_and_written(ending: str, folder: Path, capsys: Any) -> None:
    assert main(["model.pt", "-o", f"out.{ending}", "--input", "2x3x12x12", "--report", "r.json"]) == 0
    out, err = capsys.readouterr()
    assert "2 BatchNorm2d" in out and "equivalent" in out and f"written to out.{ending}" in out and err == ""
    report = json.loads((folder / "r.json").read_text())
    assert report["verdict"]["passed"] and len(report["affines"]) == 2 and report["inputs"]
    assert sorted(os.listdir()) == sorted(["model.pt", f"out.{ending}", "r.json"])
    if ending == "pt":
        loaded = torch.load("out.pt", weights_only=False)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in loaded.modules())
        x = torch.randn(3, 3, 20, 20)
        torch.testing.assert_close(outputs("out.pt", x), network()(x))
        assert main(["verify", "model.pt", "out.pt", "--trust"]) == 0
        assert main(["inspect", "out.pt", "--trust", "-q"]) == 0


def test_an_architecture_alone_and_weights_with_one(folder: Path, capsys: Any) -> None:
    source = "from torch.nn import *\ndef build():\n    return Sequential(Conv2d(3, 4, 3), BatchNorm2d(4))\n"
    (folder / "own_net.py").write_text(source)
    assert main(["--arch", "own_net:build", "-o", "a.pt", "--input", "1x3x8x8"]) == 0
    sys.modules.pop("own_net")
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), norm(4)).state_dict(), "w.pth")
    assert main(["w.pth", "--arch", "own_net:build", "-o", "b.pt", "--input", "1x3x8x8", "-q"]) == 0
    assert "written to a.pt" in capsys.readouterr().out


def test_real_inputs_and_a_dry_run(folder: Path, capsys: Any) -> None:
    torch.save(torch.randn(2, 3, 9, 9), "x.pt")
    assert main(["model.pt", "--dry-run", "--inputs", "x.pt"]) == 0
    out = capsys.readouterr().out
    assert "2x3x9x9" in out and "nothing was written" in out
    assert sorted(os.listdir()) == ["model.pt", "x.pt"]


def test_inspect_exits_1_on_a_batchnorm(folder: Path, capsys: Any) -> None:
    assert main(["inspect", "model.pt", "--input", "2x3x12x12"]) == 1
    assert "C1" in capsys.readouterr().out


def test_verify_tells_two_models_apart(folder: Path, capsys: Any) -> None:
    torch.save(network(), "same.pt")
    torch.save(network(seed=1), "other.pt")
    assert main(["verify", "model.pt", "same.pt", "--input", "2x3x12x12"]) == 0
    assert "equivalent" in capsys.readouterr().out
    assert main(["verify", "model.pt", "other.pt", "--input", "2x3x12x12"]) == 1
    assert "NOT EQUIVALENT" in capsys.readouterr().out


def test_what_is_not_equivalent_is_not_written(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    def wrong(*arguments: Any, **options: Any) -> Any:
        raise canonize.NotEquivalentError("the outputs differ", Verdict(False, (), "by a half"))

    monkeypatch.setattr("canonize.commands.convert.canonize", wrong)
    assert main(["model.pt", "-o", "out.pt", "--input", "2x3x12x12"]) == 1
    out, err = capsys.readouterr()
    assert "by a half" in out and "was not written" in err and not Path("out.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model.pt"], "-o OUT"),
        (["-o", "x.pt"], "no model"),
        (["absent.pt", "-o", "x.pt"], "no such file"),
        (["model.pt", "-o", "x.bin"], ".pt2, .onnx"),
        (["model.pt", "-o", "absent/x.pt"], "mkdir -p absent"),
        (["model.pt", "-o", "x.pt", "--input", "3by4"], "1x3x224x224"),
        (["model.pt", "-o", "x.pt", "--input", "1x3x8x8", "--inputs", "x.npy"], "both"),
        (["model.pt", "-o", "x.pt", "--report", "r.pdf"], ".json"),
        (["model.pt", "-o", "x.pt", "--device", "abacus"], "--device cpu"),
        (["model.pt", "-o", "x.pt", "--strategy", "hope"], "untangle"),
        (["model.pt", "-o", "x.pt", "--wrong"], "--help"),
        (["model.pt", "-o", "x.pt", "--input", "1x4x8x8"], "1x4x8x8"),
        (["verify", "model.pt"], "--help"),
    ],
)
def test_what_cannot_run_says_so_in_one_line(arguments: list[str], words: str, folder: Path, capsys: Any) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err and err.startswith("canonize: ")
    assert os.listdir() == ["model.pt"]


def test_debug_shows_the_traceback(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    def burst(*arguments: Any, **options: Any) -> Any:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr("canonize.commands.convert.canonize", burst)
    assert main(["model.pt", "-o", "x.pt"]) == 2
    err = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: inside" in err and "--debug" in err and err.count("\n") == 1
    assert main(["model.pt", "-o", "x.pt", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_model_gets_the_inputs_and_options_asked_for(folder: Path, monkeypatch: Any) -> None:
    seen: dict[str, Any] = {}

    def spy(model: nn.Module, inputs: Inputs, **options: Any) -> Any:
        seen.update(options, inputs=inputs.describe())
        raise canonize.CaptureError("enough")

    monkeypatch.setattr("canonize.commands.convert.canonize", spy)
    options = ["--strategy", "untangle", "--skip", "a", "--skip", "b*", "--no-verify", "-i", "1x3x8x8"]
    assert main(["model.pt", "-o", "x.pt", *options]) == 2
    assert seen["strategy"] == "untangle" and seen["skip"] == ("a", "b*") and seen["verify"] is False
    assert seen["inputs"] == "1x3x8x8 float32" and seen["progress"] is None


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a job in the background
import canonize.export.pt as pt
def check(*rest, **more):
    print("writing", flush=True)
    time.sleep(3600)
pt.check = check
from canonize.cli import main
sys.exit(main(["model.pt", "-o", "out.pt", "--input", "1x3x8x8", "-q"]))
"""


def test_interrupting_leaves_nothing(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "writing\n", process.stderr.read()
    assert len(os.listdir()) == 2  # the file under its passing name
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and err == "canonize: interrupted; nothing was written\n"
    assert os.listdir() == ["model.pt"]


def test_patterns_are_listed(capsys: Any) -> None:
    from canonize.forms import FORMS
    from canonize.patterns import catalogue

    assert main(["patterns"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(catalogue()) + len(FORMS)
    for pattern, line in zip(catalogue(), lines, strict=False):
        assert pattern.name in line and pattern.summary in line and pattern.strategy in line
    for form, line in zip(FORMS, lines[len(catalogue()) :], strict=True):
        assert form.name in line and form.summary in line and "--form" in line


def test_a_form_is_asked_for_by_name(tmp_path: Path, capsys: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    torch.save(model, tmp_path / "m.pt")
    asked = ["--form", "batch_norm_as_convolution", "--input", "1x3x8x8", "--dry-run"]
    assert main([str(tmp_path / "m.pt"), *asked]) == 0
    assert "last resort" in capsys.readouterr().out
    assert main([str(tmp_path / "m.pt"), "--form", "nothing", "--dry-run"]) == 2
    assert "there is no form" in capsys.readouterr().err
