"""What type checkers see of the result, and that copies, pickles and files are of its class and keep the report."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import fx, nn

import canonize
from canonize import CanonicalModel
from canonize.report import Report
from tests.statistics import harden

ROOT = Path(__file__).resolve().parents[1]
X = torch.randn(2, 3, 8, 8)

GOOD = """\
import torch
import canonize
from torch import fx, nn
from canonize.report import Report

model = canonize.canonize(nn.Sequential(nn.Linear(2, 2)), torch.rand(1, 2))
report: Report = model.report
print(model.report.count("absorbed"), canonize.nn.ThreshReLU, canonize.patterns.PATTERNS, canonize.errors.CanonizeError)
graph: fx.GraphModule = model
again: canonize.CanonicalModel = model
print(canonize.explain, canonize.evaluate, canonize.search, canonize.forms, canonize.verify, canonize.inputs)
"""
BAD = """\
import canonize

canonize.nonsense()
"""


def checked(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "used.py"
    file.write_text(text)
    options = ["--strict", "--follow-imports=silent", "--explicit-package-bases", "--config-file", os.devnull]
    return subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--cache-dir", str(folder / "cache"), str(file)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT)},
    )


def test_a_strict_checker_knows_the_report_and_refuses_names_that_there_are_not(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    good = checked(GOOD, tmp_path)
    assert good.returncode == 0, good.stdout
    bad = checked(BAD, tmp_path)
    assert bad.returncode == 1 and "nonsense" in bad.stdout


@pytest.fixture(scope="module")
def model() -> CanonicalModel:
    return canonize.canonize(nn.Sequential(nn.Conv2d(3, 4, 3), harden(nn.BatchNorm2d(4)), nn.ReLU()).eval(), X)


def _saved(model: CanonicalModel) -> nn.Module:
    held = io.BytesIO()
    torch.save(model, held)
    held.seek(0)
    loaded: nn.Module = torch.load(held, weights_only=False)
    return loaded


WAYS = {
    "itself": lambda model: model,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy of a copy": lambda model: copy.deepcopy(copy.copy(model)),
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": _saved,
    "in a container": lambda model: copy.deepcopy(nn.Sequential(model))[0],
}


@pytest.mark.parametrize("way", WAYS)
def test_copies_are_of_the_class_and_keep_the_report(way: str, model: CanonicalModel) -> None:
    found = WAYS[way](model)
    assert isinstance(found, CanonicalModel) and isinstance(found, fx.GraphModule)
    assert isinstance(found.report, Report) and found.report.count("absorbed") == 1
    assert not found.training
    assert torch.equal(found(X), model(X))


def test_a_copy_in_training_mode_stays_there(model: CanonicalModel) -> None:
    other = copy.deepcopy(model).train()
    assert copy.copy(other).training and pickle.loads(pickle.dumps(other)).training


def test_what_is_read_from_a_file_is_of_the_class(model: CanonicalModel, tmp_path: Path) -> None:
    canonize.save(model, tmp_path / "c.pt", example_inputs=X)
    found = canonize.load(tmp_path / "c.pt")
    assert isinstance(found, CanonicalModel) and found.report.count("absorbed") == 1


def test_the_modules_of_the_package_are_found_by_its_name() -> None:
    program = "import canonize; print(canonize.nn, canonize.patterns, canonize.report, canonize.forms, canonize.errors)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError):
        canonize.nonsense  # noqa: B018
