"""What people really hand over: one clear line on stderr, exit code 2, nothing left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import canonize
import canonize.export.atomic as atomic
from canonize.cli import main
from canonize.compat import import_torchvision
from canonize.errors import ExportError
from canonize.export import save
from tests.test_cli import ENVIRONMENT
from tests.test_export import X, graph

vision = import_torchvision("torchvision.models")
SHAPE = ["--input", "2x3x8x8"]


def net(**broken: float) -> nn.Module:
    """A small network; ``conv=nan`` puts that number into the first weight of a layer."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, layer in {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "act": nn.ReLU()}.items():
        model.add_module(name, layer)
    for name, value in broken.items():
        owner, _, attribute = name.partition("__")
        with torch.no_grad():
            getattr(model.get_submodule(owner), attribute).view(-1)[0] = value
    return model.eval()


def truncated(path: Path) -> None:
    torch.save(net(), path)
    path.write_bytes(path.read_bytes()[:-300])


def state(path: Path) -> None:
    torch.save(net().state_dict(), path)


def script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), str(path))


NAN = float("nan")
ROWS: dict[str, tuple[str, Any, list[str], str]] = {
    "truncated": ("m.pt", truncated, SHAPE, "truncated"),
    "empty": ("m.pt", lambda p: p.write_bytes(b""), SHAPE, "is empty"),
    "text": ("m.pt", lambda p: p.write_text("hello"), SHAPE, "no model file"),
    "a picture": ("m.png", lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50)), SHAPE, "no model file"),
    "a list": ("m.pt", lambda p: torch.save([1], p), SHAPE, "neither a module nor a state dictionary"),
    "an optimizer's state": ("m.pt", lambda p: torch.save({"lr": 1}, p), SHAPE, "keys 'lr'"),
    "a folder": ("m.pt", lambda p: p.mkdir(), SHAPE, "is a folder"),
    "absent": ("m.pt", lambda p: None, SHAPE, "no such file"),
    "weights alone": ("m.pt", state, SHAPE, "--arch"),
    "weights of something else": ("m.pt", state, ["--arch", "torchvision:resnet18"], "102 missing (conv1.weight"),
    "TorchScript": ("m.pt", script, SHAPE, "TorchScript"),
    "NaN in a weight": ("m.pt", lambda p: torch.save(net(conv__weight=NAN), p), SHAPE, "conv.weight: holds NaN in 1"),
    "NaN in a statistic": ("m.pt", lambda p: torch.save(net(bn__running_var=NAN), p), SHAPE, "running_var: holds NaN"),
    "a negative variance": ("m.pt", lambda p: torch.save(net(bn__running_var=-1), p), SHAPE, "bn: its statistics"),
    "complex weights": (
        "m.pt", lambda p: torch.save(nn.Linear(3, 2).to(torch.complex64), p), ["-i", "2x3:complex64"], "are complex",
    ),
    "an integer input": ("m.pt", lambda p: torch.save(net(), p), ["--input", "2x3x8x8:int64"], "does not run"),
    "a complex input": ("m.pt", lambda p: torch.save(net(), p), ["--input", "2x3x8x8:complex64"], "does not run"),
    "a wrong channel count": ("m.pt", lambda p: torch.save(net(), p), ["--input", "2x5x8x8"], "expected input"),
    "an input without size": ("m.pt", lambda p: torch.save(net(), p), ["--input", "0x3x8x8"], "not an input shape"),
    "too many inputs": ("m.pt", lambda p: torch.save(net(), p), [*SHAPE, *SHAPE], "argument"),
    "more memory than there is": (
        "m.pt", lambda p: torch.save(net(), p), ["--input", "2x3x900000x900000"], "not enough memory",
    ),
    "no architecture": ("m.pt", state, ["--arch", "torchvision:resnet19"], "resnet18"),
    "an ending of its own": ("m.pt", lambda p: torch.save(net(), p), ["--inputs", "x.csv"], "read from a .csv"),
    "inputs of NaN": ("m.pt", lambda p: torch.save(net(), p), ["--inputs", "nan.npy"], "hold NaN"),
    "inputs that are none": ("m.pt", lambda p: torch.save(net(), p), ["--inputs", "text.npy"], "read as inputs"),
}  # fmt: skip

# Inspecting computes nothing: such models can be looked at.
COMPUTED = {
    *("NaN in a weight", "NaN in a statistic", "a negative variance", "complex weights"),
    *("an integer input", "a complex input", "a wrong channel count"),
}


@pytest.mark.parametrize("command", ["convert", "inspect"])
@pytest.mark.parametrize("row", list(ROWS))
def test_one_line_and_nothing_left(
    row: str, command: str, tmp_path: Path, monkeypatch: Any, capfd: Any, recwarn: Any
) -> None:
    name, make, options, message = ROWS[row]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    numpy.save("nan.npy", numpy.full((2, 3, 8, 8), NAN, numpy.float32))
    Path("text.npy").write_text("not an array")
    make(Path(name))
    if command == "inspect" and row in COMPUTED:
        return
    before = sorted(os.listdir())
    capfd.readouterr()
    code = main([name, "-o", "out.pt", *options] if command == "convert" else ["inspect", name, *options])
    out, err = capfd.readouterr()
    assert code == 2, out
    assert out == "" and err.startswith("canonize: ") and err.count("\n") == 1, err
    assert message in err and "Traceback" not in err and "--debug" not in err
    assert sorted(os.listdir()) == before


def test_a_file_that_may_not_be_read_or_written(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """The one that runs the tests may be allowed everything: the operating system's answer is simulated."""
    monkeypatch.chdir(tmp_path)
    torch.save(net(), "m.pt")
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK and real(path, mode))
    assert main(["m.pt", "-o", "out.pt", *SHAPE]) == 2
    assert "m.pt: may not be read. Change its permissions" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and real(path, mode))
    for out in ("out.pt", "out.onnx", "folder"):
        assert main(["m.pt", "-o", out, *SHAPE]) == 2
        assert "may not be written" in capsys.readouterr().err
    assert os.listdir() == ["m.pt"]


LIMITED = """
import resource, sys
from canonize.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
sys.exit(main(["m.pt", "-o", sys.argv[1], "--input", "2x3x8x8", "-q"]))
"""


@pytest.mark.parametrize("out", ["out.pt", "out.pt2", "out.onnx", "folder"])
def test_a_full_disk_leaves_nothing(out: str, tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64)).eval(), tmp_path / "m.pt")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, out], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and done.stderr.count("\n") == 1 and f"{out}: writing failed" in done.stderr
    assert "Is the disk full?" in done.stderr or "takes no file so large" in done.stderr
    assert os.listdir(tmp_path) == ["m.pt"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("name", ["g.pt", "g.pt2", "g.onnx", "g"])
def test_a_disk_that_fails_at_the_last_step_leaves_the_older_file(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    older = tmp_path / name
    if "." in name:
        older.write_bytes(b"older")
    else:
        older.mkdir()
        (older / "model.py").write_text("older")

    def fails(passing: Path, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "_put", fails)
    with pytest.raises(OSError):
        save(graph(), older, example_inputs=X)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (older if "." in name else older / "model.py").read_text() == "older"


def test_a_folder_comes_back_if_it_cannot_be_replaced(tmp_path: Path, monkeypatch: Any) -> None:
    older = tmp_path / "g"
    older.mkdir()
    (older / "model.py").write_text("older")
    real = os.replace

    def once(source: Any, target: Any) -> None:
        if Path(target) == older and not str(source).endswith(".older"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises((OSError, ExportError)):
        save(graph(), older, example_inputs=X)
    assert (older / "model.py").read_text() == "older" and [p.name for p in tmp_path.iterdir()] == ["g"]


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a job in the background
from canonize.export import readable_folder, onnx, pt
def check(*rest, **more):
    print("writing", flush=True)
    time.sleep(3600)
pt.check = onnx.check = readable_folder.check = check
from canonize.cli import main
sys.exit(main(["m.pt", "-o", sys.argv[1], "--input", "2x3x8x8", "-q"]))
"""


@pytest.mark.parametrize(
    ("number", "out"), [(signal.SIGINT, "out.onnx"), (signal.SIGTERM, "out.pt"), (signal.SIGTERM, "folder")]
)
def test_a_request_to_end_leaves_nothing(number: signal.Signals, out: str, tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "m.pt")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, out],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "writing\n", process.stderr.read()
    assert len(os.listdir(tmp_path)) > 1  # what is being written, under its passing name
    process.send_signal(number)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and err == "canonize: interrupted; nothing was written\n"
    assert os.listdir(tmp_path) == ["m.pt"]


def test_the_handler_of_signals_is_put_back(tmp_path: Path, capsys: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["patterns"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_complex_weights_are_refused_in_python_too() -> None:
    with pytest.raises(canonize.CanonizeError, match=r"^weight: its weights are complex"):
        canonize.canonize(nn.Linear(2, 2).to(torch.complex64), torch.zeros(1, 2, dtype=torch.complex64))
