"""What an installation must be able to do, extra by extra: ``python check.py [EXTRA ...]``, a line of JSON for each.

It runs inside an environment that `tests.environments.make` made, from any folder, and needs nothing but what is
installed there. Where an extra is not named, its features must refuse in one line that names it.
"""

from __future__ import annotations

import contextlib
import io
import json
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import canonize
from canonize import cli

EXTRAS = ("zoo", "onnx", "explain", "evaluate", "search")
LIBRARIES = ("torch", "numpy", "typer", "zennit", "captum", "onnxruntime")
CHECKS: dict[str, list[tuple[str, Callable[[Path], None]]]] = {"": [], **{extra: [] for extra in EXTRAS}}


class Residual(nn.Module):
    """What fx can trace: BatchNorm behind a convolution, and before a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.dense = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        y = torch.relu(self.norm(self.first(x)))
        return self.dense(torch.relu(self.second(y) + y).mean((2, 3)))


class Casting(nn.Module):
    """What torch.export alone captures, as its forward asks for a storage."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """A map."""
        y = self.first(x)
        scale = 1.0 if torch.is_floating_point(y) and len(list(y.unbind(1))) == 4 else 2.0
        return self.norm(y) * scale


def trained(model: nn.Module) -> nn.Module:
    """A model with statistics that are no identity."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def check(extra: str = "") -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Put a function among the checks of an extra; "" is the base installation."""

    def put(function: Callable[[Path], None]) -> Callable[[Path], None]:
        CHECKS[extra].append((function.__name__.replace("_", " "), function))
        return function

    return put


def command(*arguments: object, code: int = 0) -> str:
    """Run a command of canonize in this process; fail where it does not answer `code`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = cli.main([str(a) for a in arguments])
    if found != code:
        raise AssertionError(
            f"canonize {' '.join(map(str, arguments))}: exit {found}: {err.getvalue() or out.getvalue()}"
        )
    return out.getvalue() + err.getvalue()


def saved(folder: Path) -> Path:
    """A model in a file, made of torch's classes alone."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.save(trained(model.append(nn.Linear(4, 3))), folder / "model.pt")
    return folder / "model.pt"


@check()
def help_answers(folder: Path) -> None:
    """Every command has a page."""
    done = subprocess.run([sys.executable, "-m", "canonize", "--help"], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0 and "--output" in done.stdout, done.stderr
    for name in ("inspect", "verify", "explain", "patterns", "evaluate", "search"):
        assert "Usage" in command(name, "--help")
    command("patterns")


@check()
def a_graph_of_fx(folder: Path) -> None:
    """Captured by tracing, canonical, equivalent."""
    canonical = canonize.canonize(trained(Residual()), torch.rand(2, 3, 8, 8))
    assert canonical.report.canonical and canonical(torch.rand(5, 3, 8, 8)).shape == (5, 3)


@check()
def a_graph_of_torch_export(folder: Path) -> None:
    """Captured by torch.export, with a free batch size."""
    from canonize.capture.export_trace import export_trace
    from canonize.inputs import normalise

    model = trained(Casting())
    captured = export_trace(model, normalise((torch.rand(2, 1, 8, 8),)))
    graph = torch.fx.GraphModule(captured.root, captured.graph)
    for batch in (1, 2, 5):
        inputs = torch.rand(batch, 1, 8, 8)
        torch.testing.assert_close(graph(inputs), model(inputs))


@check()
def files_and_folders(folder: Path) -> None:
    """A file in; ``.pt``, ``.pt2`` and a folder out; each is the same function."""
    model = saved(folder)
    for name in ("canonical.pt", "canonical.pt2", "readable"):
        command(model, "-o", folder / name, "--input", "2x3x8x8", "--report", folder / "report.json")
        command("verify", model, folder / name, "--input", "2x3x8x8", "--trust")
    command("inspect", model, "--input", "2x3x8x8", code=1)


@check()
def inputs_as_npy(folder: Path) -> None:
    """numpy is there."""
    import numpy

    numpy.save(folder / "inputs.npy", torch.rand(2, 3, 8, 8).numpy())
    command(saved(folder), "--dry-run", "--inputs", folder / "inputs.npy")


@check()
def torchscript(folder: Path) -> None:
    """A scripted model in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.load(saved(folder), weights_only=False)), folder / "script.pt")
    command(folder / "script.pt", "-o", folder / "unscripted.pt", "--input", "2x3x8x8", "--trust")


@check("zoo")
def a_model_of_torchvision(folder: Path) -> None:
    """By name."""
    command("torchvision:resnet18", "--dry-run", "--input", "1x3x32x32")


@check("zoo")
def a_model_of_timm(folder: Path) -> None:
    """By name."""
    command("timm:resnet10t", "--dry-run", "--input", "1x3x32x32")


@check("onnx")
def onnx_out(folder: Path) -> None:
    """A graph for other runtimes."""
    command(saved(folder), "-o", folder / "out.onnx", "--input", "2x3x8x8")
    command("verify", folder / "model.pt", folder / "out.onnx", "--input", "2x3x8x8")


@check("onnx")
def onnx_in(folder: Path) -> None:
    """Read, canonized, written again; on Python 3.10 refused with the reason."""
    command(saved(folder), "-o", folder / "in.onnx", "--input", "2x3x8x8")
    if sys.version_info < (3, 11):
        assert "Python 3.11" in command(folder / "in.onnx", "--dry-run", code=2)
    else:
        command(folder / "in.onnx", "-o", folder / "again.onnx", "--input", "2x3x8x8")


@check("explain")
def rules_of_zennit(folder: Path) -> None:
    """A composite on a canonical model, and the canonizer inside zennit's own."""
    from canonize.explain import attribute
    from canonize.explain.zennit import Canonizer

    inputs = torch.rand(2, 3, 8, 8)
    found = attribute(canonize.canonize(trained(Residual()), inputs), inputs, method="epsilon-plus")
    from zennit.composites import EpsilonPlus

    model = trained(Residual())
    inputs.requires_grad_()
    with EpsilonPlus(canonizers=[Canonizer(inputs)]).context(model) as within:
        within(inputs)[:, 0].sum().backward()
    assert bool(inputs.grad.isfinite().all()) and bool(found.relevance.isfinite().all())


@check("explain")
def methods_of_captum(folder: Path) -> None:
    """LRP and DeepLIFT."""
    from canonize.explain import attribute
    from canonize.explain.methods import METHODS

    inputs = torch.rand(2, 3, 8, 8)
    canonical = canonize.canonize(trained(Residual()), inputs)
    for method in (m for m in METHODS if m.kind == "captum"):
        assert bool(attribute(canonical, inputs, method=method.name).relevance.isfinite().all())


@check("explain")
def pictures_and_arrays(folder: Path) -> None:
    """``canonize explain``: a picture in; a picture, HDF5 and an array out."""
    from PIL import Image

    Image.new("RGB", (16, 16), (90, 40, 200)).save(folder / "in.png")
    outputs = [part for name in ("out.png", "out.h5", "out.npy") for part in ("-o", folder / name)]
    command("explain", saved(folder), folder / "in.png", "--input", "1x3x16x16", *outputs)


@check("evaluate")
def a_small_evaluation(folder: Path) -> None:
    """Metrics, tables, one page; inpainting among them."""
    metrics = "sparseness,rank-accuracy,region-perturbation:inpainting"
    command(
        *("evaluate", "shipped:vgg", "--data", "digits", "--samples", 2, "--seeds", 1, "-o", folder / "evaluation"),
        *("--metric", metrics, "--method", "epsilon-plus"),
    )


@check("search")
def a_small_search(folder: Path) -> None:
    """Three trials."""
    command(
        *("search", "shipped:vgg", "--data", "digits", "--samples", 2, "--trials", 3, "-o", folder / "search"),
        *("--objective", "mass-accuracy"),
    )


# What is asked of an extra that is not there: the answer must be one line that names it.
REFUSED: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "zoo": lambda folder: ("timm:resnet10t", "--dry-run"),
    "onnx": lambda folder: (saved(folder), "-o", folder / "refused.onnx", "--input", "2x3x8x8"),
    "explain": lambda folder: ("explain", saved(folder), folder / "no.png", "-o", folder / "refused.png"),
    "evaluate": lambda folder: ("evaluate", "shipped:vgg", "--data", "digits", "-o", folder / "refused"),
    "search": lambda folder: ("search", "shipped:vgg", "--data", "digits", "-o", folder / "refused"),
}


def refuses(extra: str, folder: Path) -> None:
    """A feature says which extra it takes."""
    said = command(*REFUSED[extra](folder), code=2)
    assert said.count("\n") == 1 and f"[{extra}]" in said, said


def main(extras: list[str]) -> int:
    """Run the checks of the base installation and of these extras; 1 if one fails."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    print(json.dumps({"versions": versions, "extras": extras}), flush=True)
    # An extra brings those that it is built on.
    there = {
        *extras,
        *(["explain"] if {"evaluate", "search"} & set(extras) else []),
        *(["evaluate"] if "search" in extras else []),
    }
    asked: list[tuple[str, str, Any]] = [("", *c) for c in CHECKS[""]]
    for extra in EXTRAS:
        asked += [(extra, *c) for c in CHECKS[extra]] if extra in there else [(extra, "refuses", None)]
    failed = 0
    for extra, name, function in asked:
        problem = ""
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                function(Path(folder)) if function else refuses(extra, Path(folder))
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"[:1000]
        failed += bool(problem)
        print(json.dumps({"extra": extra, "check": name, "problem": problem}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main(sys.argv[1:]))
