"""Rules of linear layers by name, and groups of layers to give them to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from canonize.algebra.weights import LINEAR
from canonize.errors import ExplainError
from canonize.explain.libraries import require

require("zennit")

from zennit import rules as zennit_rules  # noqa: E402 - only once torchvision can be imported
from zennit.core import Hook, Stabilizer  # noqa: E402


@dataclass(frozen=True)
class NamedRule:
    """A rule of linear layers.

    Attributes
    ----------
    build : callable
        Makes the hook from hyperparameters.
    parameters : tuple of str
        Hyperparameters it takes; those without a default come first in ``required``.
    required : tuple of str
    """

    build: Callable[..., Hook]
    parameters: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


def relative_epsilon(epsilon: float = 0.25, zero_params: Any = None) -> Hook:
    r"""Epsilon as a share of the root mean square of a layer's outputs, :math:`\epsilon \sqrt{\overline{z^2}}`."""
    return zennit_rules.Epsilon(Stabilizer(epsilon, norm_scale=True), zero_params)


_COMMON = ("stabilizer", "zero_params")
RULES: dict[str, NamedRule] = {
    "epsilon": NamedRule(zennit_rules.Epsilon, ("epsilon", "zero_params")),
    "relative-epsilon": NamedRule(relative_epsilon, ("epsilon", "zero_params")),
    "z-plus": NamedRule(zennit_rules.ZPlus, _COMMON),
    "gamma": NamedRule(zennit_rules.Gamma, ("gamma", *_COMMON)),
    "alpha-beta": NamedRule(zennit_rules.AlphaBeta, ("alpha", "beta", *_COMMON)),
    "flat": NamedRule(zennit_rules.Flat, _COMMON),
    "w-square": NamedRule(zennit_rules.WSquare, _COMMON),
    "z-box": NamedRule(zennit_rules.ZBox, ("low", "high", *_COMMON), ("low", "high")),
    "norm": NamedRule(zennit_rules.Norm, ("stabilizer",)),
    "pass": NamedRule(zennit_rules.Pass),
}


def rule(name: str | Hook, **hyperparameters: Any) -> Hook | None:
    """A zennit hook by the name of its rule.

    Parameters
    ----------
    name : str or zennit.core.Hook
        ``epsilon``, ``relative-epsilon`` (times the root mean square of the layer's outputs), ``z-plus``, ``gamma``,
        ``alpha-beta``, ``flat``, ``w-square``, ``z-box``, ``norm``, ``pass``, or ``gradient`` (no hook at all). A hook
        is returned as it is.
    **hyperparameters
        Of the rule: ``epsilon``, ``gamma``, ``alpha`` and ``beta``, ``low`` and ``high`` (z-box), ``stabilizer``,
        ``zero_params``.

    Raises
    ------
    ExplainError
        If there is no such rule, it does not take that hyperparameter, or needs one that is not given.
    """
    if isinstance(name, Hook):
        return name
    if name == "gradient":
        return None
    if name not in RULES:
        raise ExplainError(f"there is no rule {name!r}", hint=f"Rules: gradient, {', '.join(RULES)}")
    known = RULES[name]
    for given in hyperparameters:
        if given not in known.parameters:
            takes = ", ".join(known.parameters) or "none"
            raise ExplainError(f"the rule {name} has no hyperparameter {given!r}", hint=f"It takes: {takes}")
    for wanted in known.required:
        if hyperparameters.get(wanted) is None:
            raise ExplainError(f"the rule {name} needs {wanted}", hint=f"Give {wanted}=..., the bound of the input")
    return known.build(**hyperparameters)


def linear_layers(model: nn.Module) -> list[str]:
    """Qualified names of a model's linear layers: in the order of execution where the model is a graph."""
    if isinstance(model, fx.GraphModule):
        called = [str(node.target) for node in model.graph.nodes if node.op == "call_module"]
        return [name for name in called if isinstance(model.get_submodule(name), LINEAR)]
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, fx.GraphModule):
            found += [f"{name}.{inner}" for inner in linear_layers(module)]
        elif isinstance(module, LINEAR) and name not in found:
            found.append(name)
    return found


def layer_groups(
    model: nn.Module, names: Sequence[str] = ("low", "middle", "high"), classifier: str | None = "classifier"
) -> dict[str, list[str]]:
    """Split a model's linear layers into groups that can be given a rule each.

    Parameters
    ----------
    model : nn.Module
    names : sequence of str
        One group for each: the convolutions in order of execution, the first and the last group half as large as those
        between them (rounded up).
    classifier : str or None
        Group of the fully connected layers; None counts them with the convolutions.

    Returns
    -------
    dict
        Group to qualified names, for ``composite(..., layers=...)``. Groups without layers are left out.

    Notes
    -----
    The partition that Pahde et al. 2023 and Bermúdez Schettino 2022 search hyperparameters over: of VGG-13's
    convolutions 3, 4, 3 are low, middle, high; of VGG-16's 4, 5, 4; of ResNet-18's 5, 10, 5. Others are made by
    `canonize.explain.grouping.select_layers`.
    """
    layers = linear_layers(model)
    dense = [name for name in layers if classifier is not None and isinstance(model.get_submodule(name), nn.Linear)]
    rest = [name for name in layers if name not in set(dense)]
    groups: dict[str, list[str]] = {}
    borders = _borders(len(rest), len(names))
    for group, first, last in zip(names, borders, borders[1:], strict=False):
        groups[group] = rest[first:last]
    if classifier is not None:
        groups[classifier] = dense
    return {group: members for group, members in groups.items() if members}


def _borders(layers: int, groups: int) -> list[int]:
    """Where groups of layers begin, and where the last one ends."""
    if groups < 2:
        return [0, layers][: groups + 1]
    outer = -(-layers // (2 * groups - 2))
    inner = max(layers - 2 * outer, 0)
    between = [min(outer, layers) + inner * place // max(groups - 2, 1) for place in range(groups - 1)]
    return [0, *(between if groups > 2 else [outer]), layers]
