"""Finding a piece of the package on the syntax tree: by the function it stands in, whatever file that lies in."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Piece = list[ast.stmt] | ast.expr


class AnchorError(Exception):
    """A piece is not there exactly once."""


@dataclass(frozen=True)
class Place:
    """Where a piece stands: a file, and the characters from ``start`` to ``end`` of its text."""

    path: Path
    start: int
    end: int
    column: int


def planted(package: Path, where: str, old: str, new: str) -> tuple[Path, str]:
    """A file of the package with one piece exchanged.

    Parameters
    ----------
    package : Path
    where : str
        Qualified name of a function, a class or a variable: ``PendingWeights.absorb_output``. If several files define
        it, the piece stands in one of them alone.
    old, new : str
        An expression, or statements. Layout and comments do not matter.

    Returns
    -------
    path : Path
    text : str

    Raises
    ------
    AnchorError
        If ``old`` is not there exactly once.
    """
    found = list(places(package, where, old))
    if len(found) != 1:
        raise AnchorError(f"{where} holds {old!r} {len(found)} times")
    place = found[0]
    text = place.path.read_text(encoding="utf-8")
    lines = ast.unparse(_statements_or_expression(new)).splitlines()
    indented = ("\n" + " " * place.column).join(lines)
    if isinstance(_piece(new), ast.expr):
        indented = f"({indented})"
    return place.path, text[: place.start] + indented + text[place.end :]


def places(package: Path, where: str, old: str) -> Iterator[Place]:
    """Every place where a piece stands within what bears a name."""
    wanted = _piece(old)
    for path in sorted(package.rglob("*.py")):
        for holder in _named(path).get(where, ()):
            if isinstance(wanted, ast.expr):
                text = ast.unparse(wanted)
                yield from (
                    _place(path, node, node)
                    for node in ast.walk(holder)
                    if isinstance(node, ast.expr) and ast.unparse(node) == text
                )
            else:
                yield from _sequences(path, holder, [ast.unparse(statement) for statement in wanted])


def _sequences(path: Path, holder: ast.AST, wanted: list[str]) -> Iterator[Place]:
    bodies: list[list[ast.stmt]] = [[holder]] if isinstance(holder, ast.stmt) else []
    for node in ast.walk(holder):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list):
                bodies.append(body)
    for body in bodies:
        texts = [ast.unparse(statement) for statement in body]
        for start in range(len(texts) - len(wanted) + 1):
            if texts[start : start + len(wanted)] == wanted:
                yield _place(path, body[start], body[start + len(wanted) - 1])


def _piece(text: str) -> Piece:
    parsed = _statements_or_expression(text)
    if isinstance(parsed, ast.Expression):
        return parsed.body
    return parsed.body


def _statements_or_expression(text: str) -> ast.Module | ast.Expression:
    try:
        return ast.parse(text, mode="eval")
    except SyntaxError:
        return ast.parse(text)


@functools.lru_cache(maxsize=512)
def _named(path: Path) -> dict[str, list[ast.AST]]:
    """Functions, classes and variables of a file by qualified name."""
    found: dict[str, list[ast.AST]] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function | ast.ClassDef):
                found.setdefault(prefix + child.name, []).append(child)
                visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.Assign | ast.AnnAssign):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        found.setdefault(prefix + target.id, []).append(child)

    visit(ast.parse(path.read_text(encoding="utf-8")), "")
    return found


@functools.lru_cache(maxsize=512)
def _line_starts(path: Path) -> tuple[bytes, list[int]]:
    data = path.read_bytes()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return data, starts


def _place(path: Path, first: ast.expr | ast.stmt, last: ast.expr | ast.stmt) -> Place:
    data, starts = _line_starts(path)
    decorators = [d.lineno for d in getattr(first, "decorator_list", [])]
    line = min([first.lineno, *decorators])
    begin = starts[line - 1] + first.col_offset
    end = starts[(last.end_lineno or last.lineno) - 1] + (last.end_col_offset or 0)
    return Place(path, len(data[:begin].decode()), len(data[:end].decode()), first.col_offset)
