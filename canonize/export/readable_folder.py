"""A folder: ``model.py``, which a person can read, and ``model.safetensors``. Needs neither pickle nor canonize."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.errors import ExportError
from canonize.export.constructors import class_of, expression
from canonize.export.dynamic import tried_inputs
from canonize.export.forward import Forward, path
from canonize.export.provenance import provenance_of
from canonize.export.reload import check_reload
from canonize.inputs import Inputs
from canonize.loading.written_folder import CODE, WEIGHTS

# Columns that a statement and its remark may take together.
WIDTH = 112

_LOADER = f'''

def load() -> {{name}}:
    """The model with its weights, in evaluation mode on the CPU."""
    from safetensors.torch import load_file

    model = {{name}}()
    # `assign`: the tensors of the file take the places of those made above, in the precision they were saved in.
    model.load_state_dict(load_file(Path(__file__).with_name("{WEIGHTS}")), assign=True)
    return model.eval()
'''


def write(model: nn.Module, folder: Path, inputs: Inputs | None, final: Path) -> list[str]:
    """Write the two files into a new folder.

    Raises
    ------
    ExportError
        If a layer or an operation cannot be written as source.
    """
    from safetensors.torch import save_file

    if not isinstance(model, fx.GraphModule):
        raise ExportError("only a canonical model can be written as source", where=str(final), hint="Write a .pt")
    forward = Forward(model)
    text = source(model, forward)
    tensors = {name: _alone(t) for name, t in model.state_dict().items() if not _inlined(name, forward)}
    folder.mkdir()
    (folder / CODE).write_text(text, encoding="utf-8")
    known = {key: value if isinstance(value, str) else json.dumps(value) for key, value in provenance_of(model).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", **known})
    foreign = sorted(name for name in forward.imports if name.split(".")[0] not in ("torch", "operator", "math"))
    return [f"{CODE} imports {', '.join(foreign)}, as the model does"] if foreign else []


def check(model: nn.Module, folder: Path, inputs: Inputs | None, final: Path, static: bool) -> None:
    """Load the folder in a fresh process where canonize cannot be imported, on other batch sizes too."""
    runs = [] if inputs is None else [inputs]
    if inputs is not None:
        runs += [run for run in tried_inputs(inputs) if _runs(model, run)]
    check_reload(model, folder, runs, final)


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    try:
        with torch.no_grad():
            model(*inputs.args, **inputs.kwargs)
    except Exception:  # a model of a fixed batch size says so with whatever it likes
        return False
    return True


def snippet(location: str) -> str:
    """The lines that load the folder."""
    return f"import sys\nsys.path.insert(0, {location!r})\nfrom model import load\nmodel = load()"


def _alone(tensor: Tensor) -> Tensor:
    """A tensor with memory of its own: the format knows no sharing."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _inlined(name: str, forward: Forward) -> bool:
    return any(name.startswith(f"{path}.") for path in forward.inlined)


def source(model: fx.GraphModule, forward: Forward) -> str:
    """The text of ``model.py``."""
    name = _class_name(model)
    layers = _layers(model, forward)
    classes = {cls.__name__ for _, module, _ in layers if (cls := class_of(module)) and cls.__module__ == cnn.__name__}
    helpers = "".join(f"\n\n{inspect.getsource(getattr(cnn, name))}" for name in _needed(classes | forward.helpers))
    body = [
        # A dictionary of modules has places for layers that have a number for a name.
        f"class {name}({'nn.ModuleDict' if _numbered(n for n, _, _ in layers) else 'nn.Module'}):",
        f'    """{_summary(model)}"""',
        "",
        "    def __init__(self) -> None:",
        "        super().__init__()",
        *(f"        {line}" for line in _constructor(model, layers)),
        "",
        f"    def forward({', '.join(['self', *forward.arguments])}):",
        *(f"        {line}" if line else "" for line in forward.lines),
    ]
    code = helpers + "\n\n" + "\n".join(body) + "\n" + _LOADER.format(name=name)
    return f'"""{_title(model)}"""\n\n{_imports(code, forward)}{code}'


def _needed(names: Iterable[str]) -> list[str]:
    """Names of ``canonize.nn`` that the code of these needs, themselves included."""
    own = {name for name, value in vars(cnn).items() if getattr(value, "__module__", "") == cnn.__name__}
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            tree = ast.parse(inspect.getsource(getattr(cnn, name)))
            waiting += [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in own]
    return sorted(found)


def _class_name(model: nn.Module) -> str:
    name = re.sub(r"\W", "", type(model).__name__) or "Model"
    clashing = name in {"nn", "torch", "Path", "Tensor", *cnn.__all__} or not name.isidentifier()
    return f"Canonical{name}" if clashing else name


def _title(model: nn.Module) -> str:
    known = provenance_of(model)
    origin = known.get("source") or {}
    lines = [f"The canonical form of {_plain(known.get('model') or type(model).__name__)}, written by canonize."]
    lines += ["", "Needs torch and safetensors alone. `load()` gives the model with the weights beside this file."]
    if isinstance(origin, dict) and origin.get("sha256"):
        lines += ["", f"Made from {_plain(origin.get('name', ''))}, sha256 {_plain(origin['sha256'])}."]
    return "\n".join(lines) + "\n"


def _summary(model: nn.Module) -> str:
    report = getattr(model, "report", None)
    absorbed = sum(fate.outcome == "absorbed" for fate in getattr(report, "affines", ()))
    told = f" {absorbed} normalisations and fixed affines are part of the layers that hold them." if absorbed else ""
    return f"One module a call, no loose affine.{told}"


def _plain(text: object) -> str:
    """Text that may stand in a docstring or a comment, whatever it was."""
    return re.sub(r"[^\w .:/+\-()\[\],]", "_", " ".join(str(text).split()))


def _imports(code: str, forward: Forward) -> str:
    lines = ["from __future__ import annotations", ""]
    lines += [f"import {module}" for module in sorted(forward.imports) if module != "torch"]
    if re.search(r"\b(Sequence|Callable)\b", code):
        lines.append("from collections.abc import Callable, Sequence")
    lines += ["from pathlib import Path"]
    if re.search(r"\bAny\b", code):
        lines.append("from typing import Any")
    lines.append("")
    if re.search(r"\btorch\.", code.replace("safetensors.torch", "")):
        lines.append("import torch")
    if re.search(r"\bF\.", code):
        lines.append("import torch.nn.functional as F")
    lines.append(f"from torch import {'Tensor, ' if re.search(r'Tensor', code) else ''}nn")
    return "\n".join(lines) + "\n"


def _layers(model: fx.GraphModule, forward: Forward) -> list[tuple[str, nn.Module, str]]:
    """Name, layer and remark of every layer, in the order of their calls."""
    held: dict[str, list[str]] = {}
    for fate in getattr(getattr(model, "report", None), "affines", ()):
        for into in fate.into:
            if fate.name != into:
                held.setdefault(into, []).append(fate.name)
    found: dict[str, tuple[str, nn.Module, str]] = {}
    for node in model.graph.nodes:
        name = str(node.target)
        if node.op == "call_module" and name not in forward.inlined and name not in found:
            block = f"{name.rpartition('.')[0]}."
            own = [held_name.removeprefix(block) for held_name in held.get(name, ())]
            remark = f"  # holds {_plain(', '.join(own))}" if own else ""
            found[name] = (name, model.get_submodule(name), remark)
    return list(found.values())


def _constructor(model: fx.GraphModule, layers: list[tuple[str, nn.Module, str]]) -> list[str]:
    """Statements that make the layers, and the containers that their names ask for."""
    lines: list[str] = []
    tensors = [str(n.target) for n in model.graph.nodes if n.op == "get_attr"]
    names = [name for name, _, _ in layers] + tensors
    made = {""}
    for name, module, remark in layers:
        lines += _containers(model, name, names, made)
        line = f"{path(model, name)} = {expression(module, name)}"
        lines += [line + remark] if len(line + remark) <= WIDTH else [remark.strip(), line]
    for name in dict.fromkeys(tensors):
        lines += _containers(model, name, names, made)
        lines.append(_tensor(model, name))
    return lines


def _containers(model: nn.Module, name: str, names: list[str], made: set[str]) -> list[str]:
    lines = []
    parts = name.split(".")[:-1]
    for depth in range(len(parts)):
        place = ".".join(parts[: depth + 1])
        if place in made:
            continue
        made.add(place)
        children = [n[len(place) + 1 :] for n in names if n.startswith(f"{place}.")]
        lines.append(f"{path(model, place)} = {'nn.ModuleDict()' if _numbered(children) else 'nn.Module()'}")
    return lines


def _numbered(names: Iterable[str]) -> bool:
    return any(not name.split(".")[0].isidentifier() for name in names)


def _tensor(model: nn.Module, name: str) -> str:
    owner, _, attribute = name.rpartition(".")
    holder = model.get_submodule(owner)
    value: Any = getattr(holder, attribute)
    if attribute in holder._parameters:
        return f"{path(model, name)} = nn.Parameter(torch.empty({list(value.shape)}))"
    return f'{path(model, owner) if owner else "self"}.register_buffer("{attribute}", torch.empty({list(value.shape)}))'
