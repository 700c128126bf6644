"""What an explainer has no rule for in a model: ``canonize inspect MODEL --for zennit|captum``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from canonize import nn as cnn
from canonize.algebra.weights import LINEAR
from canonize.canonical import is_bookkeeping
from canonize.capture import capture
from canonize.errors import ExplainError
from canonize.explain.composites import MORE_ACTIVATIONS, NORMALISATIONS
from canonize.explain.libraries import require
from canonize.explain.structure import factors, is_matrix_product
from canonize.inputs import Inputs
from canonize.normalize.naming import operation_name
from canonize.normalize.translate import BATCH_NORM, DROPOUT, MOVEMENT

EXPLAINERS = ("zennit", "captum")
CANONIZE = "canonize the model"
OPEN = "canonize the model with forms=['open_attention'] (--form open_attention)"
OWN_RULES = "use canonize.explain.composite, layer_map() or Canonizer()"
# An output is a copy of one input or a constant: the gradient is the rule.
MOVEMENTS = (
    *(cnn.Concat, cnn.ChannelPad, cnn.Rearrange, cnn.Constant, nn.Flatten, nn.Unflatten, nn.PixelShuffle),
    *(nn.PixelUnshuffle, nn.ChannelShuffle, nn.Identity, *DROPOUT, nn.ConstantPad1d, nn.ConstantPad2d),
    *(nn.ConstantPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d),
    *(nn.ReplicationPad2d, nn.ReplicationPad3d, nn.Embedding),
)

# Functions of the same kind: without a hook, their gradient hands relevance back to where it came from.
MOVING = (*MOVEMENT, "cat", "concat", "concatenate", "stack", "chunk", "split", "unbind", "getitem", "dropout", "pad")


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
    return [*_calls(graph, explainer), *_modules(graph, explainer)]


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
            if operation in MOVING:
                continue
            where = ".".join(part for part in (node.meta.get("path", ""), node.name) if part)
            advice = OPEN if "attention" in operation else CANONIZE
            yield Blocker(where, f"{operation} is no module: hooks cannot see it, the gradient is used", advice)


def _modules(graph: fx.GraphModule, explainer: str) -> Iterator[Blocker]:
    signals = factors(graph)
    seen: set[str] = set()
    for node in graph.graph.nodes:
        name = str(node.target)
        if node.op != "call_module" or name in seen:
            continue
        seen.add(name)
        module = graph.get_submodule(name)
        found = _in_zennit(module, signals.get(name)) if explainer == "zennit" else _in_captum(module)
        if found:
            yield Blocker(name, *found)


Found = tuple[str, str] | None


def _in_zennit(module: nn.Module, signal: int | None) -> Found:
    types: Any = require("zennit.types")
    kind = type(module).__name__
    if isinstance(module, nn.MultiheadAttention):
        return "zennit takes MultiheadAttention for an activation and fails on its three inputs", OPEN
    if isinstance(module, BATCH_NORM):
        return f"{kind}: LRP composites let relevance pass, Excitation Backprop takes the gradient", CANONIZE
    if is_matrix_product(module) or isinstance(module, nn.Softmax):
        return (
            f"{_described(module)}: zennit's composites take the gradient",
            "use canonize.explain.composite (AttnLRP)",
        )
    if isinstance(module, (cnn.Sum, cnn.Gate, nn.GLU)):
        return f"{kind}: zennit's composites take the gradient, which doubles relevance", OWN_RULES
    if isinstance(module, (cnn.Mean, cnn.SumOver, nn.Upsample, cnn.Offset, *NORMALISATIONS, *MORE_ACTIVATIONS)):
        return f"{kind}: zennit's composites take the gradient", OWN_RULES
    known = (types.Activation, types.AvgPool, types.MaxPool, *LINEAR, *MOVEMENTS)
    return None if isinstance(module, known) else _unknown(module)


def _in_captum(module: nn.Module) -> Found:
    from canonize.explain.captum import ELEMENTWISE, LINEAR_MAPS, captum_attr, deep_lift

    lrp = require("captum.attr._core.lrp")
    kind = type(module).__name__
    if isinstance(module, nn.MultiheadAttention) or is_matrix_product(module) or isinstance(module, nn.Softmax):
        advice = "use canonize.explain.attribute, which has rules for attention"
        return f"{_described(module)}: LRP has no rule, DeepLIFT takes the gradient of products", advice
    if isinstance(module, BATCH_NORM):
        return f"{kind}: LRP gives its shift a share of relevance, or knows no rule", CANONIZE
    if isinstance(module, (cnn.Gate, nn.GLU)):
        return f"{kind}: LRP has no rule, DeepLIFT takes the gradient and is not complete", _adapter("LRP")
    assert captum_attr is not None
    has_rule = type(module) in lrp.SUPPORTED_LAYERS_WITH_RULES or type(module) in lrp.SUPPORTED_NON_LINEAR_LAYERS
    rescaled = type(module) in deep_lift.SUPPORTED_NON_LINEAR
    elementwise = isinstance(module, (*ELEMENTWISE, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus))
    if isinstance(module, (cnn.ThreshReLU, cnn.ThreshLeakyReLU, *ELEMENTWISE)) and not rescaled:
        return f"{kind}: LRP has no rule, DeepLIFT takes the gradient", _adapter("LRP and DeepLift")
    if has_rule:
        return None
    adapted = (*LINEAR, *LINEAR_MAPS, *MOVEMENTS, *NORMALISATIONS, cnn.Offset)
    types: Any = require("zennit.types")
    if elementwise or isinstance(module, (*adapted, types.AvgPool, types.MaxPool)):
        return f"{kind}: LRP has no rule", _adapter("LRP")
    return _unknown(module)


def _adapter(classes: str) -> str:
    return f"use {classes} of canonize.explain.captum"


def _described(module: nn.Module) -> str:
    return "a matrix product" if is_matrix_product(module) else type(module).__name__


def _unknown(module: nn.Module) -> Found:
    what = f"a call of {module.target}" if isinstance(module, cnn.Call) else type(module).__name__
    advice = OPEN if "attention" in what else "give it a rule of yours: composite(..., layers={name: rule})"
    return f"{what}: no rule, the gradient is used", advice


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
