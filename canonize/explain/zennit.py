"""zennit on models as they are: a canonizer that applies the whole rewriting for as long as a composite is registered.

>>> from zennit.composites import EpsilonPlusFlat
>>> from canonize.explain.zennit import Canonizer
>>> composite = EpsilonPlusFlat(canonizers=[Canonizer()])  # doctest: +SKIP

zennit's composites map rules by type, and know the types of torch and of zennit. The canonizer therefore gives the
modules of the canonical model that zennit does not know a type that it does: sums, means and products become kinds of
``zennit.layer.Sum`` (which its LRP composites give the Norm rule, and gradient composites none), normalisations kinds
of activations (Pass). For a canonical model that is there to stay, :func:`layer_map` says the same in other words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.api import canonize
from canonize.errors import ExplainError
from canonize.explain.composites import MORE_ACTIVATIONS, NORMALISATIONS, Choices
from canonize.explain.hooks import FirstHalf, ProductEpsilon, SignalTakesAll, SoftmaxTaylor, SumNorm, Uniform
from canonize.explain.libraries import require
from canonize.explain.structure import MatrixProduct, assembled, factors, is_matrix_product, module_at
from canonize.graph.network import shell
from canonize.twins.copying import eval_copy

require("zennit")

from zennit import canonizers as zennit_canonizers  # noqa: E402 - only once torchvision can be imported
from zennit import rules as zennit_rules  # noqa: E402
from zennit.core import Hook  # noqa: E402
from zennit.layer import Sum as StackedSum  # noqa: E402


class Canonizer(zennit_canonizers.Canonizer):
    """Canonize a live model for as long as a composite is registered to it, and restore it bit for bit.

    No tensor of the model is written to: its submodules are exchanged for canonical ones that share what no rewrite
    touched, and put back by :meth:`remove`, which zennit calls at the end of a ``with`` block, after an exception, too.

    Parameters
    ----------
    example_inputs : Tensor, tuple, dict, optional
        As for :func:`canonize.canonize`; by default the shape is inferred from the model.
    strategy, skip, verify
        As for :func:`canonize.canonize`.
    threshold : {"pass", "gradient"}
        What a ThreshReLU gets: the composite's rule for ReLUs, or the gradient whatever the composite.
    gate : {"signal", "gradient"}
        Products: the signal takes all (under composites with a rule for sums), or the gradient.
    sum, pool : {"norm", "gradient"}
        Residual sums; means, sums over positions and resizing: by contribution, or the gradient.
    hooks : {"refuse", "ignore"}
        What to do about hooks that the model carries: they may change what it computes, and those of layers that
        disappear do not run meanwhile.

    Raises
    ------
    ExplainError
        If a choice does not exist; from :meth:`apply` if the model holds attention, whose rules zennit's composites do
        not have. ``canonize.explain.composite`` has.
    """

    def __init__(
        self,
        example_inputs: Any = None,
        *,
        strategy: str = "threshold",
        skip: Sequence[str] = (),
        verify: bool = True,
        threshold: str = "pass",
        gate: str = "signal",
        sum: str = "norm",
        pool: str = "norm",
        hooks: str = "refuse",
    ) -> None:
        super().__init__()
        self.choices = Choices(threshold=threshold, gate=gate, sum=sum, pool=pool)
        if gate == "uniform":
            raise ExplainError("zennit's composites have no rule that halves", hint="Use canonize.explain.composite")
        if hooks not in ("refuse", "ignore"):
            raise ExplainError(f"there is no choice hooks={hooks!r}", hint="Choose from: refuse, ignore")
        self.options: dict[str, Any] = {"strategy": strategy, "skip": tuple(skip), "verify": verify}
        self.example_inputs, self.hooks = example_inputs, hooks
        self.root: nn.Module | None = None
        self.saved: dict[str, Any] = {}

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        """Canonize a model in place.

        Parameters
        ----------
        root_module : nn.Module

        Returns
        -------
        list of Canonizer
            One instance, whose ``remove`` restores the model.
        """
        model = without_hooks(root_module) if self.hooks == "ignore" else root_module
        canonical = model if is_canonical(model) else canonize(model, self.example_inputs, **self.options)
        instance = self.copy()
        instance.register(root_module, known_to_zennit(canonical, self.choices))
        return [instance]

    def register(self, root_module: nn.Module, canonical: fx.GraphModule) -> None:
        """Exchange a model's submodules and ``forward`` for those of its canonical form."""
        own = vars(root_module)
        self.root = root_module
        self.saved = {name: own[name] for name in ("_modules", "forward") if name in own}
        own["_modules"] = canonical._modules
        own["forward"] = canonical.forward

    def remove(self) -> None:
        """Put back what :meth:`register` has exchanged; a second time, nothing."""
        if self.root is None:
            return
        own = vars(self.root)
        own.pop("forward", None)
        own.update(self.saved)
        self.root, self.saved = None, {}

    def copy(self) -> Canonizer:
        """Another canonizer with the same options, applied to nothing."""
        choices = self.choices
        return type(self)(
            self.example_inputs,
            **self.options,
            threshold=choices.threshold,
            gate=choices.gate,
            sum=choices.sum,
            pool=choices.pool,
            hooks=self.hooks,
        )


def is_canonical(model: nn.Module) -> bool:
    """Whether a model is what :func:`canonize.canonize` has made."""
    return isinstance(model, fx.GraphModule) and hasattr(model, "report")


def without_hooks(model: nn.Module) -> nn.Module:
    """A copy in eval mode that shares all tensors and carries no hooks but those that compute weights."""
    from canonize.capture.baking import is_weight_hook

    duplicate = eval_copy(model)
    for module in duplicate.modules():
        for table in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            kept = {key: hook for key, hook in getattr(module, table).items() if is_weight_hook(hook)}
            module.__dict__[table] = type(getattr(module, table))(kept)
    return duplicate


# ------------------------------------------------------------------------- types that zennit knows


class Stack(nn.Module):
    """The terms of a sum beside each other, in a new last dimension, for zennit to share relevance among.

    Parameters
    ----------
    weights : sequence of float
        What each is multiplied with.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = tuple(weights)

    def forward(self, *inputs: Tensor) -> Tensor:
        """``(..., terms)``."""
        terms = [value if weight == 1 else value * weight for weight, value in zip(self.weights, inputs, strict=True)]
        return torch.stack(torch.broadcast_tensors(*terms), -1)


class SignalByGate(cnn.Gate, StackedSum):
    """A product that zennit takes for a linear map of its signal: Norm hands all relevance to the signal.

    The gate has one dimension more than the signal, so that zennit's hook, which answers for arguments of the signal's
    shape, gives it none.
    """

    def forward(self, signal: Tensor, gate: Tensor | None = None) -> Tensor:
        """Multiply; without a gate, by the latest one (so calls zennit the module on the way back)."""
        if gate is not None:
            self.gate = gate.detach()
        factor = self.gate if gate is None else gate
        return signal * factor[0]


class Lift(torch.autograd.Function):
    """One dimension more in front; a gradient that is missing on the way back is zero."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """``(1, ...)``."""
        return value.unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Without the dimension; autograd has made zeros of a missing gradient."""
        return gradient.squeeze(0)


class Lifted(nn.Module):
    """A gate with one dimension more in front, that takes a gradient even if none is wanted: zennit's hook asks."""

    def forward(self, gate: Tensor) -> Tensor:
        """``(1, ...)``."""
        if torch.is_grad_enabled() and not gate.requires_grad:
            gate = gate.detach().requires_grad_()
        lifted: Tensor = Lift.apply(gate)
        return lifted


class Swapped(nn.Module):
    """A clamp between thresholds that no composite takes for a ReLU."""

    threshold: cnn.ThreshReLU | cnn.ThreshLeakyReLU

    def __init__(self, threshold: nn.Module) -> None:
        super().__init__()
        self.__dict__["threshold"] = threshold  # not a submodule, which a composite would find

    def forward(self, input: Tensor) -> Tensor:
        """As the threshold does."""
        return self.threshold.forward(input)


_LINEAR_MAPS = (cnn.Mean, cnn.SumOver, nn.Upsample)
_PASSED = (*NORMALISATIONS, cnn.Offset, *MORE_ACTIVATIONS)


def known_to_zennit(model: nn.Module, choices: Choices) -> fx.GraphModule:
    """A canonical model in the types that zennit's composites map rules to; it shares all tensors."""
    assert isinstance(model, fx.GraphModule)
    signals = factors(model)
    graph, modules = fx.Graph(), dict[str, nn.Module]()
    taken = {str(node.target) for node in model.graph.nodes}
    values: dict[fx.Node, fx.Node] = {}
    for node in model.graph.nodes:
        module = module_at(model, node)
        name = str(node.target)
        if module is None:
            if node.op == "get_attr":
                raise ExplainError(f"it reads the attribute {name} outside a module", hint="Canonize it first")
            values[node] = graph.node_copy(node, lambda n: values[n])
            continue
        if is_matrix_product(module) or isinstance(module, nn.MultiheadAttention):
            raise ExplainError(
                "zennit's composites have no rules for attention",
                where=name,
                hint="Use canonize.explain.composite, on a model canonized with forms=['open_attention']",
            )
        inputs = [values[source] for source in node.args if isinstance(source, fx.Node)]
        if isinstance(module, cnn.Sum) and choices.sum == "norm":
            terms = _beside(name, "terms", taken)
            modules[terms] = Stack(module.weights)
            inputs, module = [graph.call_module(terms, tuple(inputs))], StackedSum(-1)
        elif type(module) is cnn.Gate and choices.gate == "signal":
            position = signals.get(name)
            signal, gate = (inputs[1], inputs[0]) if position == 1 else (inputs[0], inputs[1])
            lifted = _beside(name, "gate", taken)
            modules[lifted] = Lifted()
            inputs, module = [signal, graph.call_module(lifted, (gate,))], SignalByGate()
        else:
            values[node] = graph.node_copy(node, lambda n: values[n])
            modules[name] = _retyped(module, choices)
            continue
        modules[name] = module
        values[node] = graph.call_module(name, tuple(inputs))
    return assembled(modules, graph, type(model).__name__)


def _beside(name: str, suffix: str, taken: set[str]) -> str:
    """A qualified name that is free, beside that of a layer."""
    wanted = f"{name}_{suffix}"
    while wanted in taken:
        wanted += "_"
    return wanted


def _retyped(module: nn.Module, choices: Choices) -> nn.Module:
    """A module of its own, of a type that zennit maps to the rule chosen."""
    if isinstance(module, cnn.ThreshReLU | cnn.ThreshLeakyReLU) and choices.threshold == "gradient":
        return Swapped(module)
    own = shell(module)
    if isinstance(module, _LINEAR_MAPS) and choices.pool == "norm":
        own.__class__ = type(type(module).__name__, (type(module), StackedSum), {})
    elif isinstance(module, _PASSED):
        # Among what zennit counts as activations, tanh is one that no composite treats in a way of its own.
        own.__class__ = type(type(module).__name__, (type(module), nn.Tanh), {})
    return own


def layer_map(
    choices: Choices | None = None, *, stabilizer: Any = 1e-6, epsilon: Any = 1e-6
) -> list[tuple[Any, Any]]:  # fmt: skip
    """Rules for the modules that only canonical models have, for the ``layer_map`` of zennit's LRP composites.

    Parameters
    ----------
    choices : Choices, optional
        Which rules.
    stabilizer, epsilon : float or callable
        As for zennit's rules; ``epsilon`` is that of matrix products.

    Returns
    -------
    list of (types, hook)

    Examples
    --------
    >>> EpsilonPlus(layer_map=layer_map())  # doctest: +SKIP
    """
    chosen = choices or Choices()
    passing, norm = zennit_rules.Pass(), zennit_rules.Norm(stabilizer)
    entries: list[tuple[Any, Any]] = []
    if chosen.threshold == "gradient":
        entries.append(((cnn.ThreshReLU, cnn.ThreshLeakyReLU), Hook()))
    if chosen.sum == "norm":
        entries.append((cnn.Sum, SumNorm(stabilizer)))
    if chosen.gate != "gradient":
        entries.append((nn.GLU, FirstHalf()))
        entries.append((cnn.Gate, Uniform() if chosen.gate == "uniform" else SignalTakesAll()))
    if chosen.pool == "norm":
        entries.append((_LINEAR_MAPS, norm))
    if chosen.offset != "gradient":
        entries.append((cnn.Offset, passing if chosen.offset == "pass" else norm))
    if chosen.normalisation == "pass":
        entries.append((NORMALISATIONS, passing))
    if chosen.attention == "attnlrp":
        entries.append((nn.Softmax, SoftmaxTaylor()))
        entries.append((MatrixProduct, ProductEpsilon(epsilon)))
    return entries
