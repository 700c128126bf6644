"""zennit on models as they are: a canonizer that applies the whole rewriting for as long as a composite is registered.

>>> from zennit.composites import EpsilonPlusFlat
>>> from canonize.explain.zennit import Canonizer
>>> composite = EpsilonPlusFlat(canonizers=[Canonizer()])  # doctest: +SKIP

zennit's composites map rules by type, and know the types of torch and of zennit. The canonizer therefore gives the
modules of the canonical model that zennit does not know a type that it does: sums, means, products and normalisations
become kinds of ``zennit.layer.Sum`` (which its LRP composites give the Norm rule, and gradient composites none),
thresholds kinds of ReLUs. Each of them answers to the hook that it is given with the one that means the same for it:
Norm is :class:`~canonize.explain.rule_hooks.SumNorm` to a sum of several terms. For a canonical model that is there to
stay, :func:`layer_map` says the same in other words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.algebra.weights import LINEAR
from canonize.api import canonize
from canonize.capture.baking import is_weight_hook
from canonize.errors import ExplainError
from canonize.explain.composites import Choices, chosen
from canonize.explain.law import check_unruled, refuse
from canonize.explain.libraries import require
from canonize.explain.rule_hooks import (
    ByContribution,
    FirstHalf,
    ProductEpsilon,
    RectifiedThreshold,
    SharedHook,
    SignalTakesAll,
    SoftmaxTaylor,
    SumNorm,
    Uniform,
)
from canonize.explain.structure import LinearCall, MatrixProduct, Scale, Softmax, assembled, first_layers
from canonize.graph.factors import Factors, module_at, products
from canonize.graph.network import shell
from canonize.graph.relevance import unruled
from canonize.inputs import normalise
from canonize.twins.copying import eval_copy
from canonize.vocabulary.kinds import NORMALISATIONS, Kind, kind_of

require("zennit")

from zennit import canonizers as zennit_canonizers  # noqa: E402 - only once torchvision can be imported
from zennit import rules as zennit_rules  # noqa: E402
from zennit.core import Hook, RemovableHandleList  # noqa: E402
from zennit.layer import Sum as StackedSum  # noqa: E402
from zennit.types import Activation, AvgPool  # noqa: E402


class Canonizer(zennit_canonizers.Canonizer):
    """Canonize a live model for as long as a composite is registered to it, and restore it bit for bit.

    No tensor of the model is written to: its submodules are exchanged for canonical ones that share what no rewrite
    touched, and put back by :meth:`remove`, which zennit calls at the end of a ``with`` block, after an exception, too.

    Parameters
    ----------
    example_inputs : Tensor, tuple, dict, optional
        As for :func:`canonize.canonize`; by default the shape is inferred from the model.
    strategy, skip, forms, verify
        As for :func:`canonize.canonize`; attention has rules where ``forms`` opens it.
    threshold : {"gradient", "pass"}
        What a threshold gets under composites that let relevance pass activations: the gradient, as published, or Pass.
        Guided backpropagation and DeconvNet treat it as the ReLU that it was.
    gate : {"signal", "gradient"}
        Products: the signal takes all (under composites with a rule for sums), or the gradient.
    sum, pool : {"norm", "gradient"}
        Residual sums; means, sums over positions and resizing: by contribution, or the gradient.
    hooks : {"refuse", "ignore"}
        What to do about hooks that the model carries: they may change what it computes, and those of layers that
        disappear do not run meanwhile.
    unruled : {"refuse", "gradient"}
        What to do where relevance comes through an operation that has no rule.

    Raises
    ------
    ExplainError
        If a choice does not exist; from :meth:`apply` if an operation that relevance comes through has no rule.
    """

    def __init__(
        self,
        example_inputs: Any = None,
        *,
        strategy: str = "threshold",
        skip: Sequence[str] = (),
        forms: Sequence[str] = (),
        verify: bool = True,
        threshold: str = "gradient",
        gate: str = "signal",
        sum: str = "norm",
        pool: str = "norm",
        hooks: str = "refuse",
        unruled: str = "refuse",
    ) -> None:
        super().__init__()
        self.choices = Choices(threshold=threshold, gate=gate, sum=sum, pool=pool)
        if gate == "uniform":
            raise ExplainError("zennit's composites have no rule that halves", hint="Use canonize.explain.composite")
        if hooks not in ("refuse", "ignore"):
            raise ExplainError(f"there is no choice hooks={hooks!r}", hint="Choose from: refuse, ignore")
        self.options: dict[str, Any] = {
            "strategy": strategy, "skip": tuple(skip), "forms": tuple(forms), "verify": verify
        }  # fmt: skip
        self.example_inputs, self.hooks, self.unruled = example_inputs, hooks, check_unruled(unruled)
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
        if self.unruled == "refuse":
            refuse_unruled(canonical, self.example_inputs)
        instance = self.copy()
        instance.register(root_module, known_to_zennit(canonical, self.choices, instance.remove))
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
            unruled=self.unruled,
        )


def is_canonical(model: nn.Module) -> bool:
    """Whether a model is what :func:`canonize.canonize` has made."""
    return isinstance(model, fx.GraphModule) and hasattr(model, "report")


def without_hooks(model: nn.Module) -> nn.Module:
    """A copy in eval mode that shares all tensors and carries no hooks but those that compute weights."""
    duplicate = eval_copy(model)
    for module in duplicate.modules():
        for table in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            kept = {key: hook for key, hook in getattr(module, table).items() if is_weight_hook(hook)}
            module.__dict__[table] = type(getattr(module, table))(kept)
    return duplicate


def refuse_unruled(model: nn.Module, example_inputs: Any) -> None:
    """Raise where relevance comes through an operation of a canonical model that no rule is known for.

    Raises
    ------
    ExplainError
    """
    assert isinstance(model, fx.GraphModule)
    given = None if example_inputs is None else normalise(example_inputs)
    missing = unruled(model, given)
    if missing:
        raise refuse("zennit", missing)


# ------------------------------------------------------------------------- types that zennit knows


class Adopted(nn.Module):
    """Mixed into a canonical module, to be of a type that zennit knows, and to answer to its rule with the right hook.

    ``translate`` takes zennit's hook; it returns another to attach instead, the same, or None for the gradient.
    """

    translate: Callable[[Hook], Hook | None]
    undo: Callable[[], None]

    def _handle(self, method: Any, once: bool, plain: Callable[[], Any]) -> Any:
        owner = getattr(method, "__self__", None)
        if not isinstance(owner, Hook) or isinstance(owner, SharedHook):
            return plain()
        try:
            translated = self.translate(owner)
        except ExplainError:
            self.undo()  # the composite is half registered, and zennit takes nothing back
            raise
        if translated is owner:
            return plain()
        if translated is None or not once:
            return _Handle()
        return _Handle(translated, translated.register(self))

    def register_forward_pre_hook(self, hook: Any, **options: Any) -> Any:
        """Attach a hook, or what it means here."""
        return self._handle(hook, True, lambda: super(Adopted, self).register_forward_pre_hook(hook, **options))

    def register_forward_hook(self, hook: Any, **options: Any) -> Any:
        """Attach a hook, or nothing where another has taken its place."""
        return self._handle(hook, False, lambda: super(Adopted, self).register_forward_hook(hook, **options))


class _Handle:
    """What zennit removes in the end; it keeps alive the hook that stands in for zennit's."""

    def __init__(self, hook: Any = None, handles: Any = None) -> None:
        self.hook, self.handles = hook, handles

    def remove(self) -> None:
        """Take the hook off."""
        if self.handles is not None:
            self.handles.remove()
        self.hook = self.handles = None


def known_to_zennit(model: nn.Module, choices: Choices, undo: Callable[[], None] = lambda: None) -> fx.GraphModule:
    """A canonical model in the types that zennit's composites map rules to; it shares all tensors.

    ``undo`` is called before a hook is refused.
    """
    assert isinstance(model, fx.GraphModule)
    found, pixels = products(model), PixelRules(first_layers(model))
    # zennit's composites for first layers take the first one registered.
    modules: dict[str, Any] = dict.fromkeys(pixels.first)
    for node in model.graph.nodes:
        name = str(node.target)
        module = module_at(model, node)
        if isinstance(module, LINEAR):
            modules[name] = _adopted(shell(module), None, pixels.at(name))
        elif module is not None:
            modules[name] = _retyped(module, choices, found.get(name, Factors()))
        elif node.op == "get_attr":
            raise ExplainError(f"it reads the attribute {name} outside a module", hint="Canonize it first")
    for module in modules.values():
        if isinstance(module, Adopted):
            module.__dict__["undo"] = undo
    graph = fx.Graph()
    graph.output(graph.graph_copy(model.graph, {}))
    return assembled(modules, graph, type(model).__name__)


def _retyped(module: nn.Module, choices: Choices, found: Factors) -> nn.Module:
    """A module of its own, of a type that zennit maps to the rule chosen."""
    own, kind = shell(module), kind_of(module)
    if kind is Kind.THRESHOLD:
        return _adopted(own, nn.ReLU, lambda hook: _at_threshold(hook, module, choices))
    if kind is Kind.SUM and choices.sum == "norm":
        return _adopted(own, StackedSum, lambda hook: _instead_of_norm(hook, lambda ratio: SumNorm(ratio=ratio)))
    if (kind is Kind.GATE and choices.gate == "signal") or kind is Kind.SCALE:
        rule = FirstHalf if isinstance(module, nn.GLU) else lambda: SignalTakesAll(found.signal, found.carrying)
        return _adopted(own, StackedSum, lambda hook: _instead_of_norm(hook, lambda _: rule()))
    if kind is Kind.PRODUCT:
        return _adopted(
            own,
            StackedSum,
            lambda hook: _instead_of_norm(hook, lambda ratio: ProductEpsilon(carrying=found.carrying, ratio=ratio)),
        )
    if kind is Kind.SOFTMAX:
        return _adopted(own, StackedSum, lambda hook: _instead_of_norm(hook, lambda _: SoftmaxTaylor()))
    if kind is Kind.AVERAGE and choices.pool == "norm" and not isinstance(module, AvgPool):
        several = isinstance(module, cnn.Call)
        return _adopted(
            own,
            StackedSum,
            lambda hook: _instead_of_norm(hook, lambda ratio: ByContribution(ratio=ratio)) if several else hook,
        )
    if isinstance(module, AvgPool) and choices.pool == "gradient":
        return _adopted(own, StackedSum, lambda hook: None)
    if kind is Kind.NORMALISATION:
        return _adopted(own, StackedSum, lambda hook: _instead_of_norm(hook, lambda _: SignalTakesAll()))
    if kind is Kind.OFFSET or (kind is Kind.ACTIVATION and not isinstance(module, Activation)):
        # Among what zennit counts as activations, tanh is one that no composite treats in a way of its own.
        own.__class__ = type(type(module).__name__, (type(module), nn.Tanh), {})
    return own


@dataclass
class PixelRules:
    """Flat, w-square and box: rules of the layers that the image enters.

    zennit's composites give them to one layer, the first. All others that read the image get the same; one that reads
    something else cannot take the box, whose bounds are those of pixels.

    Attributes
    ----------
    first : list of str
        Layers that the image enters.
    rule : Hook or None
        What the first of them was given, if it is such a rule.
    """

    first: list[str]
    rule: Hook | None = None

    def at(self, name: str) -> Callable[[Hook], Hook | None]:
        """What a layer makes of the hook it is given."""

        def translate(hook: Hook) -> Hook | None:
            if name in self.first:
                if isinstance(hook, _PIXEL_RULES):
                    self.rule = hook
                return hook if self.rule is None or self.rule is hook else self.rule.copy()
            if isinstance(hook, zennit_rules.ZBox):
                raise ExplainError(
                    f"the composite gives it the box, and the image enters at {', '.join(self.first)}",
                    where=name,
                    hint="Use canonize.explain.composite('epsilon-gamma-box', low=..., high=...)",
                )
            return hook

        return translate


_PIXEL_RULES = (zennit_rules.Flat, zennit_rules.WSquare, zennit_rules.ZBox)


def _adopted(own: nn.Module, known: type | None, translate: Callable[[Hook], Hook | None]) -> nn.Module:
    """A module that is of a type known to zennit as well, and translates the hooks it is given."""
    kind = type(own)
    own.__class__ = type(kind.__name__, (Adopted, kind, known) if known else (Adopted, kind), {})
    own.__dict__["translate"] = translate
    return own


def _at_threshold(hook: Hook, module: nn.Module, choices: Choices) -> Hook | None:
    """What a rule of ReLUs is to a threshold."""
    if isinstance(hook, zennit_rules.ReLUGuidedBackprop | zennit_rules.ReLUDeconvNet):
        masks = isinstance(hook, zennit_rules.ReLUGuidedBackprop)
        return RectifiedThreshold(masks) if isinstance(module, cnn.ThreshReLU) else None
    if isinstance(hook, zennit_rules.Pass):
        return hook if choices.threshold == "pass" else None
    raise ExplainError(
        f"the rule {type(hook).__name__} says nothing of a threshold",
        hint="Canonize with strategy='untangle', or use canonize.explain.composite",
    )


def _instead_of_norm(hook: Hook, made: Callable[[Callable[[Tensor, Tensor], Tensor]], Hook]) -> Hook:
    """The hook that is to an operation of several arguments what zennit's Norm is to one of a single argument."""
    if not isinstance(hook, zennit_rules.Norm):
        raise ExplainError(
            f"the rule {type(hook).__name__} is one of a single argument, and the operation has several",
            hint="Give it in canonize.explain.composite(..., layers={name: rule})",
        )
    mapper = hook.gradient_mapper

    def ratio(relevance: Tensor, output: Tensor) -> Tensor:
        divided = mapper(relevance, [output])
        return divided if isinstance(divided, Tensor) else divided[0]

    return made(ratio)


def layer_map(
    choices: Choices | Mapping[str, str] | None = None,
    *,
    method: str = "lrp",
    stabilizer: Any = 1e-6,
    epsilon: Any = 1e-6,
) -> list[tuple[Any, Any]]:
    """Rules for the modules that only canonical models have, for the ``layer_map`` of zennit's composites.

    Parameters
    ----------
    choices : Choices or mapping, optional
        Which rules.
    method : {"lrp", "guided-backprop", "deconvnet"}
        For zennit's LRP composites and Excitation Backprop, or for one of those that bend gradients at ReLUs.
    stabilizer, epsilon : float or callable
        As for zennit's rules; ``epsilon`` is that of matrix products.

    Returns
    -------
    list of (types, hook)

    Examples
    --------
    >>> EpsilonPlus(layer_map=layer_map())  # doctest: +SKIP
    """
    if method in ("guided-backprop", "deconvnet"):
        return [(cnn.ThreshReLU, RectifiedThreshold(masks=method == "guided-backprop"))]
    if method != "lrp":
        raise ExplainError(f"there is no layer map for {method!r}", hint="Use lrp, guided-backprop or deconvnet")
    own = chosen(choices)
    passing, norm = zennit_rules.Pass(), zennit_rules.Norm(stabilizer)
    entries: list[tuple[Any, Any]] = [((cnn.ThreshReLU, cnn.ThreshLeakyReLU), _at(own.threshold == "pass"))]
    if own.sum == "norm":
        entries.append((cnn.Sum, SumNorm(stabilizer)))
    if own.gate != "gradient":
        entries.append((nn.GLU, FirstHalf()))
        entries.append((cnn.Gate, Uniform() if own.gate == "uniform" else SignalTakesAll()))
    entries.append((Scale, SignalTakesAll()))
    if own.pool == "norm":
        entries.append(((cnn.Mean, cnn.SumOver, nn.Upsample, nn.Fold), norm))
        entries.append((LinearCall, ByContribution(stabilizer)))
    else:
        entries.append((AvgPool, Gradient()))
    if own.offset != "gradient":
        entries.append((cnn.Offset, passing if own.offset == "pass" else norm))
    if own.normalisation == "pass":
        entries.append((NORMALISATIONS, SignalTakesAll()))
    entries.append((nn.Mish, passing))
    if own.attention == "attnlrp":
        entries.append((Softmax, SoftmaxTaylor()))
        entries.append((MatrixProduct, ProductEpsilon(epsilon)))
    return entries


def _at(passes: bool) -> Hook:
    return zennit_rules.Pass() if passes else Gradient()


class Gradient(Hook):
    """The plain gradient, whatever a composite would give by type."""

    def register(self, module: nn.Module) -> RemovableHandleList:
        """Attach nothing."""
        return RemovableHandleList([])
