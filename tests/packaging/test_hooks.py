"""The pre-commit hooks, run as pre-commit does: the entry taken apart, then the arguments, in a repository's folder."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.packaging.built import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HOOKS = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}


def run(hook: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a hook on no files, as `pass_filenames: false` says."""
    assert HOOKS[hook]["language"] == "python" and HOOKS[hook]["pass_filenames"] is False
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [*shlex.split(HOOKS[hook]["entry"]), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 2)).eval(), tmp_path / "a.pt")
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).eval(), tmp_path / "b.pt")
    return tmp_path


def test_verify(models: Path) -> None:
    assert run("canonize-verify", ["a.pt", "a.pt", "--input", "2x3", "--quick"], models).returncode == 0
    assert run("canonize-verify", ["a.pt", "b.pt", "--input", "2x3", "--quick"], models).returncode == 1


def test_inspect(models: Path) -> None:
    assert run("canonize-inspect", ["a.pt", "--input", "2x3"], models).returncode == 0
    assert run("canonize-inspect", ["b.pt", "--input", "2x3"], models).returncode == 1


@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_hook_installs_is_what_the_extras_say(hook: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {*extras["zoo"], *(line for line in extras["onnx"] if not line.startswith("onnxscript"))}
    assert set(HOOKS[hook]["additional_dependencies"]) == wanted
