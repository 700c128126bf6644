"""The workflows hold what a stranger's pull request, or a stranger's action, must not be able to use."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import canonize
from tests.packaging.built import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text())
    return found


@pytest.mark.parametrize("path", [*WORKFLOWS, ROOT / "action.yml"], ids=lambda path: path.name)
def test_actions_are_pinned_by_hash_and_say_their_version(path: Path) -> None:
    uses = re.findall(r"uses: (\S+)(.*)", path.read_text())
    assert uses and all(re.search(r"@[0-9a-f]{40}$", action) and re.match(r" # v\d", rest) for action, rest in uses)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_permissions_are_the_least(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in workflow[True]  # YAML reads `on` as a truth value
    for name, job in workflow["jobs"].items():
        assert job.get("permissions", {}) in ({}, {"id-token": "write"} if name == "publish" else {})
        for step in job["steps"]:
            assert "${{ github" not in str(step.get("run", "")), "what others name goes through the environment"


def test_a_release_publishes_what_was_tested() -> None:
    jobs = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert jobs["test"]["needs"] == "build" and set(jobs["publish"]["needs"]) == {"build", "test"}
    text = str(jobs["build"])
    assert all(tool in text for tool in ("python -m build", "check-wheel-contents", "twine check --strict"))


@pytest.mark.parametrize(("tag", "code"), [(f"v{canonize.__version__}", 0), ("v9.9.9", 1)], ids=["right", "wrong"])
def test_the_tag_the_version_and_the_changelog_agree(tag: str, code: int) -> None:
    steps = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]["build"]["steps"]
    step = next(step for step in steps if str(step.get("name", "")).startswith("The tag"))
    command = ["bash", "-eo", "pipefail", "-c", step["run"]]
    assert subprocess.run(command, cwd=ROOT, env={"PATH": "/usr/bin:/bin", "TAG": tag}).returncode == code
