"""Export: a file that loads elsewhere and computes the same, or no file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, fx, nn

import canonize.export as export
from canonize.errors import ExportError
from canonize.export import check_output, loader_snippet, save
from canonize.export.reload import largest_error
from canonize.report import Report

X = torch.randn(1, 3, 16, 16)


def graph() -> fx.GraphModule:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    traced = fx.symbolic_trace(model.eval())
    traced.report = Report("Sequential")  # type: ignore[assignment]
    return traced


@pytest.fixture
def clean(tmp_path: Path) -> Any:
    yield tmp_path
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_pt_loads_elsewhere_by_its_own_two_lines(clean: Path) -> None:
    model = graph()
    saved = save(model, clean / "g.pt", example_inputs=X)
    torch.save(X, clean / "x.pt")
    script = (
        f"{saved.loader}\nimport torch\nx = torch.load('x.pt')\ntorch.save(model(x), 'y.pt')\nprint(model.report.model)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(export.__file__).parents[2])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=clean, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "Sequential\n"
    assert torch.allclose(torch.load(clean / "y.pt"), model(X))


SIZE = "the file takes inputs of size {} only: convert again for another"


@pytest.mark.parametrize("batch", [1, 5])
def test_pt2_keeps_the_batch_size_free(clean: Path, batch: int) -> None:
    model = graph()
    saved = save(model, clean / "g.pt2", example_inputs=X)
    assert saved.notes == (SIZE.format("16x16"),) and "torch.export.load" in saved.loader
    x = torch.randn(batch, 3, 16, 16)
    assert torch.allclose(torch.export.load(clean / "g.pt2").module()(x), model(x), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 5])
def test_onnx_keeps_the_batch_size_free(clean: Path, batch: int) -> None:
    import onnxruntime

    model = graph()
    saved = save(model, clean / "g.onnx", example_inputs=X)
    assert saved.notes == (SIZE.format("16x16"),) and [p.name for p in clean.iterdir()] == ["g.onnx"]
    x = torch.randn(batch, 3, 16, 16)
    session = onnxruntime.InferenceSession(str(clean / "g.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert numpy.allclose(found, model(x).detach().numpy(), atol=1e-6)


class Fixed(nn.Module):
    """Works for two samples alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(2, -1)


class Several(nn.Module):
    """Two inputs, one by keyword, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor, code: Tensor) -> dict[str, Tensor]:
        return {"image": self.conv(image).mean((2, 3)) + code, "code": code * 2}


@pytest.mark.parametrize("ending", [".pt", ".pt2", ".onnx"])
def test_several_inputs_and_outputs(ending: str, clean: Path) -> None:
    inputs = ((torch.randn(2, 3, 8, 8),), {"code": torch.randn(2, 4)})
    notes = save(fx.symbolic_trace(Several()), clean / f"g{ending}", example_inputs=inputs).notes
    assert notes == (() if ending == ".pt" else (SIZE.format("8x8"),))


def test_a_fixed_batch_size_is_said(clean: Path) -> None:
    saved = save(fx.symbolic_trace(Fixed()), clean / "g.pt2", example_inputs=torch.randn(2, 3, 4, 4))
    assert "batch size is fixed" in saved.notes[0]


def test_inputs_are_inferred_where_none_are_given(clean: Path) -> None:
    assert save(graph(), clean / "g.pt").notes == ()
    picky = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(51 * 77, 1)))
    assert "by its weights alone" in save(picky, clean / "p.pt").notes[0]
    with pytest.raises(ExportError, match="example inputs"):
        save(picky, clean / "p.pt2")


def old_file(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(b"older")
    return path


def test_a_class_that_nobody_can_import_leaves_the_older_file(clean: Path) -> None:
    class Local(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    path = old_file(clean, "g.pt")
    with pytest.raises(ExportError, match="cannot be pickled"):
        save(Local(), path, example_inputs=X)
    Local.__module__, Local.__qualname__ = "__main__", "Local"
    sys.modules["__main__"].Local = Local  # type: ignore[attr-defined]
    try:
        with pytest.raises(ExportError, match=r"fresh process.*Local"):
            save(Local(), path, example_inputs=X)
    finally:
        del sys.modules["__main__"].Local  # type: ignore[attr-defined]
    assert path.read_bytes() == b"older"


class Drifting(nn.Conv2d):
    """Computes something else once it was pickled."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        with torch.no_grad():
            self.weight.mul_(1.001)


@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_computes_something_else_is_refused(clean: Path, known: bool, monkeypatch: Any) -> None:
    path = old_file(clean, "g.pt")
    here = sys.modules[Drifting.__module__]
    (clean / "drifting_for_tests.py").write_text(Path(str(here.__file__)).read_text())
    monkeypatch.syspath_prepend(str(clean))
    monkeypatch.setitem(sys.modules, "drifting_for_tests", here)
    monkeypatch.setattr(Drifting, "__module__", "drifting_for_tests")
    with pytest.raises(ExportError, match="something else"):
        save(Drifting(3, 2, 1), path, example_inputs=X if known else None)
    assert path.read_bytes() == b"older"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("stage", ["write", "check"])
def test_interruption_leaves_nothing_behind(clean: Path, error: type, stage: str, monkeypatch: Any) -> None:
    def stop(model: nn.Module, path: Path, *rest: Any, **more: Any) -> None:
        path.write_bytes(b"half")
        path.with_name(path.name + ".data").write_bytes(b"half")
        raise error

    path = old_file(clean, "g.pt")
    monkeypatch.setattr(export.pt, stage, stop)
    with pytest.raises(error):
        save(graph(), path, example_inputs=X)
    assert [p.name for p in clean.iterdir()] == ["g.pt"] and path.read_bytes() == b"older"


@pytest.mark.parametrize(
    ("name", "message"),
    [("g.pkl", "ending .pkl"), ("absent/g", "no folder"), ("absent/g.pt", "no folder"), ("there.pt", "is a folder")],
)
def test_bad_destinations_are_refused_early(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "there.pt").mkdir()
    with pytest.raises(ExportError, match=message):
        check_output(tmp_path / name)


def test_loader_lines() -> None:
    assert loader_snippet("a.pt") == "import canonize\nmodel = canonize.load('a.pt')"
    assert loader_snippet(Path("a.onnx")).endswith("InferenceSession('a.onnx')")


def test_errors_are_measured_against_the_scale() -> None:
    a = torch.tensor([1000.0, 1.0])
    error, allowed = largest_error([a], [a + torch.tensor([0.1, 0.0])])
    assert error == pytest.approx(1e-4, rel=1e-3)
    assert allowed == 1e-4
    assert largest_error([a], [a[:1]])[0] == float("inf")
    assert largest_error([a], [torch.tensor([float("nan"), 1.0])])[0] == float("inf")
    nan = torch.tensor([float("nan"), 1.0])
    assert largest_error([nan], [nan.clone()])[0] == 0.0
    assert largest_error([torch.tensor([1, 2])], [torch.tensor([1, 3])])[1] == 0.0
    close, far = (a, a), (a, a + 1)
    assert largest_error(list(close), list(far))[0] == pytest.approx(1e-3)
