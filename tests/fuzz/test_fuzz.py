"""A short run of the fuzzer; ``python -m tests.fuzz.run`` makes long ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import run
from tests.fuzz.mutations import mutate, seeds


def test_mutated_files_give_a_module_or_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes = run.fuzz(250, 20_26, tmp_path)
    faults = {outcome: count for outcome, count in outcomes.items() if outcome not in ("module", "refused")}
    assert not faults
    assert outcomes["refused"] > 150 and outcomes["module"] > 0


def test_unbroken_files_load(tmp_path: Path) -> None:
    for name in seeds(tmp_path):
        assert run.attempt(tmp_path / name) == "module", name


def test_faults_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzzer itself can fail: a crash, a command run, a message of two lines."""
    import os

    from canonize.errors import LoadError

    (tmp_path / "a.pt").write_bytes(b"x")

    def crash(*arguments: Any) -> None:
        raise ZeroDivisionError("inside")

    def command(*arguments: Any) -> None:
        os.system("true")

    def chatter(*arguments: Any) -> None:
        raise LoadError("two\nlines")

    for planted, told in ((crash, "ZeroDivisionError"), (command, "ran ['os.system']"), (chatter, "odd message")):
        monkeypatch.setattr(run, "load", planted)
        assert told in run.attempt(tmp_path / "a.pt")


def test_mutations_are_reproducible_and_break_things(tmp_path: Path) -> None:
    for name, content in seeds(tmp_path).items():
        broken = [mutate(name, content, random.Random(f"{name}{i}")) for i in range(20)]
        assert broken == [mutate(name, content, random.Random(f"{name}{i}")) for i in range(20)]
        assert sum(b != content for b in broken) > 15
