"""The house: who may import whom, how many files lie at the root, what stays private to a room."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import grimp
import networkx
import pytest
from importlinter.cli import lint_imports

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "canonize"
MOST_AT_THE_ROOT = 12
# The same thing of two rooms, by the same name: what libraries are called and how they are imported.
SHARED = {"libraries.py"}


@pytest.fixture(scope="module")
def imports() -> networkx.DiGraph:
    """Every import of the package, those inside functions and those for type checkers included."""
    found = grimp.build_graph("canonize", cache_dir=None, exclude_type_checking_imports=False)
    edges = ((module, other) for module in found.modules for other in found.find_modules_directly_imported_by(module))
    return networkx.DiGraph(edges)


def test_no_import_circle(imports):
    circles = [sorted(part) for part in networkx.strongly_connected_components(imports) if len(part) > 1]
    assert circles == []


def test_each_room_imports_only_from_those_below_it():
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_nobody_inside_imports_the_face(imports):
    """What imports ``canonize`` itself from inside makes a circle of the whole house."""
    assert sorted(imports.predecessors("canonize")) == []


def test_a_dozen_files_at_the_root():
    names = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(names) <= MOST_AT_THE_ROOT, names


def test_no_private_name_is_imported_across_rooms():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("canonize."):
                private = [
                    alias.name for alias in node.names if alias.name.startswith("_") and alias.name != "__version__"
                ]
                other = (node.module or "").split(".")[1]
                found += [f"{path.relative_to(ROOT)}: {node.module}.{name}" for name in private if other != room]
    assert found == []


def test_no_two_files_and_no_two_classes_share_a_name():
    """One name, one thing: who searches for a word finds one file. An underscore makes no other name."""
    things: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = str(path.relative_to(PACKAGE))
        if path.name != "__init__.py":
            things.setdefault(path.name, []).append(place)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                things.setdefault(node.name.strip("_"), []).append(place)
    assert {name: places for name, places in things.items() if len(places) > 1 and name not in SHARED} == {}


def test_every_room_says_what_it_is():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    silent = [
        str(f.relative_to(ROOT)) for f in folders if not ast.get_docstring(ast.parse((f / "__init__.py").read_text()))
    ]
    assert silent == []


def _layers() -> list[set[str]]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    stated = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [set(layer.replace("|", " ").replace(":", " ").split()) - {"__main__", "_version"} for layer in stated]


def test_the_picture_of_the_house_is_the_house():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = text.split("```text\n")[1].split("```")[0].splitlines()
    drawn = [set(line[:22].split()) for line in lines]
    assert drawn == [layer for layer in _layers() if layer]
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - set().union(*drawn) == {"__init__", "__main__", "_version", "saved"}


def test_private_names_of_torch_are_read_in_one_file():
    """``torch._ops`` has the classes of operators; ``torch._assert`` and ``torch._check`` stand in torch's manual."""
    known = ("torch._ops", "torch._assert", "torch._check")
    found = []
    for path in sorted((ROOT / "canonize").rglob("*.py")):
        if path.name == "private.py" and path.parent.name == "compat":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            else:
                continue
            private = [name for name in names if re.match(r"torch\.([\w.]+\.)?_(?!_)", name) and "(" not in name]
            found += [f"{path.relative_to(ROOT)}: {name}" for name in private if not name.startswith(known)]
    assert not found, "\n".join(found)
