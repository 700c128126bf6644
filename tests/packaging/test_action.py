"""The GitHub action, its steps run as their host does: the shell code of each, with the environment that it states."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.packaging.built import ROOT

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="there is no bash")
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())


def run(step: str, inputs: dict[str, str], folder: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one step in a folder; `path` goes in front of PATH."""
    given = {name: str(of.get("default", "")) for name, of in ACTION["inputs"].items()} | inputs
    missing = [name for name, of in ACTION["inputs"].items() if of.get("required") and not given[name]]
    assert not missing, missing
    found: dict[str, Any] = next(s for s in ACTION["runs"]["steps"] if s["name"] == step)

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: given[m[1]], text)

    assert "${{" not in found["run"], "what comes in goes through the environment, or it could be code"
    script = folder / "step.sh"
    script.write_text(found["run"])
    environment = {
        **os.environ,
        **{name: filled(value) for name, value in found["env"].items()},
        "GITHUB_ACTION_PATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "PATH": os.pathsep.join([*([str(path)] if path else []), str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    assert BASH is not None
    # As the runner calls it.
    command = [BASH, "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def recorder(folder: Path, name: str) -> Path:
    """A command that writes down how it was called, an argument a line."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{folder}/called"\n')
    (tools / name).chmod(0o755)
    return tools


def called(folder: Path) -> list[str]:
    return (folder / "called").read_text().splitlines()


MODELS = {"reference": "my models/a.pt", "candidate": "b; touch ran.pt"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "my models").mkdir()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2)).eval()
    torch.save(model, tmp_path / MODELS["reference"])
    torch.save(model, tmp_path / MODELS["candidate"])
    return tmp_path


@pytest.mark.parametrize(
    ("extras", "wanted"),
    [("zoo,onnx", f"{ROOT}[zoo,onnx]"), ("zoo, onnx", f"{ROOT}[zoo,onnx]"), ("", str(ROOT))],
    ids=["two", "spaced", "none"],
)
def test_what_is_installed(extras: str, wanted: str, tmp_path: Path) -> None:
    tools = recorder(tmp_path, "python")
    assert run("Install", {**MODELS, "extras": extras}, tmp_path, tools).returncode == 0
    assert called(tmp_path) == ["-m", "pip", "install", "--quiet", wanted]


def test_builds_for_the_cpu_come_from_an_index_of_their_own(tmp_path: Path) -> None:
    tools = recorder(tmp_path, "python")
    assert run("Install", {**MODELS, "torch-index": "https://some.where/cpu"}, tmp_path, tools).returncode == 0
    assert called(tmp_path)[4:6] == ["--extra-index-url", "https://some.where/cpu"]


def test_equal_models_pass_and_the_verdict_is_in_the_summary(models: Path) -> None:
    done = run("Verify", {**MODELS, "input": "2x3", "arguments": "--quick"}, models)
    assert done.returncode == 0, done.stderr
    assert "equivalent" in (models / "summary.md").read_text()
    assert (models / ACTION["outputs"]["report"]["value"]).exists() and not (models / "ran.pt").exists()


def test_other_models_fail_the_job(models: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 2)).eval(), models / MODELS["candidate"])
    done = run("Verify", {**MODELS, "input": "2x3"}, models)
    assert done.returncode == 1 and (models / "summary.md").exists()


def test_arguments_are_taken_apart_as_at_a_shell_and_run_nothing(tmp_path: Path) -> None:
    tools = recorder(tmp_path, "canonize")
    arguments = "--allow 'my package' --seed 3 \"$(touch ran)\" `touch ran` *"
    done = run("Verify", {**MODELS, "inputs": "real inputs.npy", "arguments": arguments}, tmp_path, tools)
    assert done.returncode == 0, done.stderr
    found = called(tmp_path)
    assert found[:5] == ["verify", *MODELS.values(), "--inputs", "real inputs.npy"]
    assert found[9:13] == ["--allow", "my package", "--seed", "3"] and found[-1] == "*"
    assert not (tmp_path / "ran").exists()


def test_what_is_not_given_is_no_argument(tmp_path: Path) -> None:
    tools = recorder(tmp_path, "canonize")
    assert run("Verify", MODELS, tmp_path, tools).returncode == 0
    assert called(tmp_path) == ["verify", *MODELS.values(), "--report", "canonize.xml", "--report", "canonize.md"]
