r"""A ledger of relevance: what came into each layer, what went on, and what was kept, and by what.

.. math:: R_{received} = \sum_{arguments} R_{passed} + R_{bias} + R_{stabilizer} + R_{threshold} + \dots

LRP conserves relevance but for what a layer's bias takes as its share, what a stabilizer adds to a denominator, and
what is given to constants: positions beyond a threshold, padding. The ledger measures every one of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from canonize.compat.private import pytree
from canonize.explain.libraries import require
from canonize.explain.rule_hooks import Block, SumNorm
from canonize.graph.relevance import is_one_operation
from canonize.vocabulary.kinds import Kind, described, kind_of

require("zennit")

from zennit.core import BasicHook, ParamMod  # noqa: E402 - only once torchvision can be imported

# What keeps relevance, and how it is said.
REASONS = {
    "bias": "biases, which get their share",
    "stabilizer": "stabilizers in denominators, and sums with nothing in them (no negative part, say)",
    "threshold": "positions beyond a threshold, which are constants",
    "constants": "constants: padding, and terms that do not depend on the input",
    "refused": "branches that get nothing by the rule chosen",
    "expansion": "softmax, expanded to first order",
    "activation": "activations under their gradient",
    "gradient": "the plain gradient, which was chosen",
    "no rule": "operations without a rule",
}


@dataclass(frozen=True)
class LayerFlow:
    """Relevance at one layer, summed over samples and targets.

    Attributes
    ----------
    name, what : str
        Qualified name, and what it is.
    rule : str
        Class of the hook; ``gradient`` where there is none.
    received : float
        What arrived at its output.
    passed : tuple of float
        What it gave to each of its arguments.
    kept : mapping
        Reason (see ``REASONS``) to what was kept for it; negative where relevance came into being.
    """

    name: str
    what: str
    rule: str
    received: float
    passed: tuple[float, ...]
    kept: Mapping[str, float]

    @property
    def leak(self) -> float:
        """What did not go on."""
        return self.received - sum(self.passed)


@dataclass(frozen=True)
class Ledger:
    """Where relevance went, layer by layer.

    Attributes
    ----------
    method : str
    started : float
        Relevance of the output, summed over samples and targets.
    arrived : tuple
        Relevance of each input; None for those that get none.
    layers : tuple of LayerFlow
        From the output to the input.
    """

    method: str
    started: float
    arrived: tuple[float | None, ...]
    layers: tuple[LayerFlow, ...]

    @property
    def kept(self) -> dict[str, float]:
        """Reason to what all layers together kept for it, the largest first."""
        totals: dict[str, float] = {}
        for layer in self.layers:
            for reason, amount in layer.kept.items():
                totals[reason] = totals.get(reason, 0.0) + amount
        return dict(sorted(totals.items(), key=lambda item: -abs(item[1])))

    @property
    def unaccounted(self) -> float:
        """What neither arrived nor was kept by a layer: bare functions outside of modules, or rounding."""
        return self.started - sum(value for value in self.arrived if value is not None) - sum(self.kept.values())

    def leaks(self, count: int = 5) -> list[LayerFlow]:
        """The layers that kept most, or made most out of nothing."""
        ordered = sorted(self.layers, key=lambda layer: -abs(layer.leak))
        return [layer for layer in ordered[:count] if abs(layer.leak) > 1e-12 * max(abs(self.started), 1e-300)]

    def table(self) -> list[dict[str, Any]]:
        """A row for each layer, for ``pandas.DataFrame`` and its kin."""
        return [
            {"layer": f.name, "what": f.what, "rule": f.rule, "received": f.received, "passed": sum(f.passed)}
            | {reason: f.kept.get(reason, 0.0) for reason in REASONS}
            for f in self.layers
        ]

    def to_json(self) -> str:
        """All of it."""
        data = {
            "method": self.method,
            "started": self.started,
            "arrived": list(self.arrived),
            "kept": self.kept,
            "unaccounted": self.unaccounted,
            "layers": [
                {"name": f.name, "what": f.what, "rule": f.rule, "received": f.received, "passed": list(f.passed)}
                | {"kept": dict(f.kept)}
                for f in self.layers
            ],
        }
        return json.dumps(data, indent=2)

    def __str__(self) -> str:
        scale = abs(self.started) or 1.0
        lines = [f"{self.method}: relevance {self.started:.6g} at the output"]
        arrived = sum(value for value in self.arrived if value is not None)
        lines.append(f"  {arrived / scale:10.4%}  arrives at the input")
        lines += [f"  {amount / scale:10.4%}  kept by {REASONS[reason]}" for reason, amount in self.kept.items()]
        if abs(self.unaccounted) > 1e-5 * scale:
            lines.append(f"  {self.unaccounted / scale:10.4%}  lost or made outside of modules")
        leaks = self.leaks()
        if leaks:
            lines.append("largest leaks:")
        for layer in leaks:
            why = ", ".join(reason for reason, amount in layer.kept.items() if abs(amount) > abs(layer.leak) / 10)
            lines.append(f"  {layer.leak / scale:10.4%}  {layer.name} ({layer.what}): {why}")
        return "\n".join(lines)

    def plot(self, file: str | Path) -> None:
        """A picture: relevance that goes on behind each layer, and what each keeps, from the output to the input."""
        figures, agg = require("matplotlib.figure"), require("matplotlib.backends.backend_agg")
        figure = figures.Figure(figsize=(8, 0.9 + 0.22 * max(len(self.layers), 8)), layout="constrained")
        agg.FigureCanvasAgg(figure)
        axis = figure.subplots()
        places = range(len(self.layers))
        scale = abs(self.started) or 1.0
        left = [0.0] * len(self.layers)
        for reason in REASONS:
            amounts = [abs(layer.kept.get(reason, 0.0)) / scale for layer in self.layers]
            if any(amounts):
                axis.barh(places, amounts, left=left, label=reason)
                left = [a + b for a, b in zip(left, amounts, strict=True)]
        axis.set_yticks(list(places), [layer.name for layer in self.layers], fontsize=6)
        axis.invert_yaxis()
        axis.set_xlabel("kept, as a share of the output's relevance (absolute)")
        axis.set_title(f"{self.method}: {sum(v or 0.0 for v in self.arrived) / scale:.1%} arrives", fontsize=10)
        if any(left):
            axis.legend(fontsize=7)
        figure.savefig(file, dpi=120)


def joined(ledgers: Sequence[Ledger]) -> Ledger:
    """One ledger of several batches of the same model under the same rules."""
    first = ledgers[0]
    flows: dict[str, LayerFlow] = {}
    for ledger in ledgers:
        for flow in ledger.layers:
            flows[flow.name] = _added(flows[flow.name], flow) if flow.name in flows else flow
    arrived = tuple(
        None if first.arrived[place] is None else sum(ledger.arrived[place] or 0.0 for ledger in ledgers)
        for place in range(len(first.arrived))
    )
    return Ledger(first.method, sum(ledger.started for ledger in ledgers), arrived, tuple(flows.values()))


def _added(one: LayerFlow, other: LayerFlow) -> LayerFlow:
    kept = {reason: one.kept.get(reason, 0.0) + other.kept.get(reason, 0.0) for reason in {**one.kept, **other.kept}}
    passed = tuple(a + b for a, b in zip_longest(one.passed, other.passed, fillvalue=0.0))
    return LayerFlow(one.name, one.what, one.rule, one.received + other.received, passed, kept)


@dataclass
class _Page:
    """What is written down of one layer while relevance passes."""

    name: str
    module: nn.Module
    received: float = 0.0
    passed: dict[int, float] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    above: Tensor | None = None
    counted: bool = True

    def keep(self, reason: str, amount: float) -> None:
        self.kept[reason] = self.kept.get(reason, 0.0) + amount


class Bookkeeper:
    """Writes the ledger while a composite explains a model; use it as a context, inside the composite's.

    Parameters
    ----------
    model : nn.Module
    hooks : mapping
        Qualified name to the hook that the composite has attached.
    """

    def __init__(self, model: nn.Module, hooks: Mapping[str, Any]) -> None:
        self.hooks = hooks
        self.pages: dict[str, _Page] = {}
        self.handles: list[Any] = []
        self.model = model

    def __enter__(self) -> Bookkeeper:
        inside: set[nn.Module] = set()
        for name, module in self.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule) or module in inside or not is_one_operation(module):
                continue
            inside.update(module.modules())
            page = _Page(name, module)
            self.handles.append(module.register_forward_pre_hook(self._before(page), prepend=True))
            self.handles.append(module.register_forward_hook(self._behind(page)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
        for page in self.pages.values():
            page.above = None

    def _before(self, page: _Page) -> Any:
        def before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(
                pytree.tree_map(lambda part, at=place: self._watched(page, at, part), value)
                for place, value in enumerate(inputs)
            )

        return before

    def _watched(self, page: _Page, place: int, value: Any) -> Any:
        """An alias of an argument for this layer alone: what reaches it on the way back is what the layer passes."""
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        alias = value.view_as(value)

        def passed(gradient: Tensor) -> None:
            page.passed[place] = page.passed.get(place, 0.0) + _total(gradient)
            if not page.counted:
                page.counted = True
                self._explain(page)

        alias.register_hook(passed)
        return alias

    def _behind(self, page: _Page) -> Any:
        def behind(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            for tensor in pytree.tree_leaves(output):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(self._received(page))

        return behind

    def _received(self, page: _Page) -> Any:
        def received(gradient: Tensor) -> None:
            self.pages.setdefault(page.name, page)
            page.received += _total(gradient)
            page.above, page.counted = gradient.detach(), False

        return received

    def _explain(self, page: _Page) -> None:
        """Write down, once for each pass, what can be told apart from the mere difference."""
        hook, module = self.hooks.get(page.name), page.module
        assert page.above is not None
        if isinstance(hook, BasicHook) and isinstance(getattr(module, "bias", None), Tensor):
            amount = _share_of_bias(hook, module, page.above)
            if amount:
                page.keep("bias", amount)
        elif isinstance(hook, SumNorm) and kind_of(module) is Kind.SUM and hook.stored_tensors:
            stored = hook.stored_tensors
            ratio = hook.divided(page.above, stored["output"])
            terms = zip(module.weights, stored["inputs"], stored["needed"], strict=True)  # type: ignore[arg-type]
            amount = sum(_total(weight * value * ratio) for weight, value, needed in terms if not needed)
            if amount:
                page.keep("constants", amount)

    def ledger(self, method: str, started: float, arrived: tuple[float | None, ...]) -> Ledger:
        """What was written down."""
        return Ledger(method, started, arrived, tuple(self._flows()))

    def _flows(self) -> Iterator[LayerFlow]:
        for page in self.pages.values():
            hook = self.hooks.get(page.name)
            passed = tuple(page.passed[place] for place in sorted(page.passed))
            rest = page.received - sum(passed) - sum(page.kept.values())
            kept = dict(page.kept)
            if abs(rest) > 1e-12 * max(abs(page.received), *(abs(value) for value in passed), 0.0):
                reason = _reason(kind_of(page.module), hook)
                kept[reason] = kept.get(reason, 0.0) + rest
            rule = type(hook).__name__ if hook is not None else "gradient"
            yield LayerFlow(page.name, described(page.module), rule, page.received, passed, kept)


def _reason(kind: Kind, hook: Any) -> str:
    """What the difference at a layer of a kind, under a rule, is due to."""
    if kind is Kind.THRESHOLD:
        return "threshold"
    if kind in (Kind.COPY, Kind.SOURCE, Kind.OFFSET, Kind.DISCRETE):
        return "constants"
    if kind in (Kind.UNKNOWN, Kind.CLOSED):
        return "stabilizer" if hook is not None else "no rule"
    if isinstance(hook, Block):
        return "refused"
    if kind is Kind.SOFTMAX:
        return "expansion" if hook is not None else "gradient"
    if kind is Kind.ACTIVATION:
        return "activation"
    return "stabilizer" if hook is not None else "gradient"


def _share_of_bias(hook: Any, module: nn.Module, above: Tensor) -> float:
    """What a rule gives to a layer's bias: the same computation, with the bias in the place of the input."""
    stored = hook.stored_tensors.get("input")
    if stored is None:
        return 0.0
    given = stored[0].detach()
    outputs, biases = [], []
    for of_input, of_parameters, of_output in zip(
        hook.input_modifiers, hook.param_modifiers, hook.output_modifiers, strict=True
    ):
        with ParamMod.ensure(of_parameters)(module) as modified, torch.enable_grad():
            biases.append(modified.bias)
            outputs.append(of_output(modified.forward(of_input(given))))
    if not any(bool(bias.any()) for bias in biases):
        return 0.0
    ratios = hook.gradient_mapper(above, outputs)
    gradients = torch.autograd.grad(outputs, biases, ratios, allow_unused=True)
    known = [torch.zeros_like(b) if g is None else g for b, g in zip(biases, gradients, strict=True)]
    return _total(hook.reducer(biases, known))


def _total(value: Tensor) -> float:
    return float(value.detach().double().sum())
