"""A library that is missing is named in one line, before the work, with a command that brings it."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from canonize import cli
from canonize.compat import EXTRA_OF, extras, install_command, need, require
from canonize.errors import ExportError, InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
DIGITS = str(ROOT / "examples" / "digits" / "densenet.pt")


def _installed_from(monkeypatch, **origin):
    class Distribution:
        @staticmethod
        def read_text(name: str) -> str | None:
            return json.dumps(origin) if origin else None

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({}, "pip install 'canonize[zoo]'"),
        ({"url": "file:///home/me/my%20code", "dir_info": {}}, "pip install '/home/me/my code[zoo]'"),
        ({"url": "file:///home/me/c", "dir_info": {"editable": True}}, "pip install -e '/home/me/c[zoo]'"),
        ({"url": "file:///c-0.1.0.whl", "archive_info": {}}, "pip install 'canonize[zoo] @ file:///c-0.1.0.whl'"),
        (
            {"url": "https://host/c.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip install 'canonize[zoo] @ git+https://host/c.git@abc'",
        ),
    ],
    ids=["index", "folder", "editable", "wheel", "repository"],
)
def test_the_command_extends_the_installation_that_there_is(monkeypatch, origin, command):
    _installed_from(monkeypatch, **origin)
    assert install_command("zoo") == command


def test_every_extra_brings_what_the_table_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for module, extra in EXTRA_OF.items():
        package = extras.PACKAGE.get(module, module)
        assert any(line.startswith(package) for line in project[extra]), f"{extra} does not bring {package}"


@pytest.fixture
def without(monkeypatch):
    """Make libraries look as if they were not installed."""

    def hide(*names: str) -> None:
        there = extras.is_installed
        monkeypatch.setattr(extras, "is_installed", lambda package: package not in names and there(package))
        _installed_from(monkeypatch)

    return hide


def test_all_that_is_missing_is_named_at_once(without):
    without("onnx", "onnxscript")
    with pytest.raises(ExportError) as caught:
        need(("onnx", "onnxscript", "onnxruntime"), "writing ONNX", where="a.onnx", error=ExportError)
    assert str(caught.value) == (
        "a.onnx: writing ONNX takes onnx and onnxscript, which are not installed. "
        "The extra canonize[onnx] brings them; run: pip install 'canonize[onnx]'"
    )


def test_an_extra_that_cannot_help_is_not_recommended(without, monkeypatch):
    without("onnx2fx")
    monkeypatch.setattr(extras.sys, "version_info", (3, 10, 13))
    with pytest.raises(InputError, match=r"needs Python 3\.11 or newer \(this is 3\.10\)") as caught:
        need(("onnx", "onnx2fx"), "reading ONNX files")
    assert "pip install" not in str(caught.value)


def test_a_library_of_no_extra_is_installed_by_its_own_name():
    with pytest.raises(InputError, match=r"Run: pip install nosuchlibrary$") as caught:
        require("nosuchlibrary.part", "a cluster", extra="evaluate")
    assert "canonize[" not in str(caught.value)


# What is asked for, what is missing, and the extra that must be named. None of these may begin to work.
CASES = {
    "zoo": (["timm:resnet18", "-o", "a.pt"], ["timm"], "zoo"),
    "zoo torchvision": (["torchvision:resnet18", "--dry-run"], ["torchvision"], "zoo"),
    "onnx out": (["nosuch.pt", "-o", "a.onnx"], ["onnxscript"], "onnx"),
    "onnx in": (["verify", "nosuch.pt", "b.onnx"], ["onnxruntime"], "onnx"),
    "explain": (["explain", "nosuch.pt", "a.png", "-o", "b.h5"], ["h5py"], "explain"),
    "explain drawn": (["explain", "nosuch.pt", "a.png", "-o", "b.png"], ["matplotlib"], "explain"),
    "explain pictures": (["explain", "nosuch.pt", "a.png", "-o", "b.npy"], ["PIL"], "explain"),
    "captum": (["inspect", "nosuch.pt", "--for", "captum"], ["captum"], "explain"),
    "evaluate": (["evaluate", "nosuch.pt", "--data", "digits"], ["pandas", "skimage"], "evaluate"),
    "search": (["search", "nosuch.pt", "--data", "digits"], ["optuna"], "search"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_command_says_so_before_the_work(case, without, capsys, monkeypatch, tmp_path):
    arguments, missing, extra = CASES[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    without(*missing)
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"pip install 'canonize[{extra}]'" in said and "::" not in said
    assert not [path for path in tmp_path.iterdir() if path.name != "a.png"]


def test_an_unknown_ending_is_refused_before_anything_is_loaded(capsys, tmp_path):
    assert cli.main(["nosuch.pt", "-o", str(tmp_path / "a.xyz")]) == 2
    assert "the ending .xyz is unknown" in capsys.readouterr().err


def test_nothing_of_an_extra_is_needed_to_convert(tmp_path):
    """In a process where no library of an extra can be found: a model, a folder, a report."""
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval(), tmp_path / "a.pt")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(EXTRA_OF)!r})); from canonize.cli import main;"
        "more = ['--input', '2x3', '--trust'];"
        "sys.exit(main(['a.pt', '-o', 'folder', *more]) or main(['inspect', 'folder', *more]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
