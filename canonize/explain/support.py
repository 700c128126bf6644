"""What an explainer has no rule for in a model: ``canonize inspect MODEL --for zennit|captum``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from canonize.algebra.weights import LINEAR
from canonize.canonical import is_bookkeeping
from canonize.capture import capture
from canonize.errors import ExplainError
from canonize.explain.libraries import require
from canonize.explain.structure import first_layers
from canonize.graph.factors import module_at, products
from canonize.graph.relevance import RelevantOperation, is_at, unruled
from canonize.inputs import Inputs
from canonize.normalize.naming import operation_name
from canonize.vocabulary.kinds import Kind, described, is_copy, kind_of

EXPLAINERS = ("zennit", "captum")
CANONIZE = "canonize the model"
OPEN = "canonize the model with forms=['open_attention'] (--form open_attention)"
OWN_RULES = "use canonize.explain.composite, layer_map() or Canonizer()"
ATTRIBUTE = "use canonize.explain.attribute, which has rules for attention"
OWN = "give it a rule of yours: composite(..., layers={name: rule})"
TOKENS = "explain tokens at their embeddings: canonize.explain.attribute(model, tokens)"


@dataclass(frozen=True)
class Blocker:
    """A layer that an explainer has no rule for.

    Attributes
    ----------
    where : str
        Qualified name.
    what : str
        What it is, and what the explainer does with it.
    advice : str
        What to do.
    """

    where: str
    what: str
    advice: str


def blockers(model: nn.Module, inputs: Inputs, explainer: str) -> list[Blocker]:
    """Layers of a model that an explainer has no rule for.

    Parameters
    ----------
    model : nn.Module
        Canonical or not; it is captured, and neither changed nor run.
    inputs : Inputs
    explainer : {"zennit", "captum"}

    Returns
    -------
    list of Blocker
        In order of execution; empty where each layer has a rule, or needs none.

    Raises
    ------
    ExplainError
        If the explainer is another.
    CaptureError
        If the model cannot be turned into a graph.
    """
    if explainer not in EXPLAINERS:
        raise ExplainError(f"there is no explainer {explainer!r}", hint=f"Use one of: {', '.join(EXPLAINERS)}")
    require(explainer)
    captured = capture(model, inputs)
    graph = fx.GraphModule(captured.root, captured.graph)
    entered = _entered(graph) if explainer == "zennit" else []
    return [*_calls(graph, explainer), *entered, *_modules(graph, explainer, unruled(graph, inputs))]


def _entered(graph: fx.GraphModule) -> list[Blocker]:
    """Where zennit's composites with a rule for the first layer would give it to another one, or to one of several."""
    registered = [name for name, module in graph.named_modules() if isinstance(module, LINEAR)]
    first = first_layers(graph)
    if not registered or first == registered[:1]:
        return []
    what = f"zennit's first-layer composites give box and flat to {registered[0]} alone; the image enters at "
    return [Blocker(first[0] if first else registered[0], f"{what}{', '.join(first[:4])}", OWN_RULES)]


def _calls(graph: fx.GraphModule, explainer: str) -> Iterator[Blocker]:
    """What is no module, and modules that are called more than once."""
    counts = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    for name, count in counts.items():
        if count > 1 and any(True for _ in graph.get_submodule(name).parameters()):
            fails = "its rule sees the last call alone" if explainer == "zennit" else "LRP and DeepLIFT raise an error"
            yield Blocker(name, f"called {count} times: {fails}", CANONIZE)
        elif count > 1:
            fails = "rules that keep its input see the last call alone" if explainer == "zennit" else "DeepLIFT raises"
            yield Blocker(name, f"called {count} times: {fails}", CANONIZE)
    for node in graph.graph.nodes:
        if node.op in ("call_function", "call_method") and not is_bookkeeping(node):
            operation = operation_name(node) or str(getattr(node.target, "__name__", node.target))
            if is_copy(operation) or operation == "dropout":
                continue
            where = ".".join(part for part in (node.meta.get("path", ""), node.name) if part)
            advice = OPEN if "attention" in operation else CANONIZE
            yield Blocker(where, f"{operation} is no module: hooks cannot see it, the gradient is used", advice)


def _modules(graph: fx.GraphModule, explainer: str, missing: list[RelevantOperation]) -> Iterator[Blocker]:
    seen: set[str] = set()
    shared = _shared_inputs(graph)
    known = products(graph)
    for node in graph.graph.nodes:
        name = str(node.target)
        if node.op != "call_module" or name in seen:
            continue
        seen.add(name)
        module = graph.get_submodule(name)
        if explainer == "zennit":
            found = _in_zennit(module)
        else:
            alone = name in known and sum(known[name].carrying or ()) == 1
            found = _in_captum(module, alone, name in shared)
        without = [operation for operation in missing if is_at(name, operation.where)]
        if found and not (without and found[1] == OWN_RULES):  # there are none either
            yield Blocker(name, *found)
            continue
        for operation in without:
            advice = _advice(operation.module if operation.module is not None else module)
            yield Blocker(operation.where, f"{operation.what}: no rule, the gradient is used", advice)


def _shared_inputs(graph: fx.GraphModule) -> set[str]:
    """Modules whose input somebody else reads, too."""
    return {
        str(node.target)
        for node in graph.graph.nodes
        if module_at(graph, node) is not None and any(len(source.users) > 1 for source in node.all_input_nodes)
    }


Found = tuple[str, str] | None


def _advice(module: nn.Module) -> str:
    return OPEN if "attention" in described(module) or kind_of(module) is Kind.CLOSED else OWN


def _in_zennit(module: nn.Module) -> Found:
    types: Any = require("zennit.types")
    kind, name = kind_of(module), type(module).__name__
    if kind is Kind.CLOSED:
        return "zennit takes MultiheadAttention for an activation and fails on its three inputs", OPEN
    if kind is Kind.BATCH_NORM:
        return f"{name}: LRP composites let relevance pass, Excitation Backprop takes the gradient", CANONIZE
    if kind in (Kind.PRODUCT, Kind.SOFTMAX):
        return f"{described(module)}: zennit's composites take the gradient", "use canonize.explain.composite (AttnLRP)"
    if kind in (Kind.SUM, Kind.GATE):
        return f"{name}: zennit's composites take the gradient, which doubles relevance", OWN_RULES
    if kind is Kind.THRESHOLD:
        return (
            f"{name}: LRP composites take the gradient, as published; GuidedBackprop and DeconvNet take it, too",
            "for those two: layer_map(method='guided-backprop'), Canonizer() or canonize.explain.attribute",
        )
    unknown_type = kind in (Kind.AVERAGE, Kind.ACTIVATION) and not isinstance(module, (types.AvgPool, types.Activation))
    if unknown_type or kind in (Kind.NORMALISATION, Kind.OFFSET, Kind.SCALE):
        return f"{described(module)}: zennit's composites take the gradient", OWN_RULES
    return None


def _in_captum(module: nn.Module, alone: bool, shared: bool) -> Found:
    from canonize.explain.captum import deep_lift, has_lrp_rule

    lrp = require("captum.attr._core.lrp")
    kind, name = kind_of(module), type(module).__name__
    if isinstance(module, nn.Embedding):
        return f"{name}: tokens have no gradient, and LRP has no rule", TOKENS
    if kind is Kind.CLOSED:
        return f"{name}: LRP has no rule, DeepLIFT takes the gradient of products", OPEN
    if (kind is Kind.PRODUCT and not alone) or kind is Kind.SOFTMAX:
        return f"{described(module)}: LRP has no rule, DeepLIFT takes the gradient of products", ATTRIBUTE
    if kind is Kind.BATCH_NORM:
        return f"{name}: LRP gives its shift a share of relevance, or knows no rule", CANONIZE
    if kind is Kind.GATE and not isinstance(module, nn.GLU):
        return f"{name}: LRP has no rule, DeepLIFT takes the gradient and is not complete", _adapter("LRP and DeepLift")
    has_rule = type(module) in lrp.SUPPORTED_LAYERS_WITH_RULES or type(module) in lrp.SUPPORTED_NON_LINEAR_LAYERS
    rescaled = type(module) in deep_lift.SUPPORTED_NON_LINEAR
    if kind in (Kind.THRESHOLD, Kind.ACTIVATION) and not rescaled:
        return f"{name}: LRP has no rule, DeepLIFT takes the gradient", _adapter("LRP and DeepLift")
    if rescaled and shared:
        also = "" if has_rule else "LRP has no rule; "
        what = f"{name}: {also}captum's own DeepLIFT and GuidedBackprop overwrite what its input's other readers give"
        return f"{what}, and are not complete", _adapter("DeepLift and GuidedBackprop")
    if has_rule or kind is Kind.SOURCE:
        return None
    if has_lrp_rule(module):
        return f"{described(module)}: LRP has no rule", _adapter("LRP")
    return f"{described(module)}: no rule, the gradient is used", _advice(module)


def _adapter(classes: str) -> str:
    return f"use {classes} of canonize.explain.captum"


def listed(found: list[Blocker], shown: int = 3) -> list[str]:
    """Lines to print: layers of the same fault and advice together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for blocker in found:
        groups.setdefault((blocker.what, blocker.advice), []).append(blocker.where)
    lines = []
    for (what, advice), names in groups.items():
        several = f"{len(names)} x " if len(names) > 1 else ""
        places = ", ".join(names[:shown]) + (f", and {len(names) - shown} more" if len(names) > shown else "")
        lines += [f"{several}{what}", f"    at {places}", f"    -> {advice}"]
    return lines
