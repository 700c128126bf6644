"""Thirty well-formed files, over all formats in and out, load, canonize, save, reload elsewhere and verify."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

import canonize
from canonize.cli import main
from canonize.compat import import_torchvision
from tests.statistics import harden

vision = import_torchvision("torchvision.models")
timm = import_torchvision("timm")

FACTORIES = """
import torch
from torch import nn
from torchvision.models import DenseNet
import timm

def densenet():
    return DenseNet(4, (2, 1), 8, num_classes=3)

def chain():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.Flatten(),
        nn.Linear(180, 2))

def late():
    head = [nn.Hardtanh(), nn.Flatten(), nn.Linear(256, 2)]
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), *head)

def resnet():
    return timm.create_model("test_resnet", num_classes=3)

def seeded():
    torch.manual_seed(0)
    return chain()
"""
BUILDS: dict[str, tuple[Callable[[], nn.Module], int]] = {}
exec(FACTORIES.replace("from torchvision.models import DenseNet", "").replace("import timm", ""), globals_ := {
    "DenseNet": vision.DenseNet, "timm": timm})  # fmt: skip
for _name, _side in {"densenet": 32, "chain": 8, "late": 8, "resnet": 32}.items():
    BUILDS[_name] = (globals_[_name], _side)


def whole(model: nn.Module, path: Path, side: int) -> list[str]:
    torch.save(model, path)
    return []


def state(model: nn.Module, path: Path, side: int) -> list[str]:
    torch.save({"state_dict": model.state_dict(), "epoch": 1}, path)
    return ["--arch", "round_trip_factories:{name}"]


def legacy(model: nn.Module, path: Path, side: int) -> list[str]:
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    return ["--arch", "round_trip_factories:{name}"]


def tensors(model: nn.Module, path: Path, side: int) -> list[str]:
    safetensors.torch.save_file(model.state_dict(), path)
    return ["--arch", "round_trip_factories:{name}"]


def program(model: nn.Module, path: Path, side: int) -> list[str]:
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, side, side),), dynamic_shapes=shapes), path)
    return []


def graph(model: nn.Module, path: Path, side: int) -> list[str]:
    options: dict[str, Any] = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}, "do_constant_folding": False}
    mode, silence = torch.onnx.TrainingMode.PRESERVE, io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.randn(2, 3, side, side),), path, dynamo=False, training=mode, **options)
    return []


def canonical(model: nn.Module, path: Path, side: int) -> list[str]:
    x = torch.randn(2, 3, side, side)
    canonize.save(canonize.canonize(model, x, verify=False), path, example_inputs=x)
    return []


# In which format, which model, and in which format it goes out.
TABLE = [
    (whole, "m.pt", "densenet", "out.pt"),
    (whole, "m.pt", "densenet", "out.pt2"),
    (whole, "m.pt", "densenet", "out.onnx"),
    (whole, "m.pt", "densenet", "out"),
    (whole, "m.pth", "chain", "out.pth"),
    (whole, "m.bin", "late", "out.onnx"),
    (whole, "m.pt", "late", "out"),
    (whole, "m.pt", "resnet", "out.onnx"),
    (whole, "m.pt", "resnet", "out"),
    (state, "m.pth", "densenet", "out.onnx"),
    (state, "m.pth", "chain", "out.pt"),
    (state, "m.bin", "resnet", "out.onnx"),
    (state, "m.ckpt", "late", "out.onnx"),
    (legacy, "m.pth", "chain", "out.onnx"),
    (legacy, "m.pth", "densenet", "out.pt"),
    (tensors, "m.safetensors", "densenet", "out.onnx"),
    (tensors, "m.safetensors", "chain", "out.pt"),
    (tensors, "m.safetensors", "late", "out"),
    (program, "m.pt2", "densenet", "out.onnx"),
    (program, "m.pt2", "chain", "out.pt"),
    (program, "m.pt2", "late", "out.pt2"),
    (program, "m.pt2", "resnet", "out.onnx"),
    (graph, "m.onnx", "densenet", "out.onnx"),
    (graph, "m.onnx", "chain", "out.pt"),
    (graph, "m.onnx", "late", "out.onnx"),
    (graph, "m.onnx", "chain", "out"),
    (canonical, "m.pt", "densenet", "out.onnx"),
    (canonical, "m.pt2", "chain", "out.onnx"),
    (canonical, "m.onnx", "late", "out.onnx"),
    (canonical, "m.pt", "late", "out.pt"),
]


def provenance(out: Path) -> dict[str, Any]:
    """What travels in a file, read by the means of its format."""
    if out.is_dir():
        with safe_open(out / "model.safetensors", "pt") as file:
            return {key: json.loads(value) for key, value in file.metadata().items() if value[:1] in "{["}
    if out.suffix == ".onnx":
        kept = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
        found: dict[str, Any] = json.loads(kept["canonize"])
        return found
    if out.suffix == ".pt2":
        extra = {"canonize.json": ""}
        torch.export.load(out, extra_files=extra)
        return dict(json.loads(extra["canonize.json"]))
    report = canonize.load(out).report
    assert isinstance(report, canonize.Report)
    return report.to_dict()


def test_there_are_thirty() -> None:
    assert len(TABLE) == len(set(TABLE)) == 30
    assert {Path(name).suffix for _, name, _, _ in TABLE} >= {".pt", ".pth", ".bin", ".safetensors", ".pt2", ".onnx"}
    assert {Path(out).suffix for _, _, _, out in TABLE} == {".pt", ".pth", ".pt2", ".onnx", ""}


@pytest.mark.parametrize(("make", "name", "build", "out"), TABLE, ids=lambda v: getattr(v, "__name__", v))
def test_in_canonized_out_and_verified(
    make: Any, name: str, build: str, out: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    import hashlib

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "round_trip_factories", raising=False)
    Path("round_trip_factories.py").write_text(FACTORIES)
    factory, side = BUILDS[build]
    torch.manual_seed(0)
    options = [o.format(name=build) for o in make(harden(factory().eval(), 0), Path(name), side)]
    shape = ["--input", f"2x3x{side}x{side}"]
    # The verdict is the second command's, on the file that was written.
    assert main([name, "-o", out, *options, *shape, "-q", "--no-verify"]) == 0, capsys.readouterr().err
    # Reading one's own code, as a folder's is, takes --trust; everything else is read without.
    trust = ["--trust"] if out == "out" else []
    assert main(["verify", name, out, *options, *shape, *trust]) == 0, capsys.readouterr()
    known = provenance(tmp_path / out)
    assert known["source"] == {"name": name, "sha256": hashlib.sha256(Path(name).read_bytes()).hexdigest()}
    assert known["versions"]["torch"] == str(torch.__version__) and "names" in known and "rewrites" in known
