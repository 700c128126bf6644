"""The one place that knows the converter: operators to functions of torch, by onnx2fx and by operators of our own.

onnx2fx is young (0.0.1, one author), so the version is bounded, nothing else imports it, and whatever it makes is
compared with ONNX Runtime before anybody gets it. ``python -m benchmarks.onnx`` measures it on the standard's own
tests; docs/formats.md has the figures, those of its alternatives among them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import helper
from torch import Tensor, fx

from canonize.compat import no_warnings
from canonize.errors import LoadError
from canonize.loading.onnx import missing_operators, resize
from canonize.loading.onnx.protobuf import nodes_of
from canonize.loading.onnx.shape_arithmetic import DOMAIN

_UNKNOWN = re.compile(r"Unsupported ONNX operator: (\w+)")
# Their results are integers that are cut off at 8 bits.
INTEGER = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"}
_EXPORTED = "Give the model it was exported from"
# An operator that the standard writes in others may be written in one that is unknown in its turn.
_MOST_EXPANSIONS = 8


def translated(model: onnx.ModelProto, path: Path) -> fx.GraphModule:
    """A graph module that computes what an ONNX graph says.

    Raises
    ------
    LoadError
        If an operator cannot be translated.
    """
    onnx2fx = importlib.import_module("onnx2fx")
    _register()
    integer = sorted({node.op_type for node in nodes_of(model.graph)} & INTEGER)
    if integer:
        raise LoadError(
            f"uses {', '.join(integer)}, which computes with integers that saturate: nothing that has a gradient",
            where=str(path),
            hint=_EXPORTED,
        )
    for _ in range(_MOST_EXPANSIONS):
        try:
            with no_warnings():
                module: fx.GraphModule = onnx2fx.convert(model)
            return module.eval()
        except Exception as error:
            unknown = _UNKNOWN.search(str(error))
            expanded = written_in_others(model, unknown[1]) if unknown else None
            if expanded is None:
                raise LoadError(_reason(error, unknown), where=str(path), hint=_EXPORTED) from error
            model = expanded
    raise LoadError("its operators are written in too many others", where=str(path), hint=_EXPORTED)


def _reason(error: Exception, unknown: re.Match[str] | None) -> str:
    if unknown:
        return f"uses the operator {unknown[1]}, which has no translation"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"cannot be translated ({lines[0][:160] if lines else type(error).__name__})"


def written_in_others(model: onnx.ModelProto, operator: str = "") -> onnx.ModelProto | None:
    """The graph with operators replaced by the functions that the standard gives for them; None where it gives none.

    Parameters
    ----------
    model : onnx.ModelProto
    operator : str
        The one to replace; all that the standard writes in others where not given.
    """
    from onnx import inliner

    before = [node.op_type for node in model.graph.node]
    names = [operator] if operator else sorted(set(before))
    try:
        found = inliner.inline_selected_functions(model, [("", n) for n in names], inline_schema_functions=True)
    except Exception:  # onnx before 1.20 inlines the file's own functions only; or it stumbles over one of ours
        return None
    after = [node.op_type for node in found.graph.node]
    return None if after == before or operator in after else found


def _register() -> None:
    """Teach the converter our own operators, and those that `canonize.loading.onnx.shape_arithmetic` writes."""
    registry = importlib.import_module("onnx2fx.op_registry")

    def own(operator: str, function: Callable[..., Any], *options: tuple[str, Any], domain: str = "", since: int = 1):  # type: ignore[no-untyped-def]
        """A call of `function` on the operator's inputs, and then its attributes."""

        @registry.register(operator, domain=domain, since_version=since)
        def build(builder: Any, node: Any) -> fx.Node:
            given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            values = [builder.get_value(name) if name else None for name in node.input]
            settings = [list(v) if isinstance(v := given.get(name, usual), tuple) else v for name, usual in options]
            made: fx.Node = builder.call_function(function, args=(*values, *settings))
            return made

    @registry.register("Resize", since_version=11)
    def build_resize(builder: Any, node: Any) -> fx.Node:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        settings = {name: _plain(given.get(name, usual)) for name, usual in resize.ATTRIBUTES}
        values = [builder.get_value(name) if name else None for name in node.input]
        values = [None if _is_empty(value) else value for value in [*values, None, None, None][:4]]
        settings["free_batch"] = not (isinstance(values[3], fx.Node) and values[3].op == "placeholder")
        if settings["coordinate_transformation_mode"] != "tf_crop_and_resize":
            values[1] = None
        made: fx.Node = builder.call_function(resize.resize, args=(*values, settings))
        return made

    own("ExpandBatch", missing_operators.expand_batch, ("sizes", ()), ("place", 0), domain=DOMAIN)
    own(
        "SliceConst",
        missing_operators.slice_const,
        *((n, ()) for n in ("starts", "ends", "axes", "steps")),
        domain=DOMAIN,
    )
    own("Expand", missing_operators.expand, since=8)
    own("Squeeze", missing_operators.squeeze, ("axes", None), since=1)
    own("Squeeze", missing_operators.squeeze, since=13)
    own("Unsqueeze", missing_operators.unsqueeze, ("axes", ()), since=1)
    own("Unsqueeze", missing_operators.unsqueeze, since=13)

    @registry.register("Pad", since_version=11)
    def build_pad(builder: Any, node: Any) -> fx.Node:
        given = {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute}
        values = [builder.get_value(name) if name else None for name in node.input]
        values = [None if _is_empty(value) else value for value in [*values, None, None][:4]]
        made: fx.Node = builder.call_function(missing_operators.pad, args=(*values, given.get("mode", "constant")))
        return made

    own("Clip", missing_operators.clip, since=11)
    own("LpNormalization", missing_operators.normalize, ("axis", -1), ("p", 2))
    own("CumSum", _sum, ("exclusive", 0), ("reverse", 0), since=11)
    own("CumProd", _product, ("exclusive", 0), ("reverse", 0), since=26)


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else list(value) if isinstance(value, tuple) else value


def _is_empty(value: Any) -> bool:
    """An optional input that is stored as no numbers at all."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return False
    module = value.graph.owning_module
    stored = getattr(module, str(value.target), None) if module is not None else None
    return isinstance(stored, Tensor) and stored.numel() == 0


def _sum(tensor: Any, axis: Any, exclusive: int, reverse: int) -> Any:
    return missing_operators.cumulate(tensor, axis, exclusive, reverse, product=False)


def _product(tensor: Any, axis: Any, exclusive: int, reverse: int) -> Any:
    return missing_operators.cumulate(tensor, axis, exclusive, reverse, product=True)
