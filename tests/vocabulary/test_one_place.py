"""Names of torch's operators are listed in the vocabulary, and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

import torch

from canonize.vocabulary.table import ALIASES, ROWS

PACKAGE = Path(__file__).parents[2] / "canonize"
# Files whose lists of such words are of something else.
OTHERWISE = {
    "capture/events.py": "types of TorchScript's arguments",
    "capture/export_trace.py": "what torch.export is told not to drop",
    "capture/proxies.py": "attributes of dtypes, and Python's own methods",
    "capture/recording.py": "what a tracer exchanges meanwhile: functions that make tensors",
    "capture/size_guards.py": "Python's functions of numbers",
    "capture/symbolic.py": "attributes of devices",
    "evaluate/metrics/localisation.py": "shares of relevance",
    "explain/deep_lift.py": "nodes of torch's autograd graph, as captum names them",
    "explain/watch.py": "nodes of torch's autograd graph",
    "export/forward.py": "what a written forward may name",
    "graph/shape_rules.py": "one rule each, not a list",
    "loading/onnx/read.py": "types of ONNX",
    "loading/onnx.py": "types of ONNX",
    "loading/safe.py": "modules of torch that a file may name",
    "twins/copying.py": "types that are never copied",
    "twins/float64.py": "dtypes",
    "vocabulary/table.py": "the table",
    "vocabulary/layers.py": "which layer calls which operator: the table's other half, one row a layer",
    "vocabulary/spelling.py": "Python's and NumPy's names for operators and their arguments",
    "vocabulary/symbols.py": "how Python's operators are written",
    "vocabulary/safe_calls.py": "functions that a file may name",
    "twins/torchscript/interpreted.py": "TorchScript's arithmetic with numbers, which stands below the vocabulary",
}


def _operators() -> set[str]:
    schemas = torch._C._jit_get_all_schemas()
    return {schema.name.partition("::")[2] for schema in schemas if schema.name.startswith("aten::")}


def _named(item: ast.expr | None, known: set[str]) -> str | None:
    """The operator that an item of a list names."""
    if isinstance(item, ast.Constant) and isinstance(item.value, str):
        words = item.value.split(".")
        name = words[3] if item.value.startswith("torch.ops.aten.") else words[-1]
        return name if name in known else None
    if isinstance(item, ast.Attribute):
        text = ast.unparse(item)
        words = text.split(".")
        name = words[3] if text.startswith("torch.ops.aten.") and len(words) > 3 else words[-1]
        return name if words[0] in ("torch", "F", "operator") and (name in known or words[0] == "operator") else None
    return None


def _words(node: ast.AST, known: set[str]) -> list[str]:
    """The operators that a text names which is split into words: ``_names("view reshape")``, ``"add mul".split()``."""
    if not isinstance(node, ast.Call):
        return []
    owner = [node.func.value] if isinstance(node.func, ast.Attribute) and node.func.attr == "split" else []
    texts = [n.value for n in (*node.args, *owner) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    found = [text.split() for text in texts]
    return [word for words in found if len(words) > 1 and all(word in known for word in words) for word in words]


def test_an_operator_has_one_row() -> None:
    rows = next(
        node.value
        for node in ast.parse((PACKAGE / "vocabulary/table.py").read_text()).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "ROWS" and isinstance(node.value, ast.Dict)
    )
    names = [key.value for key in rows.keys if isinstance(key, ast.Constant)]
    assert len(names) == len(set(names)) == len(ROWS)
    assert not set(ALIASES) & set(ROWS), "another word for an operator has no row of its own"


def test_a_list_in_a_text_is_seen() -> None:
    text = 'A = _names("view reshape permute"); B = "add mul sub".split(); C = describe("what a view gives")'
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    assert sorted(len(_words(node, _operators())) for node in calls) == [0, 3, 3]


def test_no_other_file_lists_operators() -> None:
    known = _operators()
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name in OTHERWISE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            items = node.elts if isinstance(node, ast.Set | ast.List | ast.Tuple) else []
            items = node.keys if isinstance(node, ast.Dict) else items
            names = [operator for operator in (_named(item, known) for item in items) if operator]
            names += _words(node, known)
            if len(names) >= 3:
                found.append(f"{name}:{node.lineno}: {', '.join(names)}")  # type: ignore[attr-defined]
    assert not found, "\n".join(found)
