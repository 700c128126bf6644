"""Where files are written, what a killed writer leaves there, and with what inputs."""

from __future__ import annotations

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
from canonize.errors import ExportError, LoadError
from canonize.export import atomic

ROOT = Path(__file__).resolve().parents[2]


class Rows(nn.Module):
    """Takes (batch, 1, 3): what is guessed for a linear layer is of another rank."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(1), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x))


def graph(model: nn.Module | None = None, *shape: int, dtype: torch.dtype = torch.float32) -> Any:
    net = (model or Rows()).to(dtype).eval()
    return canonize.canonize(net, torch.randn(shape or (2, 1, 3), dtype=dtype))


@pytest.mark.parametrize("name", ["g.pt", "g.pt2", "g"])
def test_a_symbolic_link_is_written_through(name: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / f"other{Path(name).suffix}", tmp_path / name
    link.symlink_to(target)
    for _ in range(2):  # a link that leads nowhere, then one to what was written
        canonize.save(graph(), link)
        assert link.is_symlink() and target.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["elsewhere", name])
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == [target.name]


KILLED = """
import sys, torch, canonize
import canonize.export.pt as pt, canonize.export.readable_folder as folder
def check(*rest, **more):
    print("writing", flush=True)
    sys.stdin.read()
pt.check = folder.check = check
m = torch.nn.Sequential(torch.nn.Linear(3, 4)).eval()
canonize.save(canonize.canonize(m, torch.randn(2, 3)), sys.argv[1])
"""


@pytest.mark.parametrize("name", ["g.pt", "g"])
def test_what_a_killed_writer_leaves_is_removed_by_the_next(name: str, tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, name], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".g.")
    canonize.save(graph(), tmp_path / name)
    assert left.exists(), "its writer is still at it"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    (tmp_path / ".g.12345678.npy").write_text("somebody else's")
    canonize.save(graph(), tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([".g.12345678.npy", name])


def test_an_older_folder_that_was_taken_away_is_put_back(tmp_path: Path) -> None:
    nobody = subprocess.Popen([sys.executable, "-c", ""])
    nobody.wait()
    older = tmp_path / f".g.canonize-{atomic._MACHINE}-{nobody.pid}-01234567.older"
    older.mkdir()
    (older / "model.py").write_text("older")

    def fails(passing: Path) -> None:
        raise KeyError("no")

    with pytest.raises(KeyError):
        atomic.write_whole(tmp_path / "g", fails, fails)
    assert (tmp_path / "g" / "model.py").read_text() == "older"


def test_hidden_files_are_not_suggested(tmp_path: Path) -> None:
    (tmp_path / ".o.12345678.pt").write_text("left behind")
    (tmp_path / "model.pt").write_text("a model")
    with pytest.raises(LoadError) as caught:
        canonize.load(tmp_path / "mode.pt")
    assert f"Did you mean {tmp_path / 'model.pt'}?" in str(caught.value)
    assert ".o.12345678.pt" not in str(caught.value)


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_inputs_are_those_of_the_conversion(ending: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime") if ending == "onnx" else None
    first = graph()
    assert canonize.save(first, tmp_path / "first.pt").notes == ()
    for number, model in enumerate((first, canonize.load(tmp_path / "first.pt"))):
        file = tmp_path / f"{number}.{ending}"
        saved = canonize.save(model, file)
        assert any("size 3 only" in note for note in saved.notes)
        loaded = canonize.load(file)
        x = torch.randn(3, 1, 3)
        torch.testing.assert_close(loaded(x), first(x))
    assert all(t.is_meta for t in first.seen_inputs.tensors()), "shapes, not values"


def test_a_file_that_onnx_runtime_cannot_run_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    wide = graph(nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU()), 2, 1, 5, dtype=torch.float64)
    with pytest.raises(ExportError, match=r"few operators in float64.*model\.float\(\)"):
        canonize.save(wide, tmp_path / "wide.onnx")
    assert not list(tmp_path.iterdir())
