"""zennit composites in which every layer of a canonical model has a rule.

zennit's own composites know its own layers; sums, gates, means and attention of a canonical model would get the plain
gradient there (a residual sum without a rule doubles relevance). The rules of what is no linear layer are
:class:`Choices`; those of the linear layers are the method's, and can be replaced layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from canonize import nn as cnn
from canonize.errors import ExplainError
from canonize.explain.border import padded_layers, shift_beside
from canonize.explain.libraries import require
from canonize.explain.methods import METHODS, Method, find
from canonize.explain.rule_hooks import (
    Block,
    ByContribution,
    FirstHalf,
    ProductEpsilon,
    RectifiedThreshold,
    SignalTakesAll,
    SoftmaxTaylor,
    SumNorm,
    Uniform,
)
from canonize.explain.rules import rule
from canonize.explain.structure import first_layers
from canonize.graph.factors import Factors, products
from canonize.graph.relevance import is_one_operation
from canonize.vocabulary.kinds import Kind, kind_of

require("zennit")

from zennit import rules as zennit_rules  # noqa: E402 - only once torchvision can be imported
from zennit.core import BasicHook, Composite, Hook  # noqa: E402


@dataclass(frozen=True)
class Choices:
    """Rules for everything but linear layers, where the literature has more than one.

    Attributes
    ----------
    threshold : {"gradient", "pass"}
        ThreshReLU: what is clamped is a constant and gets no relevance (as published), or relevance passes.
    gate : {"signal", "uniform", "gradient"}
        Products: the signal takes all; each factor half (AttnLRP); or the plain gradient.
    sum : {"norm", "gradient"}
        Residual sums: by contribution; or the plain gradient, which doubles relevance.
    pool : {"norm", "gradient"}
        Average pooling, means, sums over positions, resizing: by contribution, or the plain gradient.
    offset : {"pass", "norm", "gradient"}
        A constant that is added or multiplied: relevance passes, or the constant keeps its share.
    normalisation : {"pass", "gradient"}
        The input-dependent part of LayerNorm, GroupNorm, InstanceNorm: relevance passes (AttnLRP's identity rule).
    attention : {"attnlrp", "cplrp", "gradient"}
        Softmax and matrix products: AttnLRP (Achtibat et al. 2024); relevance through the values alone (CP-LRP, Ali et
        al. 2022); or the plain gradient.
    padding : {"layer", "added"}
        The shift of a BatchNorm in a zero-padded convolution: part of the layer's bias (Eq. 4 of Pahde et al.); or
        added behind the layer, where no rule sees it, as their code does.
    """

    threshold: str = "gradient"
    gate: str = "signal"
    sum: str = "norm"
    pool: str = "norm"
    offset: str = "pass"
    normalisation: str = "pass"
    attention: str = "attnlrp"
    padding: str = "layer"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in ALLOWED[field.name]:
                options = ", ".join(ALLOWED[field.name])
                raise ExplainError(f"there is no choice {field.name}={value!r}", hint=f"Choose from: {options}")


ALLOWED = {
    "threshold": ("gradient", "pass"),
    "gate": ("signal", "uniform", "gradient"),
    "sum": ("norm", "gradient"),
    "pool": ("norm", "gradient"),
    "offset": ("pass", "norm", "gradient"),
    "normalisation": ("pass", "gradient"),
    "attention": ("attnlrp", "cplrp", "gradient"),
    "padding": ("layer", "added"),
}
Layers = Mapping[Any, Any]


class RuleComposite(Composite):
    """A rule for each layer of a model: by name first, then for the first layers, then by type.

    Parameters
    ----------
    method : Method
        Whose rules the linear layers and the activations get.
    choices : Choices
        Rules of everything else.
    layers : mapping
        Name, glob pattern or tuple of names to a rule.
    hyperparameters : mapping
        Of the method.
    canonizers : sequence
        zennit canonizers.
    """

    def __init__(
        self,
        method: Method,
        choices: Choices,
        layers: Layers,
        hyperparameters: Mapping[str, Any],
        canonizers: Sequence[Any] = (),
    ) -> None:
        super().__init__(module_map=self.mapping, canonizers=list(canonizers))
        self.method, self.choices = method, choices
        given = dict(method.defaults) | dict(hyperparameters)
        self.stabilizer = given.get("stabilizer", 1e-6)
        self.epsilon = given.get("epsilon", 1e-6)
        self.named = [(_names(key), _as_hook(value)) for key, value in layers.items()]
        self.linear = {kind: _built(name, given) for kind, name in method.rules.items()}
        self.attached: dict[str, Hook] = {}

    def register(self, module: nn.Module) -> None:
        """Attach the rules to a model, as zennit's composites do, and remember which module got which hook."""
        self.remove()
        self.attached = {}
        for canonizer in self.canonizers:
            self.handles += canonizer.apply(module)
        context: dict[str, Any] = {}
        padded = padded_layers(module) if self.choices.padding == "added" else {}
        for name, child in module.named_modules():
            template = self.module_map(context, name, child)
            if template is not None:
                hook = shift_beside(template, child, padded[name], name) if name in padded else template.copy()
                self.hook_refs.add(hook)
                self.handles.append(hook.register(child))
                self.attached[name] = hook

    def remove(self) -> None:
        """Take the rules off again."""
        super().remove()
        self.attached = {}

    def names_rule_of(self, name: str, module: nn.Module) -> bool:
        """Whether a layer was given its rule by name."""
        return any(_is_meant(name, module, known, hook) for names, hook in self.named for known in names)

    def mapping(self, context: dict[str, Any], name: str, module: nn.Module) -> Hook | None:
        """The hook of one module; zennit asks for each, the root first."""
        if not context:
            context["first"] = set(first_layers(module)) if "first" in self.linear else set()
            context["products"] = products(module)
        for names, hook in self.named:
            if any(_is_meant(name, module, known, hook) for known in names):
                return hook
        if name in context["first"]:
            return self.linear["first"]
        kind = kind_of(module)
        if kind is Kind.LINEAR:
            return self.linear.get("dense" if isinstance(module, nn.Linear) else "convolution")
        if "relu" in self.linear:
            return self._rectified(module)
        return self._other(kind, module, context["products"].get(name, Factors())) if self.method.shares else None

    def _rectified(self, module: nn.Module) -> Hook | None:
        """The hook of a rectifier, in methods that bend gradients there and nowhere else."""
        if isinstance(module, cnn.ThreshReLU):
            return RectifiedThreshold(masks=self.method.rules["relu"] == "guided")
        return self.linear["relu"] if isinstance(module, nn.ReLU) else None

    def _other(self, kind: Kind, module: nn.Module, found: Factors) -> Hook | None:
        """The hook of what is no linear layer."""
        choices, stabilizer = self.choices, self.stabilizer
        if kind is Kind.THRESHOLD:
            return zennit_rules.Pass() if choices.threshold == "pass" and self.method.activations else None
        if kind in (Kind.ACTIVATION, Kind.BATCH_NORM):
            return zennit_rules.Pass() if self.method.activations else None
        if kind is Kind.SUM:
            return SumNorm(stabilizer) if choices.sum == "norm" else None
        if kind is Kind.AVERAGE:
            if choices.pool == "gradient":
                return None
            return ByContribution(stabilizer) if isinstance(module, cnn.Call) else zennit_rules.Norm(stabilizer)
        if kind is Kind.OFFSET:
            hooks = {"pass": zennit_rules.Pass, "norm": lambda: zennit_rules.Norm(stabilizer), "gradient": lambda: None}
            return hooks[choices.offset]()
        if kind is Kind.NORMALISATION:
            return SignalTakesAll() if choices.normalisation == "pass" else None
        if kind is Kind.GATE:
            return gate_hook(module, choices.gate, found)
        if kind is Kind.SCALE:
            return SignalTakesAll(found.signal, found.carrying)
        return self._attention(kind, found)

    def _attention(self, kind: Kind, found: Factors) -> Hook | None:
        if self.choices.attention == "gradient":
            return None
        values_only = self.choices.attention == "cplrp"
        if kind is Kind.SOFTMAX:
            return Block() if values_only else SoftmaxTaylor()
        if kind is Kind.PRODUCT:
            return ProductEpsilon(self.epsilon, found.signal if values_only else None, found.carrying)
        return None


def gate_hook(module: nn.Module, choice: str, found: Factors) -> Hook | None:
    """The rule of a product, given what its surroundings say of its factors."""
    if choice == "gradient" and sum(found.carrying or (True, True)) > 1:
        return None
    if isinstance(module, nn.GLU):
        return FirstHalf()
    return Uniform() if choice == "uniform" else SignalTakesAll(found.signal, found.carrying)


def composite(
    name: str,
    *,
    choices: Choices | Mapping[str, str] | None = None,
    layers: Layers | None = None,
    canonizers: Sequence[Any] = (),
    **hyperparameters: Any,
) -> RuleComposite:
    """A zennit composite by the name of its method.

    Parameters
    ----------
    name : str
        ``epsilon-plus``, ``alpha2-beta1``, ...: :func:`canonize.explain.methods` lists those of kind ``rules``.
    choices : Choices, optional
        Rules of thresholds, gates, sums, pooling, constants, normalisations and attention.
    layers : mapping, optional
        Rules of single layers, before everything else: a qualified name, a glob pattern (``"features.0*"``), or a tuple
        of them, to a rule: its name, ``(name, {hyperparameters})`` or a zennit hook.
        :func:`~canonize.explain.layer_groups` makes groups of layers.
    canonizers : sequence
        zennit canonizers, for models that are not canonical.
    **hyperparameters
        Of the method: ``epsilon``, ``gamma``, ``alpha``, ``beta``, ``low`` and ``high`` (bounds of the input, for box),
        ``stabilizer``, ``zero_params``.

    Returns
    -------
    zennit.core.Composite

    Raises
    ------
    ExplainError
        If there is no such method or rule, or it does not take that hyperparameter.

    Notes
    -----
    On what zennit has rules for, these are its composites of the same names; heatmaps are equal to the last digit. The
    first layers are read off the graph: all that the input reaches through no other linear layer.
    """
    method = find(name)
    if method.kind != "rules":
        known = ", ".join(m.name for m in METHODS if m.kind == "rules")
        raise ExplainError(f"{method.name} is no set of rules", hint=f"Sets of rules: {known}")
    method.check(hyperparameters)
    return RuleComposite(method, chosen(choices), layers or {}, hyperparameters, canonizers)


def _is_meant(name: str, module: nn.Module, known: str, hook: Hook | None) -> bool:
    """Whether a name or a pattern means a module: a pattern means no more than what its rule is a rule of."""
    if name == known:
        return True
    if not fnmatchcase(name, known) or not is_one_operation(module) or kind_of(module) is Kind.SOURCE:
        return False
    of_linear_layers = isinstance(hook, BasicHook) and not isinstance(hook, zennit_rules.Norm)
    return not of_linear_layers or kind_of(module) is Kind.LINEAR


def chosen(choices: Choices | Mapping[str, str] | None) -> Choices:
    """Choices of rules, given as such or as a mapping.

    Raises
    ------
    ExplainError
        If they are neither, or there is no such choice.
    """
    if choices is None or isinstance(choices, Choices):
        return choices or Choices()
    if not isinstance(choices, Mapping):
        raise ExplainError(
            f"choices are no {type(choices).__name__}", hint="Give Choices(gate='uniform'), or {'gate': 'uniform'}"
        )
    for name in choices:
        if name not in ALLOWED:
            raise ExplainError(f"there is no choice {name!r}", hint=f"Choices: {', '.join(ALLOWED)}")
    return Choices(**choices)


def _names(key: Any) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else tuple(key)


def _as_hook(value: Any) -> Hook | None:
    if isinstance(value, tuple):
        name, hyperparameters = value
        return rule(name, **hyperparameters)
    return rule(value)


def _built(name: str, given: Mapping[str, Any]) -> Hook | None:
    """A method's rule with those of its hyperparameters that the rule takes."""
    from canonize.explain.rules import RULES

    if name in RELU_HOOKS:
        return RELU_HOOKS[name]()
    taken = RULES[name].parameters if name in RULES else ()
    return rule(name, **{key: value for key, value in given.items() if key in taken})


RELU_HOOKS = {"guided": zennit_rules.ReLUGuidedBackprop, "deconvnet": zennit_rules.ReLUDeconvNet}
