"""Every example in README.md and docs/ runs, and prints what the page says it prints.

Rules of the pages: ```python blocks of a page share one namespace and run in order; a ```text block right after one is
what it prints. In ```console blocks a line that starts with ``$ `` is a command, the lines below it are what it prints,
and it must exit with 0 unless the next command is ``$ echo $?``. ``...`` stands for anything, runs of white space are
one. All of a page runs in one empty folder that holds a link to examples/.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# `make test` would run these tests again, installing and cleaning would change the environment they run in.
NOT_HERE = ("make test", "make clean", "pip install", "git ", "pre-commit ")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of its first line."""

    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(m[1], m[2], page.count("\n", 0, m.start(2)) + 1) for m in BLOCK.finditer(page)]


def commands(text: str) -> list[tuple[str, str]]:
    """Pairs of command and expected output of a console block."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:].strip(), ""))
        else:
            found[-1] = (found[-1][0], found[-1][1] + line)
    return found


def same(want: str, got: str) -> bool:
    """Whether ``got`` is what the page shows, ``...`` standing for anything."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(want.strip() + "\n", got.strip() + "\n", flags)


def run_command(command: str, folder: Path) -> tuple[int, str]:
    """Exit code and output of a shell command in ``folder``, with this environment's programs first on the path."""
    if command.startswith("make "):
        # From the checkout, with the environment the tests run in, which counts as up to date.
        environment = f"-C {ROOT} -o {sys.prefix}/.ready VENV={sys.prefix} OUT={folder}/out --no-print-directory"
        command = command.replace("make ", f"make {environment} ", 1)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "COLUMNS": "120", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=variables, capture_output=True, text=True, timeout=3600, check=False
    )
    return done.returncode, done.stdout + done.stderr


def run_console(block: Block, folder: Path, where: str) -> None:
    code = 0
    pairs = commands(block.text)
    for i, (command, want) in enumerate(pairs):
        if command.startswith(NOT_HERE):
            continue
        if command == "echo $?":
            got = f"{code}\n"
        else:
            code, got = run_command(command, folder)
            judged_next = i + 1 < len(pairs) and pairs[i + 1][0] == "echo $?"
            assert code == 0 or judged_next, f"{where}: `{command}` exited with {code}:\n{got}"
        assert not want or same(want, got), f"{where}: `{command}` printed\n{got}\nand the page says\n{want}"


def run_python(block: Block, names: dict[str, object], where: str) -> str:
    printed = io.StringIO()
    code = compile("\n" * (block.line - 1) + block.text, where, "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run_and_print_what_the_page_says(page, tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "examples" / "digits")])
    names: dict[str, object] = {"__name__": "__main__"}
    printed: str | None = None
    for block in blocks(page.read_text(encoding="utf-8")):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.language == "text" and printed is not None:
            assert same(block.text, printed), f"{where}: printed\n{printed}\nand the page says\n{block.text}"
        printed = None
        if block.language == "python":
            printed = run_python(block, names, where)
        elif block.language in ("console", "bash"):
            run_console(block, tmp_path, where)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [target for target in targets if target and not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize(
    ("want", "got", "passes"),
    [("a ... z", "a b\n   z", True), ("passed", "failed", False), ("1 of 2\n...", "1 of 2\nmore", True)],
)
def test_the_comparison_of_outputs_can_fail(want, got, passes):
    assert same(want, got) is passes


def test_a_wrong_page_fails(tmp_path):
    block = Block("console", "$ echo yes\nno\n", 1)
    with pytest.raises(AssertionError, match="printed"):
        run_console(block, tmp_path, "page")
    with pytest.raises(AssertionError, match="exited with 3"):
        run_console(Block("console", "$ exit 3\n", 1), tmp_path, "page")
