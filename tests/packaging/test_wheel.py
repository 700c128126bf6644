"""What is released: a page whose links hold, an sdist that can be tested, a wheel that works where nothing else is."""

from __future__ import annotations

import email
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from canonize.compat import EXTRA_OF
from tests.packaging.built import ROOT, clean_room, metadata_of, sdist_in, wheel_in


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_in(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sdist_in(tmp_path_factory.mktemp("sdist"))


def test_every_link_of_the_page_is_absolute_and_leads_to_a_file(wheel: Path) -> None:
    about = email.message_from_string(metadata_of(wheel))
    home = dict(line.split(", ", 1) for line in about.get_all("Project-URL", []))["Homepage"]
    links = re.findall(r"\]\(([^)\s]+)", about.get_payload()) + re.findall(
        r'(?:src|href)="([^"]+)"', about.get_payload()
    )
    assert links and all(re.match(r"https?:|mailto:|#", link) for link in links)
    own = [
        re.sub(r"^/(blob|raw)/main/", "", link[len(home) :]).partition("#")[0]
        for link in links
        if link.startswith(home)
    ]
    assert own and [path for path in own if not (ROOT / path).exists()] == []


def test_the_page_says_who_and_where(wheel: Path) -> None:
    about = email.message_from_string(metadata_of(wheel))
    urls = dict(line.split(", ", 1) for line in about.get_all("Project-URL", []))
    assert {"Homepage", "Documentation", "Changelog", "Issues", "Source"} <= urls.keys()
    assert about["Author"] == "The canonize contributors" and about["License-Expression"] == "Apache-2.0"
    assert "numpy>=1.26" in about.get_all("Requires-Dist", [])


def test_a_release_says_itself_where_it_lives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/somewhere")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://forge.example")
    assert "Project-URL: Homepage, https://forge.example/someone/somewhere" in metadata_of(wheel_in(tmp_path))


def test_the_sdist_holds_what_its_tests_read(sdist: Path) -> None:
    with tarfile.open(sdist) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    listed = subprocess.run(
        ["git", "ls-files", "tests", "docs", "examples", "benchmarks"], cwd=ROOT, capture_output=True
    )
    tracked = set(listed.stdout.decode().split()) if listed.returncode == 0 else set()
    assert tracked <= names
    assert {"Makefile", "constraints-dev.txt", "hatch_build.py", "action.yml", ".pre-commit-hooks.yaml"} <= names
    assert {"SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE"} <= names


@pytest.mark.parametrize("tool", ["twine", "check_wheel_contents"])
def test_the_index_would_take_it(tool: str, wheel: Path, sdist: Path) -> None:
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")
    arguments = ["check", "--strict", str(wheel), str(sdist)] if tool == "twine" else [str(wheel)]
    done = subprocess.run([sys.executable, "-m", tool, *arguments], capture_output=True, text=True, cwd=wheel.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_base_installation_of_the_wheel_runs_every_command(wheel: Path, tmp_path: Path) -> None:
    """In an environment with the wheel and its requirements alone; what takes an extra refuses in one line."""
    python = clean_room(tmp_path / "room", wheel, sorted(EXTRA_OF))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [str(python), str(ROOT / "tests" / "environments" / "check.py")],
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": ""},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line for line in lines if line.get("problem")] == [], done.stderr
    assert done.returncode == 0 and len(lines) >= 12, done.stderr
    program = "import canonize; print(canonize.__file__)"
    where = subprocess.run([str(python), "-c", program], capture_output=True, text=True, cwd=elsewhere)
    assert str(tmp_path / "room") in where.stdout
