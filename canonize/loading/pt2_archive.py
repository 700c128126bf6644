"""``.pt2`` archives, read without running anything that is in them.

``torch.export.load`` unpickles parts of the archive freely, evaluates its size expressions as Python, looks functions
up by any name under ``torch``, and puts names of the file into generated code. Here everything in the archive is looked
over first and whatever is not plain is refused; what torch then reads is a copy made from what was found plain.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import logging
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from canonize.errors import LoadError
from canonize.loading.archive import check_archive, entries_of
from canonize.loading.guards import guard
from canonize.loading.opcodes import follow
from canonize.vocabulary.safe_calls import callable_named

# What torch.export.save writes for a model, without the folder of the archive's own name in front.
_ENTRIES = re.compile(
    r"models/model\.json|data/(weights|constants)/[\w.\-]+|data/sample_inputs/model\.pt|extra/[\w.\-]+"
    r"|archive_format|archive_version|byteorder|version|\.data/[\w\-]+"
)
_MODEL, _INPUTS = "models/model.json", "data/sample_inputs/model.pt"
# Size expressions: numbers, operators, symbols, and the functions that torch writes them with.
_TOKENS = re.compile(
    r"[su]\d+|'[su]\d+'|True|False|Symbol|integer|positive|nonnegative|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv"
    r"|CeilToInt|FloorToInt|Integer|Mul|Add|\d+|[-+*/%(),=<>! ]|&|\|"
)
_PLAIN = re.compile(r"[\w.\-+: ]*")
_TREES = {
    *("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"),
    *("torch.utils._pytree.LeafSpec", "torch.fx.immutable_collections.immutable_list"),
    "torch.fx.immutable_collections.immutable_dict",
}
_TARGETS = {
    *("torch.ops.aten.sym_size.int", "torch.ops.aten._assert_tensor_metadata.default"),
    *("torch.ops.aten._assert_scalar.default", "torch._check", "torch.ops.aten.sym_constrain_range_for_size.default"),
}


def read_plain(path: Path) -> nn.Module:
    """The module of a ``.pt2`` file that holds nothing but tensors and ATen operators.

    Raises
    ------
    LoadError
        If anything in the archive could run code, or it is damaged.
    """
    check_archive(path)
    try:
        copy = _copy(path)
    except LoadError:
        raise
    except Exception as error:  # a damaged archive breaks in every way there is
        raise LoadError(
            f"is a damaged .pt2 archive ({error or type(error).__name__})",
            where=str(path),
            hint="Save or download it again",
        ) from error
    with _silence():
        return module_of(torch.export.load(copy))


def module_of(program: torch.export.ExportedProgram) -> nn.Module:
    """The module of a program, which checks the sizes of its inputs in its graph; torch's own does it in hooks."""
    # Older versions of torch know no choice and check in the hooks alone.
    choices = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    module = program.module(**choices)
    for table in (name for name in vars(module) if name.startswith("_forward") and "hooks" in name):
        getattr(module, table).clear()
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    fixed = []
    for node in placeholders:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            fixed.append((node, {i: int(s) for i, s in enumerate(value.shape) if isinstance(s, int)}))
    guard(module, fixed)
    return module


def as_module(model: Any, example_inputs: Any) -> tuple[Any, Any]:
    """A program as a module, and what it was exported with where no inputs are given; a module as it is."""
    if not isinstance(model, torch.export.ExportedProgram):
        return model, example_inputs
    return module_of(model), model.example_inputs if example_inputs is None else example_inputs


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """torch.export.load logs a page for each damaged file; what matters is in the exception."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _copy(path: Path) -> io.BytesIO:
    """An archive of what was found plain."""
    names = entries_of(path)
    roots = {name.split("/")[0] for name in names}
    if len(roots) != 1:
        raise _refusal(path, "is no archive of torch.export.save")
    (root,) = roots
    target = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in names:
            own = name.removeprefix(f"{root}/")
            if not _ENTRIES.fullmatch(own):
                raise _refusal(path, f"holds {own[:80]!r}")
            content = old.read(name)
            if own == _MODEL:
                content = _plain_model(json.loads(content), path)
            elif own.endswith("_config.json"):
                content = _plain_config(json.loads(content), path)
            elif own == _INPUTS:
                content = _plain_inputs(content, path)
            new.writestr(f"archive/{own}", content)
    target.seek(0)
    return target


def _plain_inputs(content: bytes, path: Path) -> bytes:
    """The example inputs are a pickle: of tensors alone, or they are refused."""
    with zipfile.ZipFile(io.BytesIO(content)) as inner:
        for name in inner.namelist():
            if name.endswith(".pkl"):
                follow(io.BytesIO(inner.read(name)), lambda name: False, path)
    buffer = io.BytesIO()
    torch.save(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), buffer)
    return buffer.getvalue()


def _plain_config(data: Any, path: Path) -> bytes:
    for name, entry in data["config"].items():
        if entry["use_pickle"] is not False or not isinstance(entry["tensor_meta"], dict):
            raise _refusal(path, f"holds {name[:80]!r} as a pickle")
    _look_over(data, path)
    return json.dumps(data).encode()


def _plain_model(data: Any, path: Path) -> bytes:
    data["guards_code"] = []
    for graph in _graphs(data):
        for node in graph["nodes"]:
            stack = node.get("metadata", {}).get("nn_module_stack")
            node["metadata"] = {}  # names of places in source files
            if isinstance(stack, str) and re.fullmatch(r"[\w.,;@]*", stack):
                node["metadata"]["nn_module_stack"] = stack
    _look_over(data, path)
    return json.dumps(data).encode()


def _graphs(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if isinstance(value.get("nodes"), list):
            yield value
        for item in value.values():
            yield from _graphs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _graphs(item)


def _look_over(value: Any, path: Path, key: str = "") -> None:
    """Refuse every string that is not what its place asks for."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not _PLAIN.fullmatch(name) and key != "range_constraints":
                raise _refusal(path, f"holds an entry called {name[:60]!r}")
            _look_over(item, path, name)
    elif isinstance(value, list):
        for item in value:
            _look_over(item, path, key)
    elif isinstance(value, str):
        test = _TESTS.get(key, _is_plain)
        if not test(value):
            raise _refusal(path, f"holds {value[:60]!r} as its {key or 'content'}")


def _is_plain(text: str) -> bool:
    return _PLAIN.fullmatch(text) is not None


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[\w.]*", text) is not None


def _is_target(text: str) -> bool:
    if text in _TARGETS:
        return True
    try:
        callable_named(text.replace("_operator.", "operator."))
    except LoadError:
        return False
    return text != "builtins.getattr"


def _is_expression(text: str) -> bool:
    return (
        len(text) < 10_000
        and "**" not in text
        and re.sub(_TOKENS, "", text) == ""
        and "'" not in re.sub(r"'[su]\d+'", "", text)
    )


def _is_tree(text: str) -> bool:
    return not text or _is_node_of_tree(json.loads(text)[1])


def _is_node_of_tree(node: Any) -> bool:
    context = node["context"]
    plain = context is None or (isinstance(context, str) and re.fullmatch(r'[\w\[\]", \-.]*', context) is not None)
    known = node["type"] is None or node["type"] in _TREES
    return known and plain and all(_is_node_of_tree(child) for child in node["children_spec"])


_TESTS: dict[str, Callable[[str], bool]] = {
    "target": _is_target,
    "expr_str": _is_expression,
    **dict.fromkeys(("name", "parameter_name", "buffer_name", "tensor_constant_name", "fqn"), _is_name),
    "forward_arg_names": _is_name,
    "in_spec": _is_tree,
    "out_spec": _is_tree,
    "nn_module_stack": lambda text: True,  # looked over above
    "as_string": lambda text: text.isprintable(),
    "as_strings": lambda text: text.isprintable(),
    "treespec_namedtuple_fields": lambda text: False,
}


def _refusal(path: Path, what: str) -> LoadError:
    return LoadError(
        f"{what}, which a file may not bring in unasked",
        where=str(path),
        hint="If you trust where it comes from: --trust, or load(path, trust=True)",
    )
