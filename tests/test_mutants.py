"""Planted errors apply to the code, wherever it has moved; ``tests/mutate.py`` plants them and runs the tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.anchors import AnchorError, planted
from tests.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.about}: {m.slip}")
def test_applies(mutant: Mutant) -> None:
    path, text = planted(ROOT / "canonize", mutant.where, mutant.old, mutant.new)
    was = ast.unparse(ast.parse(path.read_text(encoding="utf-8")))
    assert ast.unparse(ast.parse(text)) != was
    assert all((ROOT / "tests" / test).exists() for test in mutant.tests)


def test_no_error_is_planted_twice() -> None:
    planted_ones = [(m.where, m.old, m.new) for m in MUTANTS]
    assert len(set(planted_ones)) == len(planted_ones)


def test_a_piece_that_is_gone_is_said(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("def f(x):\n    return x + 1\n")
    with pytest.raises(AnchorError, match="0 times"):
        planted(tmp_path, "f", "x + 2", "x")
    path, text = planted(tmp_path, "f", "x  +  1", "x - 1")
    assert (path.name, ast.unparse(ast.parse(text))) == ("one.py", "def f(x):\n    return x - 1")
    (tmp_path / "two.py").write_text("def f(x):\n    return x + 1\n")
    with pytest.raises(AnchorError, match="2 times"):
        planted(tmp_path, "f", "x + 1", "x")


def test_layout_and_files_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "m.py").write_text(
        "class A:\n    def f(self, x):\n        # why\n        y = (x\n             + 1)\n        return y\n"
    )
    _, text = planted(tmp_path, "A.f", "y = x + 1", "if x:\n    y = 2\nelse:\n    y = 3")
    assert "if x:" in ast.unparse(ast.parse(text))
