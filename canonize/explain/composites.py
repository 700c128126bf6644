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
from canonize.algebra.weights import LINEAR
from canonize.errors import ExplainError
from canonize.explain.hooks import (
    Block,
    FirstHalf,
    ProductEpsilon,
    SignalTakesAll,
    SoftmaxTaylor,
    SumNorm,
    Uniform,
)
from canonize.explain.libraries import require
from canonize.explain.methods import METHODS, Method, find
from canonize.explain.rules import rule
from canonize.explain.structure import factors, first_layers, is_matrix_product

require("zennit")

from zennit import rules as zennit_rules  # noqa: E402 - only once torchvision can be imported
from zennit.core import Composite, Hook  # noqa: E402
from zennit.layer import Sum as StackedSum  # noqa: E402
from zennit.types import Activation, AvgPool, BatchNorm  # noqa: E402

NORMALISATIONS = (
    *(nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LocalResponseNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else [])),
)
# Element by element, and unknown to zennit: Pass, as it gives to the activations that it knows.
MORE_ACTIVATIONS = (nn.Mish, cnn.ThreshLeakyReLU)
LINEAR_WITHOUT_WEIGHTS = (cnn.Mean, cnn.SumOver, nn.Upsample, StackedSum)


@dataclass(frozen=True)
class Choices:
    """Rules for everything but linear layers, where the literature has more than one.

    Attributes
    ----------
    threshold : {"pass", "gradient"}
        ThreshReLU: relevance passes (as published), or is stopped where the input is beyond its threshold.
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
    """

    threshold: str = "pass"
    gate: str = "signal"
    sum: str = "norm"
    pool: str = "norm"
    offset: str = "pass"
    normalisation: str = "pass"
    attention: str = "attnlrp"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in ALLOWED[field.name]:
                options = ", ".join(ALLOWED[field.name])
                raise ExplainError(f"there is no choice {field.name}={value!r}", hint=f"Choose from: {options}")


ALLOWED = {
    "threshold": ("pass", "gradient"),
    "gate": ("signal", "uniform", "gradient"),
    "sum": ("norm", "gradient"),
    "pool": ("norm", "gradient"),
    "offset": ("pass", "norm", "gradient"),
    "normalisation": ("pass", "gradient"),
    "attention": ("attnlrp", "cplrp", "gradient"),
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

    def mapping(self, context: dict[str, Any], name: str, module: nn.Module) -> Hook | None:
        """The hook of one module; zennit asks for each, the root first."""
        if not context:
            context["first"] = set(first_layers(module)) if "first" in self.linear else set()
            context["factors"] = factors(module)
        for names, hook in self.named:
            if any(name == known or fnmatchcase(name, known) for known in names):
                return hook
        if name in context["first"]:
            return self.linear["first"]
        if isinstance(module, LINEAR):
            return self.linear.get("dense" if isinstance(module, nn.Linear) else "convolution")
        if isinstance(module, nn.ReLU) and "relu" in self.linear:
            return self.linear["relu"]
        return self._other(module, context["factors"].get(name)) if self.method.shares else None

    def _other(self, module: nn.Module, signal: int | None) -> Hook | None:
        """The hook of what is no linear layer."""
        choices, stabilizer = self.choices, self.stabilizer
        if isinstance(module, cnn.ThreshReLU | cnn.ThreshLeakyReLU):
            return zennit_rules.Pass() if choices.threshold == "pass" and self.method.activations else None
        if isinstance(module, nn.MultiheadAttention):
            return None  # zennit counts it as an activation: its three inputs cannot pass as one
        if isinstance(module, (Activation, *MORE_ACTIVATIONS, BatchNorm)):
            return zennit_rules.Pass() if self.method.activations else None
        if isinstance(module, cnn.Sum):
            return SumNorm(stabilizer) if choices.sum == "norm" else None
        if isinstance(module, (AvgPool, *LINEAR_WITHOUT_WEIGHTS)):
            return zennit_rules.Norm(stabilizer) if choices.pool == "norm" else None
        if isinstance(module, cnn.Offset):
            hooks = {"pass": zennit_rules.Pass, "norm": lambda: zennit_rules.Norm(stabilizer), "gradient": lambda: None}
            return hooks[choices.offset]()
        if isinstance(module, NORMALISATIONS):
            return zennit_rules.Pass() if choices.normalisation == "pass" else None
        if isinstance(module, cnn.Gate | nn.GLU):
            return gate_hook(module, choices.gate, signal)
        return self._attention(module, signal)

    def _attention(self, module: nn.Module, signal: int | None) -> Hook | None:
        if self.choices.attention == "gradient":
            return None
        values_only = self.choices.attention == "cplrp"
        if isinstance(module, nn.Softmax):
            return Block() if values_only else SoftmaxTaylor()
        if is_matrix_product(module):
            return ProductEpsilon(self.epsilon, signal if values_only else None)
        return None


def gate_hook(module: nn.Module, choice: str, signal: int | None) -> Hook | None:
    """The rule of a product, given which factor its surroundings say is the signal."""
    if choice == "gradient":
        return None
    if isinstance(module, nn.GLU):
        return FirstHalf()
    return Uniform() if choice == "uniform" else SignalTakesAll(signal)


def composite(
    name: str,
    *,
    choices: Choices | None = None,
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
    return RuleComposite(method, choices or Choices(), layers or {}, hyperparameters, canonizers)


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
