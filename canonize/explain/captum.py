"""captum on canonical models: LRP, DeepLIFT and guided backpropagation, told what they must know of its modules.

The classes are captum's, with the same ``attribute``. What they add:

- LRP gets a rule on every module (captum raises on types that it does not know);
- DeepLIFT gets the rescale rule on every elementwise activation, ``ThreshReLU`` among them (captum looks types up
  exactly, and takes the gradient, silently, where it finds nothing), and an input of its own for each (captum
  overwrites the gradient of the tensor that an activation reads, other readers' share included);
- what captum says on each call, whatever the model, is not said.

``captum.attr.IntegratedGradients``, ``Saliency`` and the other gradient methods work on canonical models as they are.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.algebra.weights import LINEAR
from canonize.errors import ExplainError
from canonize.explain.composites import MORE_ACTIVATIONS, NORMALISATIONS
from canonize.explain.job import is_explained
from canonize.explain.libraries import require
from canonize.explain.structure import assembled, factors, is_matrix_product
from canonize.graph.network import shell

require("captum")

from captum import attr as captum_attr  # noqa: E402 - said so above if it is not there
from captum.attr._core import deep_lift  # noqa: E402
from captum.attr._utils import lrp_rules  # noqa: E402
from zennit.types import Activation, AvgPool, MaxPool  # noqa: E402

if TYPE_CHECKING:
    from canonize.explain.job import Job

# What captum says each time it sets its hooks, whatever the model.
_ALWAYS_SAID = ("Setting forward, backward hooks", "Setting backward hooks on ReLU", "Input Tensor .* did not already")
ELEMENTWISE = (
    *(nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.GELU, nn.Mish, nn.SELU, nn.CELU, nn.Hardswish, nn.Hardsigmoid, nn.PReLU),
    *(nn.Softsign, nn.LogSigmoid, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.Threshold),
    *(cnn.ThreshReLU, cnn.ThreshLeakyReLU),
)
# Linear without weights of their own: what captum's epsilon rule is right for.
LINEAR_MAPS = (cnn.Sum, cnn.Mean, cnn.SumOver, nn.Upsample)
# Each output is one of the inputs (or a constant): its relevance is that input's.
MOVEMENTS = (
    *(cnn.Concat, cnn.ChannelPad, cnn.Rearrange),
    *(nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ZeroPad2d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
)


# ------------------------------------------------------------------------------------------------ LRP


class MovementRule(lrp_rules.PropagationRule):
    """Relevance goes where the gradient goes: back to the input that an output is a copy of."""

    def forward_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Leave the gradient alone."""

    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """There are none."""


class SignalRule(lrp_rules.IdentityRule):
    """Of a product, the signal takes all relevance: the factor of the result's shape, or else the one named."""

    def __init__(self, signal: int | None = None) -> None:
        super().__init__()
        self.signal = self.chosen = signal
        self.created = 0

    def forward_hook(self, module: nn.Module, inputs: Any, outputs: Tensor) -> Any:
        """Remember the shapes; captum's hooks do not know which argument they are for."""
        whole = [position for position, value in enumerate(inputs) if value.shape == outputs.shape]
        self.chosen = whole[0] if len(whole) == 1 else self.signal
        self.created = 0
        return super().forward_hook(module, inputs, outputs)

    def _create_backward_hook_input(self, inputs: Tensor) -> Any:
        position, self.created = self.created, self.created + 1

        def hook(gradient: Tensor) -> Tensor:
            relevance: Tensor = self.relevance_output[gradient.device]
            if self.chosen is None:
                return (relevance / 2).sum_to_size(inputs.shape)
            share = relevance if position == self.chosen else torch.zeros_like(relevance)
            return share.sum_to_size(inputs.shape)

        return hook


class LRP(captum_attr.LRP):
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

    Raises
    ------
    ExplainError
        If a layer has no rule (attention, an unknown call), naming the first.

    Notes
    -----
    Activations, thresholds and normalisations pass relevance, gates give all to their signal, max-pooling gives all to
    the largest. Attributions are in units of the output, as captum's are.
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
    ) -> None:
        made = {
            "epsilon": lambda: lrp_rules.EpsilonRule(epsilon),
            "gamma": lambda: lrp_rules.GammaRule(gamma),
            "alpha1-beta0": lrp_rules.Alpha1_Beta0_Rule,
        }
        for name in (convolution, dense):
            if name not in made:
                raise ExplainError(f"captum has no rule {name!r}", hint=f"Rules: {', '.join(made)}")
        prepared = prepare(model, every_layer=True)
        given, signals = dict(rules or {}), factors(model)
        self.chosen: dict[str, Any] = {}
        for name, module in _leaves(prepared):
            if name in given:
                self.chosen[name] = given.pop(name)
            elif isinstance(module, LINEAR):
                self.chosen[name] = made[dense if isinstance(module, nn.Linear) else convolution]()
            else:
                self.chosen[name] = _rule_of(name, module, signals.get(name), epsilon)
        if given:
            raise ExplainError(f"there is no layer {next(iter(given))}", hint="Rules go by qualified name")
        super().__init__(prepared)

    def attribute(self, *arguments: Any, **named: Any) -> Any:
        """As ``captum.attr.LRP.attribute``."""
        for name, module in _leaves(self.model):
            module.rule = self.chosen[name]
        with quiet():
            return super().attribute(*arguments, **named)


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if name and not any(True for _ in module.children()):
            yield name, module


def _rule_of(name: str, module: nn.Module, signal: int | None, epsilon: float) -> Any:
    """Captum's rule for what is no linear layer."""
    if isinstance(module, cnn.Gate):
        return SignalRule(signal)
    if isinstance(module, (Activation, *MORE_ACTIVATIONS, *NORMALISATIONS, cnn.Offset)):
        return lrp_rules.IdentityRule()
    if isinstance(module, (AvgPool, *LINEAR_MAPS)):
        return lrp_rules.EpsilonRule(epsilon)
    if isinstance(module, (MaxPool, *MOVEMENTS)):
        return MovementRule()
    raise ExplainError(
        f"captum's LRP has no rule for {_described(module)}",
        where=name,
        hint="Give one in rules={name: rule}, or use canonize.explain.attribute, which has rules for attention",
    )


def _described(module: nn.Module) -> str:
    if is_matrix_product(module):
        return "a matrix product"
    return f"a call of {module.target}" if isinstance(module, cnn.Call) else type(module).__name__


# ------------------------------------------------------------------------------- DeepLIFT, guided backpropagation


class DeepLift(captum_attr.DeepLift):
    """captum's DeepLIFT (rescale rule), for canonical models; the model is not changed."""

    def __init__(self, model: nn.Module, multiply_by_inputs: bool = True, eps: float = 1e-10) -> None:
        super().__init__(prepare(model), multiply_by_inputs, eps)

    def attribute(self, *arguments: Any, **named: Any) -> Any:
        """As ``captum.attr.DeepLift.attribute``."""
        with quiet(), known_activations():
            return super().attribute(*arguments, **named)


class GuidedBackprop(captum_attr.GuidedBackprop):
    """captum's guided backpropagation, quiet."""

    def attribute(self, *arguments: Any, **named: Any) -> Any:
        """As ``captum.attr.GuidedBackprop.attribute``."""
        with quiet():
            return super().attribute(*arguments, **named)


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


def prepare(model: nn.Module, every_layer: bool = False) -> nn.Module:
    """A model whose activations (or all of whose layers) read tensors that nobody else reads.

    Parameters
    ----------
    model : nn.Module
        Not changed; the result has modules and parameters of its own that share all storage. Anything but a graph
        module is returned as it is.
    every_layer : bool
        Give each layer an input of its own, not just activations and max-pooling.
    """
    if not isinstance(model, fx.GraphModule):
        return model
    targets = [str(n.target) for n in model.graph.nodes if n.op == "call_module"]
    modules: dict[str, Any] = {target: shell(model.get_submodule(target)) for target in targets}
    for module in modules.values():
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:  # captum's LRP exchanges the data of parameters
                    part._parameters[name] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    attributes = {str(n.target): _attribute(model, str(n.target)) for n in model.graph.nodes if n.op == "get_attr"}
    prepared = assembled(modules | attributes, model.graph, type(model).__name__)
    for _, module in _leaves(prepared):
        if every_layer or type(module) in (*deep_lift.SUPPORTED_NON_LINEAR, *ELEMENTWISE):
            module.register_forward_pre_hook(_copy_inputs)
    return prepared


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
    weighted = Weighted(prepare(job.model) if deep else job.model, job.pick, explained, len(inputs))
    values = tuple(inputs[position].clone() for position in explained)
    others = tuple(value for position, value in enumerate(inputs) if position not in explained)
    baselines = tuple(_baseline(job.settings["baseline"], value) for value in values)
    more: dict[str, Any] = {"additional_forward_args": (start, *others)}
    with quiet(), known_activations():
        if deep:
            try:
                found = captum_attr.DeepLift(weighted).attribute(values, baselines, **more)
            except RuntimeError as error:
                raise ExplainError(
                    f"captum's DeepLIFT cannot explain this model ({' '.join(str(error).split())[:120]})",
                    hint="Canonize it first: then each call has a module of its own",
                ) from error
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
