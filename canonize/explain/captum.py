"""captum on canonical models: LRP, DeepLIFT and guided backpropagation, told what they must know of its modules.

The classes are captum's, with the same ``attribute``. What they add:

- LRP gets a rule on every module (captum raises on types that it does not know);
- DeepLIFT gets the rescale rule on every elementwise activation, thresholds among them (captum looks types up exactly,
  and takes the gradient, silently, where it finds nothing), an input of its own for each (captum overwrites the
  gradient of the tensor that an activation reads, other readers' share included), and a rule for products;
- guided backpropagation bends gradients at thresholds as it does at the ReLUs that they were;
- the variants for layers and neurons take layers of the canonical model, or their names;
- an operation that relevance comes through and that has no rule is refused, unless ``unruled="gradient"``;
- what captum says on each call, whatever the model, is not said.

``captum.attr.IntegratedGradients``, ``Saliency`` and the other gradient methods work on canonical models as they are,
and ``captum.attr.NoiseTunnel`` around the classes here.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.algebra.weights import LINEAR
from canonize.errors import ExplainError
from canonize.explain.captum_law import (
    AS_THEY_ARE,
    Law,
    bends_no_function,
    check_neuron,
    incomplete,
    missed,
    refuse_incomplete,
)
from canonize.explain.deep_lift import has_deep_lift_rule
from canonize.explain.job import Job, is_explained
from canonize.explain.law import check_unruled
from canonize.explain.libraries import require
from canonize.explain.paired import WINDOWS, PairedMaximum, PairedProduct
from canonize.explain.rule_hooks import (
    ByContribution,
    ProductEpsilon,
    RectifiedReLU,
    RectifiedThreshold,
    SharedHook,
    SignalTakesAll,
    SumNorm,
)
from canonize.explain.structure import assembled
from canonize.graph.factors import Factors, below, dependents, graphs_in, module_at, products
from canonize.graph.network import shell
from canonize.graph.relevance import RelevantOperation
from canonize.vocabulary.kinds import ACTIVATIONS, THRESHOLDS, Kind, kind_of, operands_of

require("captum")

from captum import attr as captum_attr  # noqa: E402 - said so above if it is not there
from captum.attr._core import deep_lift  # noqa: E402
from captum.attr._utils import lrp_rules  # noqa: E402

# What captum says each time it sets its hooks, whatever the model.
_ALWAYS_SAID = ("Setting forward, backward hooks", "Setting backward hooks on ReLU", "Input Tensor .* did not already")
ELEMENTWISE = (*ACTIVATIONS, *THRESHOLDS)


def as_captum_calls(method: Any) -> Any:
    """Make ``attribute`` one that captum's own classes can call: they look for what its logging has wrapped."""
    method.__wrapped__ = method
    return method


# ------------------------------------------------------------------------------------------------ LRP


class MovementRule(lrp_rules.PropagationRule):
    """Relevance goes where the gradient goes: back to the input that an output is a copy of."""

    def forward_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Leave the gradient alone; note what passes, for attributions to layers."""
        self._has_single_input = True
        self._handle_input_hooks = []
        tensors = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
        if tensors:
            self._handle_input_hooks.append(tensors[0].register_hook(self._note(self.relevance_input)))
        if isinstance(outputs, Tensor) and outputs.requires_grad:
            self._handle_output_hook = outputs.register_hook(self._note(self.relevance_output))

    @staticmethod
    def _note(where: Any) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            where[gradient.device] = gradient.data

        return note

    def forward_hook_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """There are none."""

    def forward_pre_hook_activations(self, module: nn.Module, inputs: Any) -> None:
        """Nothing was changed."""

    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """There are none."""


class OwnRule(MovementRule):
    """A rule of ``canonize.explain.rule_hooks``, which puts itself into the gradient."""

    def __init__(self, hook: SharedHook) -> None:
        super().__init__()
        self.hook = hook


class _Ruled:
    """What LRP and LayerLRP share: a rule on every module of a model of their own."""

    chosen: dict[str, Any]
    model: nn.Module
    unruled: str

    def _prepare(self, model: nn.Module, options: dict[str, Any]) -> nn.Module:
        """A model of one's own, and the rule of each of its modules."""
        made = {
            "epsilon": lambda: lrp_rules.EpsilonRule(options["epsilon"]),
            "gamma": lambda: lrp_rules.GammaRule(options["gamma"]),
            "alpha1-beta0": lrp_rules.Alpha1_Beta0_Rule,
        }
        for name in (options["convolution"], options["dense"]):
            if name not in made:
                raise ExplainError(f"captum has no rule {name!r}", hint=f"Rules: {', '.join(made)}")
        if options["threshold"] not in ("gradient", "pass"):
            raise ExplainError(f"there is no choice threshold={options['threshold']!r}", hint="Use gradient or pass")
        self.unruled = check_unruled(options["unruled"])
        prepared = prepare(model, every_layer=True)
        given, known = dict(options["rules"] or {}), products(model)
        self.given, self.chosen = set(given), {}
        constant = set(_constant_layers(prepared))
        for name, module in _leaves(prepared):
            if name in given:
                self.chosen[name] = given.pop(name)
            elif name in constant:
                self.chosen[name] = MovementRule()
            elif isinstance(module, LINEAR):
                self.chosen[name] = made[options["dense" if isinstance(module, nn.Linear) else "convolution"]]()
            else:
                self.chosen[name] = _rule_of(module, known.get(name, Factors()), options)
            if isinstance(self.chosen[name], OwnRule):
                self.chosen[name].hook.register(module)
        if given:
            raise ExplainError(f"there is no layer {next(iter(given))}", hint="Rules go by qualified name")
        return prepared

    def _has_rule(self, operation: RelevantOperation) -> bool:
        return operation.where in self.given or (
            operation.has_rule and (operation.module is None or has_lrp_rule(operation.module))
        )

    def _begin(self, inputs: Any, others: Any, target: Any) -> None:
        for name, module in _leaves(self.model):
            module.rule = self.chosen[name]
        law = Law("captum's LRP", self._has_rule, self.unruled, both=False, multiplies=True)
        law.check(self.model, inputs, others, target)


class LRP(_Ruled, captum_attr.LRP):
    """captum's layer-wise relevance propagation, with a rule on every module of a canonical model.

    Parameters
    ----------
    model : nn.Module
        Canonical. It is not changed: captum works on modules of its own, which share all tensors.
    convolution, dense : {"epsilon", "gamma", "alpha1-beta0"}
        Rule of convolutions, and of fully connected layers.
    epsilon, gamma : float
        Hyperparameters; epsilon is that of sums and pooling, too.
    rules : mapping, optional
        Qualified name to a rule of captum's (``PropagationRule``), before all others.
    threshold : {"gradient", "pass"}
        Thresholds: what is clamped gets nothing (as published), or relevance passes.
    unruled : {"refuse", "gradient"}
        What to do about an operation that has no rule.

    Raises
    ------
    ExplainError
        From :meth:`attribute`, if an operation that relevance comes through has no rule, naming it.

    Notes
    -----
    Activations and normalisations pass relevance, gates give all to their signal, max-pooling gives all to the largest.
    Attributions are in units of the output, as captum's are.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        convolution: str = "epsilon",
        dense: str = "epsilon",
        epsilon: float = 1e-9,
        gamma: float = 0.25,
        rules: dict[str, Any] | None = None,
        threshold: str = "gradient",
        unruled: str = "refuse",
    ) -> None:
        options = {key: value for key, value in locals().items() if key not in ("self", "model", "__class__")}
        super().__init__(self._prepare(model, options))

    @as_captum_calls
    def attribute(self, inputs: Any, target: Any = None, additional_forward_args: Any = None, **named: Any) -> Any:
        """As ``captum.attr.LRP.attribute``."""
        self._begin(inputs, additional_forward_args, target)
        with quiet():
            return super().attribute(inputs, target, additional_forward_args, **named)


class LayerLRP(_Ruled, captum_attr.LayerLRP):
    """captum's LRP to a layer, on canonical models; options as for :class:`LRP`.

    Parameters
    ----------
    model : nn.Module
    layer : nn.Module or str
        A layer of the model, or its qualified name.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module | str,
        *,
        convolution: str = "epsilon",
        dense: str = "epsilon",
        epsilon: float = 1e-9,
        gamma: float = 0.25,
        rules: dict[str, Any] | None = None,
        threshold: str = "gradient",
        unruled: str = "refuse",
    ) -> None:
        options = {key: value for key, value in locals().items() if key not in ("self", "model", "layer", "__class__")}
        prepared = self._prepare(model, options)
        super().__init__(prepared, _counterpart(model, prepared, layer))

    @as_captum_calls
    def attribute(self, inputs: Any, target: Any = None, additional_forward_args: Any = None, **named: Any) -> Any:
        """As ``captum.attr.LayerLRP.attribute``."""
        self._begin(inputs, additional_forward_args, target)
        with quiet():
            return super().attribute(inputs, target, additional_forward_args, **named)


def _counterpart(model: nn.Module, prepared: nn.Module, layer: nn.Module | str) -> nn.Module:
    """The layer of a prepared model that stands for one of the model it was made from."""
    name = layer if isinstance(layer, str) else next((n for n, m in model.named_modules() if m is layer), None)
    if name is None:
        raise ExplainError("the layer is none of the model's", hint="Give model.get_submodule(name), or the name")
    try:
        found = prepared.get_submodule(name)
        if type(found) is not nn.Module:
            return found
        gives = getattr(getattr(model, "report", None), "containers", {}).get(name)
        if gives is None:
            raise ExplainError(f"no layer gives what the block {name} returned", hint="Name a layer: report.containers")
        return prepared.get_submodule(gives)
    except AttributeError as error:
        raise ExplainError(f"there is no layer {name}", hint="model.named_modules() lists them") from error


def _constant_layers(model: nn.Module) -> Iterator[str]:
    """Layers that no input reaches; captum's rules take it that one does."""
    for outer, graph in graphs_in(model).items():
        dependent = dependents(graph)
        yield from (
            below(outer, str(n.target)) for n in graph.graph.nodes if n.op == "call_module" if n not in dependent
        )


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if name and not any(True for _ in module.children()):
            yield name, module


_PASSED = (Kind.ACTIVATION, Kind.NORMALISATION, Kind.OFFSET)
_MOVED = (Kind.COPY, Kind.SOURCE, Kind.DISCRETE)


def has_lrp_rule(module: nn.Module) -> bool:
    """Whether the LRP of this file has a rule for a module."""
    kind = kind_of(module)
    ruled = (Kind.LINEAR, Kind.THRESHOLD, Kind.SCALE, Kind.SUM, Kind.AVERAGE, Kind.PRODUCT, *_PASSED, *_MOVED)
    return kind in ruled or (kind is Kind.GATE and not isinstance(module, nn.GLU))


def _rule_of(module: nn.Module, found: Factors, options: dict[str, Any]) -> Any:
    """Captum's rule for what is no linear layer; the gradient's where there is none, which is refused later."""
    kind, epsilon = kind_of(module), options["epsilon"]
    if kind is Kind.THRESHOLD:
        return lrp_rules.IdentityRule() if options["threshold"] == "pass" else MovementRule()
    if isinstance(module, cnn.Gate) or kind is Kind.SCALE:
        return OwnRule(SignalTakesAll(found.signal, found.carrying))
    if kind is Kind.SUM:
        return OwnRule(SumNorm(epsilon))
    if kind is Kind.PRODUCT:
        return OwnRule(ProductEpsilon(epsilon, None, found.carrying))
    if kind in _PASSED:
        return lrp_rules.IdentityRule()
    if kind is Kind.AVERAGE:
        return OwnRule(ByContribution(epsilon)) if isinstance(module, cnn.Call) else lrp_rules.EpsilonRule(epsilon)
    return MovementRule()


# ------------------------------------------------------------------------------- DeepLIFT, guided backpropagation


class _Rescaling:
    """What the variants of DeepLIFT share."""

    original: nn.Module
    unruled: str

    def _check(self, inputs: Any, others: Any, target: Any = None) -> None:
        Law("captum's DeepLIFT", has_deep_lift_rule, self.unruled).check(self.original, inputs, others, target)

    def _complete(self, found: Any, wanted: bool, multiplied: bool) -> Any:
        """What captum found with its delta; refused where contributions do not add up."""
        attributions, delta = found
        if self.unruled == "refuse" and multiplied:
            refuse_incomplete("captum's DeepLIFT", self.original, attributions, delta)
        return found if wanted else attributions


class DeepLift(_Rescaling, captum_attr.DeepLift):
    r"""captum's DeepLIFT (rescale rule), for canonical models; the model is not changed.

    Parameters
    ----------
    model : nn.Module
    multiply_by_inputs, eps
        As captum's.
    unruled : {"refuse", "gradient"}
        What to do about an operation that has no rule, where contributions would not add up.

    Notes
    -----
    A product of two values that both depend on the input, :math:`y = a b`, gives each factor the mean of the other:
    :math:`\Delta y = \Delta a\,(b + b_0)/2 + \Delta b\,(a + a_0)/2`, which is exact (the factors' Shapley values).
    """

    def __init__(
        self, model: nn.Module, multiply_by_inputs: bool = True, eps: float = 1e-10, unruled: str = "refuse"
    ) -> None:
        self.original, self.unruled = model, check_unruled(unruled)
        super().__init__(prepare(model, paired=True), multiply_by_inputs, eps)

    @as_captum_calls
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        **named: Any,
    ) -> Any:
        """As ``captum.attr.DeepLift.attribute``."""
        self._check(inputs, additional_forward_args, target)
        with quiet(), known_activations():
            found = super().attribute(inputs, baselines, target, additional_forward_args, True, **named)
        return self._complete(found, return_convergence_delta, self.multiplies_by_inputs)


class DeepLiftShap(_Rescaling, captum_attr.DeepLiftShap):
    """captum's DeepLIFT over a distribution of baselines, for canonical models."""

    def __init__(self, model: nn.Module, multiply_by_inputs: bool = True, unruled: str = "refuse") -> None:
        self.original, self.unruled = model, check_unruled(unruled)
        super().__init__(prepare(model, paired=True), multiply_by_inputs)

    @as_captum_calls
    def attribute(
        self,
        inputs: Any,
        baselines: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        **named: Any,
    ) -> Any:
        """As ``captum.attr.DeepLiftShap.attribute``."""
        self._check(inputs, additional_forward_args, target)
        with quiet(), known_activations():
            found = super().attribute(inputs, baselines, target, additional_forward_args, True, **named)
        return self._complete(found, return_convergence_delta, self.multiplies_by_inputs)


class LayerDeepLift(_Rescaling, captum_attr.LayerDeepLift):
    """captum's DeepLIFT to a layer, for canonical models; the layer, or its qualified name."""

    def __init__(
        self, model: nn.Module, layer: nn.Module | str, multiply_by_inputs: bool = True, unruled: str = "refuse"
    ) -> None:
        self.original, self.unruled = model, check_unruled(unruled)
        prepared = prepare(model, paired=True)
        super().__init__(prepared, _counterpart(model, prepared, layer), multiply_by_inputs)

    @as_captum_calls
    def attribute(
        self, inputs: Any, baselines: Any = None, target: Any = None, additional_forward_args: Any = None, **named: Any
    ) -> Any:
        """As ``captum.attr.LayerDeepLift.attribute``."""
        self._check(inputs, additional_forward_args, target)
        with quiet(), known_activations():
            return super().attribute(inputs, baselines, target, additional_forward_args, **named)


class NeuronDeepLift(_Rescaling, captum_attr.NeuronDeepLift):
    """captum's DeepLIFT of a neuron, for canonical models; the neuron's layer, or its qualified name."""

    def __init__(
        self, model: nn.Module, layer: nn.Module | str, multiply_by_inputs: bool = True, unruled: str = "refuse"
    ) -> None:
        self.original, self.unruled = model, check_unruled(unruled)
        self.model = prepare(model, paired=True)
        super().__init__(self.model, _counterpart(model, self.model, layer), multiply_by_inputs)

    @as_captum_calls
    def attribute(
        self,
        inputs: Any,
        neuron_selector: Any,
        baselines: Any = None,
        additional_forward_args: Any = None,
        **named: Any,
    ) -> Any:
        """As ``captum.attr.NeuronDeepLift.attribute``."""
        check_neuron(neuron_selector)
        self._check(inputs, additional_forward_args)
        with quiet(), known_activations():
            return super().attribute(inputs, neuron_selector, baselines, additional_forward_args, **named)


class _Rectifying:
    """What guided backpropagation and DeconvNet share: hooks that have an input of their own, thresholds included."""

    masks: bool
    model: nn.Module
    backward_hooks: list[Any]

    def _check(self, inputs: Any, target: Any, others: Any) -> None:
        Law("it", bends_no_function, "refuse").check(self.model, inputs, others, target)

    def _register_hooks(self, module: nn.Module) -> None:
        hook: SharedHook
        if isinstance(module, cnn.ThreshReLU):
            hook = RectifiedThreshold(self.masks)
        elif isinstance(module, nn.ReLU):
            hook = RectifiedReLU(self.masks)
        else:
            return
        self.backward_hooks += [_Kept(hook), *hook.register(module)]


class _Kept:
    """Holds a hook for as long as captum holds its handles."""

    def __init__(self, hook: Any) -> None:
        self.hook = hook

    def remove(self) -> None:
        """Let go."""


class GuidedBackprop(_Rectifying, captum_attr.GuidedBackprop):
    """captum's guided backpropagation, right at thresholds and where a ReLU's input has other readers."""

    masks = True

    @as_captum_calls
    def attribute(self, inputs: Any, target: Any = None, additional_forward_args: Any = None) -> Any:
        """As ``captum.attr.GuidedBackprop.attribute``."""
        self._check(inputs, target, additional_forward_args)
        with quiet():
            return super().attribute(inputs, target, additional_forward_args)


class Deconvolution(_Rectifying, captum_attr.Deconvolution):
    """captum's DeconvNet, right at thresholds and where a ReLU's input has other readers."""

    masks = False

    @as_captum_calls
    def attribute(self, inputs: Any, target: Any = None, additional_forward_args: Any = None) -> Any:
        """As ``captum.attr.Deconvolution.attribute``."""
        self._check(inputs, target, additional_forward_args)
        with quiet():
            return super().attribute(inputs, target, additional_forward_args)


class NeuronGuidedBackprop(captum_attr.NeuronGuidedBackprop):
    """captum's guided backpropagation of a neuron, for canonical models; the neuron's layer, or its qualified name."""

    def __init__(self, model: nn.Module, layer: nn.Module | str, device_ids: list[int] | None = None) -> None:
        super().__init__(model, _counterpart(model, model, layer), device_ids)
        self.guided_backprop = GuidedBackprop(model)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what captum says on every call."""
    with warnings.catch_warnings():
        for message in _ALWAYS_SAID:
            warnings.filterwarnings("ignore", message=f"\\s*{message}", category=UserWarning)
        yield


@contextlib.contextmanager
def known_activations() -> Iterator[None]:
    """Let DeepLIFT know that the rescale rule is right for every elementwise activation."""
    table: dict[Any, Any] = deep_lift.SUPPORTED_NON_LINEAR
    added = [kind for kind in ELEMENTWISE if kind not in table]
    table.update(dict.fromkeys(added, deep_lift.nonlinear))
    try:
        yield
    finally:
        for kind in added:
            table.pop(kind, None)


def prepare(model: nn.Module, every_layer: bool = False, paired: bool = False) -> nn.Module:
    """A model whose activations (or all of whose layers) read tensors that nobody else reads.

    Parameters
    ----------
    model : nn.Module
        Not changed; the result has modules and parameters of its own that share all storage. Wrappers of a graph get a
        prepared graph inside; anything else is returned as it is.
    every_layer : bool
        Give each layer an input of its own, not just activations and max-pooling.
    paired : bool
        Give products the rule of DeepLIFT, for batches of inputs and baselines one behind the other.
    """
    if not isinstance(model, fx.GraphModule):
        return _rewrapped(model, every_layer, paired)
    targets = [str(n.target) for n in model.graph.nodes if n.op == "call_module"]
    modules: dict[str, Any] = {target: shell(model.get_submodule(target)) for target in targets}
    for module in modules.values():
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:  # captum's LRP exchanges the data of parameters
                    part._parameters[name] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    if paired:
        for name in _products_of_two(model):
            modules[name] = PairedProduct.of(modules[name])
        for name, module in modules.items():
            if isinstance(module, WINDOWS) and not module.return_indices:
                modules[name] = PairedMaximum.of(module)
    attributes = {str(n.target): _attribute(model, str(n.target)) for n in model.graph.nodes if n.op == "get_attr"}
    prepared = assembled(modules | attributes, model.graph, type(model).__name__)
    for _, module in _leaves(prepared):
        if every_layer or type(module) in (*deep_lift.SUPPORTED_NON_LINEAR, *ELEMENTWISE):
            module.register_forward_pre_hook(_copy_inputs)
    return prepared


def _rewrapped(model: nn.Module, every_layer: bool, paired: bool) -> nn.Module:
    """A wrapper's double, around a prepared graph."""
    children = {
        name: prepare(child, every_layer, paired) for name, child in model._modules.items() if child is not None
    }
    if all(child is model._modules[name] for name, child in children.items()):
        return model
    double = copy.copy(model)
    double.__dict__["_modules"] = dict(model._modules) | children
    return double


def _products_of_two(model: fx.GraphModule) -> list[str]:
    """Products of two values that both depend on the input."""
    found: list[str] = []
    dependent: set[fx.Node] | None = None
    for node in model.graph.nodes:
        module = module_at(model, node)
        if module is None or isinstance(module, nn.GLU) or kind_of(module) not in (Kind.GATE, Kind.PRODUCT):
            continue
        dependent = dependents(model) if dependent is None else dependent
        operands = operands_of(module, len(node.args))
        carried = [times for place, times in operands.factors.items() if node.args[place] in dependent]
        if sum(carried) == 2:
            found.append(str(node.target))
    return found


def _copy_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)


def _attribute(model: nn.Module, name: str) -> Any:
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)


# --------------------------------------------------------------------------------------- canonize.explain.attribute


class Weighted(nn.Module):
    """A model's output times its initial relevance, one number a sample: what captum's methods take for a target.

    Arguments are the floating inputs, then the initial relevance, then all other inputs.
    """

    def __init__(self, model: nn.Module, pick: Any, explained: list[int], total: int) -> None:
        super().__init__()
        self.model, self.pick, self.explained, self.total = model, pick, explained, total

    def forward(self, *arguments: Any) -> Tensor:
        """One number for each sample, ``(N,)``."""
        count = len(self.explained)
        others = iter(arguments[count + 1 :])
        floats = dict(zip(self.explained, arguments[:count], strict=True))
        inputs = [floats[position] if position in floats else next(others) for position in range(self.total)]
        product: Tensor = self.pick(self.model(*inputs)) * arguments[count]
        return product.flatten(1).sum(1)


def relevances(job: Job, inputs: tuple[Any, ...], start: Tensor) -> list[Tensor | None]:
    """Relevance of each input by one of captum's methods."""
    explained = [position for position, value in enumerate(inputs) if is_explained(value)]
    deep = job.method.name == "deep-lift"
    weighted = Weighted(prepare(job.model, paired=True) if deep else job.model, job.pick, explained, len(inputs))
    values = tuple(inputs[position].clone() for position in explained)
    others = tuple(value for position, value in enumerate(inputs) if position not in explained)
    baselines = tuple(_baseline(job.settings["baseline"], value) for value in values)
    more: dict[str, Any] = {"additional_forward_args": (start, *others)}
    with quiet(), known_activations():
        if deep:
            try:
                found, delta = captum_attr.DeepLift(weighted).attribute(
                    values, baselines, return_convergence_delta=True, **more
                )
            except RuntimeError as error:
                raise ExplainError(
                    f"captum's DeepLIFT cannot explain this model ({' '.join(str(error).split())[:120]})",
                    hint="Canonize it first: then each call has a module of its own",
                ) from error
            gap = incomplete(found, delta)
            if gap is not None and job.watch is not None:
                job.watch.doubt(missed("DeepLIFT", job.model, gap), AS_THEY_ARE)
        else:
            steps = int(job.settings["steps"])
            size = max(len(values[0]), 16)
            found = captum_attr.IntegratedGradients(weighted).attribute(
                values, baselines, n_steps=steps, internal_batch_size=size, **more
            )
    relevance: list[Tensor | None] = [None] * len(inputs)
    for position, value in zip(explained, found, strict=True):
        relevance[position] = value.detach()
    return relevance


def _baseline(given: Any, value: Tensor) -> Tensor:
    if isinstance(given, Tensor):
        return given.to(value).expand_as(value)
    return torch.full_like(value, float(given))
