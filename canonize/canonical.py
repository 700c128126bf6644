"""The canonical form as code: C1 to C5, each a predicate over a captured model.

- C1: no node applies a fixed per-channel affine other than as part of a linear layer or of a threshold.
- C2: no two linear layers meet without a nonlinearity where merging them is exact and not larger.
- C3: every operation is a named submodule that is called exactly once, out of place; and where relevance comes through
  it, one that rules are known for.
- C4: evaluation is deterministic: no dropout, no batch statistics, no parametrization that recomputes weights.
- C5: nothing idle: no identity, no unused module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import Tensor, fx, nn

from canonize.algebra.weights import LINEAR
from canonize.capture import capture
from canonize.graph.relevance import unruled
from canonize.inputs import Inputs
from canonize.nn import Call, Offset
from canonize.normalize.translate import BATCH_NORM, DROPOUT
from canonize.patterns.stacked_linear import refusal
from canonize.report import Report
from canonize.report.record import Finding
from canonize.twins.module_tree import class_name, named_modules
from canonize.vocabulary import (
    NOTHING,
    ROWS,
    Operation,
    asks_size,
    gives_tensor,
    operator_name,
    resolve,
    resolve_module,
)

WHY = {
    "C1": "explainers have no rule for a loose affine, or a wrong one",
    "C2": "rules give other relevances to two linear layers than to the one they amount to",
    "C3": "rules attach to modules, and a module called twice mixes up its two calls",
    "C4": "the function changes from call to call or with the batch",
    "C5": "a layer that does nothing still gets a rule",
}
Layers = dict[fx.Node, nn.Module]


def findings(module: fx.GraphModule, report: Report | None = None, inputs: Inputs | None = None) -> list[Finding]:
    """Where a graph module is not canonical.

    Parameters
    ----------
    module : fx.GraphModule
    report : Report, optional
        Knows why an affine is where it is.
    inputs : Inputs, optional
        What to run it on where a module has no rule: only those that relevance comes through count then.
    """
    reasons = {fate.name: fate.reason for fate in report.affines if fate.reason} if report else {}
    modules = dict(named_modules(module, repeated=True))
    nodes = list(module.graph.nodes)
    layers = {node: modules[str(node.target)] for node in nodes if node.op == "call_module"}
    found = [
        *_loose_affines(nodes, layers),
        *_stacked(nodes, layers),
        *_calls(nodes, layers),
        *_random(nodes, layers),
        *_idle(module, layers),
    ]
    found += _without_rule(module, inputs, {finding.where for finding in found})
    return [
        Finding(f.rule, f.where, f.what, f.why, reasons.get(f.where, f.reason)) if f.where in reasons else f
        for f in found
    ]


def inspect_module(model: nn.Module, inputs: Inputs, versions: dict[str, str]) -> Report:
    """Capture a model and list where it is not canonical."""
    report = Report(model=class_name(model), inputs=inputs.describe(), versions=versions)
    existing = getattr(model, "report", None)
    if isinstance(existing, Report):
        report.affines, report.strategy = list(existing.affines), existing.strategy
    captured = capture(model, inputs)
    report.captured_by = captured.tracer
    traced = fx.GraphModule(captured.root, captured.graph)
    report.findings = findings(traced, report, inputs)
    known = {f.where for f in report.findings}
    used = {str(n.target) for n in captured.graph.nodes if n.op in ("call_module", "get_attr")}
    for name, module in model.named_modules():
        leaf = name and not any(True for _ in module.children())
        if leaf and name not in known and not any(_covers(name, target) for target in used):
            path_used = any(n.meta.get("path") == name for n in captured.graph.nodes)
            if not path_used:
                report.findings.append(_finding("C5", name, f"{type(module).__name__} is never called"))
    return report


def _covers(name: str, target: str) -> bool:
    return target == name or target.startswith(name + ".") or name.startswith(target + ".")


def _finding(rule: str, where: str, what: str, reason: str = "") -> Finding:
    return Finding(rule, where, what, WHY[rule], reason)


def _where(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    path = node.meta.get("path", "")
    return f"{path}.{node.name}".strip(".")


def _loose_affines(nodes: list[fx.Node], layers: Layers) -> Iterator[Finding]:
    for node in nodes:
        layer = layers.get(node)
        if isinstance(layer, BATCH_NORM) and layer.running_mean is not None:
            yield _finding("C1", _where(node), f"{type(layer).__name__} is a fixed affine")
        elif isinstance(layer, nn.LayerNorm | nn.GroupNorm | nn.InstanceNorm2d | nn.InstanceNorm1d | nn.InstanceNorm3d):
            if getattr(layer, "weight", None) is not None:
                yield _finding("C1", _where(node), f"{type(layer).__name__} carries an affine behind its normalisation")
        elif isinstance(layer, Offset):
            tensor = layer.scale if layer.scale is not None else layer.shift
            if tensor is not None and sum(size > 1 for size in tensor.shape) <= 1:
                yield _finding("C1", _where(node), "a fixed scale or shift")
        elif isinstance(layer, Call) and _scales(resolve_module(layer)):
            yield _finding("C1", _where(node), f"{layer.target} scales and shifts every channel")
        elif layer is None and _scales(resolve(node)):
            yield _finding("C1", _where(node), f"{operator_name(node)} is a fixed affine")


def _scales(operation: Operation | None) -> bool:
    """Whether a call scales and shifts every channel: a normalisation by fixed statistics, or with an affine behind."""
    if operation is None or not operation.row.scales:
        return False
    if operation.row.statistics and not operation.counts:
        return operation.get("running_mean") is not None or not operation.bound
    return operation.get("weight") is not None or operation.get("bias") is not None


def _stacked(nodes: list[fx.Node], layers: Layers) -> Iterator[Finding]:
    for node in nodes:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or len(source.users) != 1:
            continue
        first, second = layers.get(source), layers.get(node)
        if not isinstance(first, LINEAR) or not isinstance(second, LINEAR):
            continue
        biased = isinstance(first.bias, Tensor) and bool(first.bias.detach().any())
        if refusal(first, second, biased) is None:
            yield _finding("C2", _where(node), f"{source.target} and {node.target} are one linear layer")


def _calls(nodes: list[fx.Node], layers: Layers) -> Iterator[Finding]:
    counts = Counter(str(node.target) for node in nodes if node.op == "call_module")
    reported: set[str] = set()
    for node in nodes:
        if node.op == "call_module":
            name = str(node.target)
            if counts[name] > 1 and name not in reported:
                reported.add(name)
                yield _finding("C3", name, f"called {counts[name]} times")
            if getattr(layers.get(node), "inplace", False) is True:
                yield _finding("C3", name, "works in place")
        elif node.op in ("call_function", "call_method") and not is_bookkeeping(node):
            kind = "tensor method" if node.op == "call_method" else "functional call"
            yield _finding("C3", _where(node), f"{kind} {operator_name(node) or node.target}")


def _without_rule(module: fx.GraphModule, inputs: Inputs | None, known: set[str]) -> Iterator[Finding]:
    """What every explainer asks as well, in the same words (`canonize.graph.relevance.unruled`)."""
    why = "an explainer would take the plain gradient for its relevance there"
    for operation in unruled(module, inputs):
        if operation.is_affine and operation.where in known:  # C1 and C4 say it
            continue
        yield Finding("C3", operation.where, f"{operation.what}: no rule is known for it", why, "")


def is_bookkeeping(node: fx.Node) -> bool:
    """Sizes, numbers made of them and items of tuples need no rule."""
    name = operator_name(node) or str(getattr(node.target, "__name__", ""))
    if asks_size(node) or ROWS.get(name, NOTHING).asserts or name.startswith("_assert"):
        return True
    if name == "getitem":
        return _gives_tuple(node.args[0]) or _is_size(node.args[0])
    return _is_size(node)


def _gives_tuple(node: object) -> bool:
    """Whether an item of a node's value is bookkeeping: recurrent layers return tuples."""
    if not isinstance(node, fx.Node):
        return False
    owner = node.graph.owning_module
    if node.op == "call_module" and owner is not None:
        layer = owner.get_submodule(str(node.target))
        return isinstance(layer, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention) or type(layer).__name__ == "Call"
    return operator_name(node) == "getitem" and _gives_tuple(node.args[0])


def _is_size(node: object) -> bool:
    """Whether a node computes a number from sizes."""
    if not isinstance(node, fx.Node):
        return True
    if asks_size(node):
        return True
    if node.op not in ("call_function", "call_method") or gives_tensor(node):
        return False
    inputs = node.all_input_nodes
    return bool(inputs) and all(_is_size(n) for n in inputs)


def _random(nodes: list[fx.Node], layers: Layers) -> Iterator[Finding]:
    for node in nodes:
        layer = layers.get(node)
        operation = resolve_module(layer) if layer is not None else resolve(node)
        if isinstance(layer, DROPOUT) or (operation is not None and operation.row.drops):
            yield _finding("C4", _where(node), "dropout")
        elif operation is not None and operation.random:
            yield _finding("C4", _where(node), f"{operation.name} draws random numbers")
        elif isinstance(layer, BATCH_NORM) and layer.running_mean is None:
            yield _finding(
                "C4", _where(node), f"{type(layer).__name__} without running statistics uses those of the batch",
                "batch statistics depend on the input, so there is no fixed affine to fold",
            )  # fmt: skip
        if layer is not None and nn.utils.parametrize.is_parametrized(layer):
            yield _finding("C4", _where(node), "a parametrization recomputes its weight")


def _idle(module: fx.GraphModule, layers: Layers) -> Iterator[Finding]:
    for node in module.graph.nodes:
        if isinstance(layers.get(node), nn.Identity):
            yield _finding("C5", _where(node), "Identity does nothing")


__all__ = ["WHY", "findings", "inspect_module"]
