"""From the values of a search's parameters to an explainer: rules for groups of layers, on one canonical form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from canonize.evaluate.experiment import CHOICES, MethodSpec
from canonize.evaluate.metrics.catalogue import Settings
from canonize.evaluate.subject import Subject

DEFAULTS = {"rule": "gamma", "gamma": 0.25, "epsilon": 1e-6, "alpha": 2.0}


@dataclass(frozen=True)
class Configuration:
    """One point of a search space.

    Attributes
    ----------
    values : mapping of str to value
        As `canonize.search.Space` names them; what is not there has its default.
    groups : mapping of str to tuple of str, optional
        Of the space.
    """

    values: Mapping[str, Any]
    groups: Mapping[str, tuple[str, ...]] | None = None

    @property
    def canonization(self) -> str:
        """The canonical form; ``threshold`` by default."""
        return str(self.values.get("canonization", "threshold"))

    def layers(self, model: nn.Module, low: Tensor, high: Tensor) -> dict[tuple[str, ...], Any]:
        """Rules for the layers of `model`, for `canonize.explain.composite`; the first that names a layer counts."""
        from canonize.explain import layer_groups
        from canonize.explain.grouping import select_layers
        from canonize.explain.structure import first_layers

        rules: dict[tuple[str, ...], Any] = {}
        front = self.values.get("front", "group")
        if front == "flat":
            rules[tuple(first_layers(model))] = "flat"
        elif front == "z-box":
            rules[tuple(first_layers(model))] = ("z-box", {"low": low[None], "high": high[None]})
        if self.groups is None:
            groups = layer_groups(model)
        else:
            groups = {group: select_layers(model, patterns) for group, patterns in self.groups.items()}
        for group, names in groups.items():
            # Groups may name the first layers, too, which are not asked about twice.
            rules[(*names,)] = self._rule(group)
        return rules

    def _rule(self, group: str) -> Any:
        def value(kind: str) -> Any:
            return self.values.get(f"{kind}.{group}", DEFAULTS[kind])

        rule = value("rule")
        if rule == "alpha-beta":
            return rule, {"alpha": value("alpha"), "beta": value("alpha") - 1}
        return (rule, {rule: value(rule)}) if rule in ("gamma", "epsilon") else rule

    def subject(self, model: nn.Module, low: Tensor, high: Tensor, settings: Settings | None = None) -> Subject:
        """The model, explained by this configuration."""
        choices = {name: str(self.values[name]) for name in CHOICES if name in self.values}
        spec = MethodSpec("searched", "epsilon-plus", {}, choices)
        parameter = next(model.parameters())
        layers = self.layers(model, low.to(parameter), high.to(parameter))
        return Subject(model, spec, low, high, layers, settings)
