"""A model in one canonization, ready to be explained by one method."""

from __future__ import annotations

import functools
import itertools
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from canonize.errors import InputError
from canonize.evaluate.data import DataSet, Samples, open_data
from canonize.evaluate.experiment import MethodSpec, ModelSource, parse_canonization
from canonize.evaluate.metrics.catalogue import MetricCase, Settings, seed_of
from canonize.evaluate.metrics.pooling import normalised, pooled
from canonize.evaluate.noise import rounded_otherwise

_KEPT = 8  # models and data sets that a process keeps; tasks come model by model


@functools.lru_cache(maxsize=_KEPT)
def data_set(spec: str, seed: int, samples: int, size: int) -> DataSet:
    """The data set of a seed, kept for the next task."""
    return open_data(spec, count=samples, seed=seed, size=size)


def chosen_indices(data: DataSet, spec: str, seed: int, samples: int) -> list[int]:
    """Which samples a seed measures: of a generated set all, of one that is read a random part."""
    if ":" not in spec or len(data) <= samples:
        return list(range(min(samples, len(data))))
    generator = torch.Generator().manual_seed(seed_of("subset", seed))
    return torch.randperm(len(data), generator=generator)[:samples].tolist()


@functools.lru_cache(maxsize=_KEPT)
def model_in(source: ModelSource, canonization: str, device: str, data: str, size: int) -> nn.Module:
    """A model, canonized and proven to compute the same; kept for the next task.

    Raises
    ------
    CanonizeError
        If it cannot be loaded or canonized.
    """
    from canonize.api import canonize

    model = load_model(source).to(device)
    wanted = parse_canonization(canonization)
    if wanted.strategy is None:
        return model
    example = data_set(data, 0, 2, size).take([0, min(1, 1)])
    example = example.to(torch.device(device), any_tensor(model).dtype)
    with torch.no_grad():
        outputs_of(model, example.inputs)  # what does not fit is said in terms of the data
    strategy = cast(Literal["threshold", "untangle"], wanted.strategy)
    return canonize(model, example.inputs, strategy=strategy, skip=wanted.skip)


@functools.lru_cache(maxsize=1)
def model_rounded_otherwise(source: ModelSource, canonization: str, device: str, data: str, size: int) -> nn.Module:
    """The same model once more, its weights moved by one unit of their last place; see `canonize.evaluate.noise`."""
    return rounded_otherwise(model_in(source, canonization, device, data, size))


def any_tensor(model: nn.Module) -> Tensor:
    """A tensor on the device and of the dtype that a model computes in."""
    held = (value for value in itertools.chain(model.parameters(), model.buffers()) if value.is_floating_point())
    return next(held, torch.empty(0))


def load_model(source: ModelSource) -> nn.Module:
    """A model in eval mode."""
    if source.source.startswith("shipped:"):
        from canonize.evaluate.networks import shipped

        return shipped(source.source.removeprefix("shipped:"))
    from canonize.loading import load

    return load(source.source, source.arch, allow=source.allow, trust=source.trust).eval()


class Subject:
    """A model that is explained by one method.

    Parameters
    ----------
    model : nn.Module
    method : MethodSpec
    low, high : Tensor, shape (C, 1, 1)
        Range of the pixels' values: the bounds of the box rule, unless the method is given others.
    layers : mapping, optional
        Rules of single layers; see `canonize.explain.composite`.
    settings : Settings, optional
        How channels are pooled, and heatmaps normalised.
    """

    def __init__(
        self,
        model: nn.Module,
        method: MethodSpec,
        low: Tensor,
        high: Tensor,
        layers: Any = None,
        settings: Settings | None = None,
    ) -> None:
        from canonize.explain.methods import find

        parameter = any_tensor(model)
        self.model, self.method, self.layers = model, method, layers
        self.settings = settings or Settings()
        self.low, self.high = low.to(parameter), high.to(parameter)
        self.device, self.dtype = parameter.device, parameter.dtype
        needed = find(method.name).required
        bounds = {"low": self.low[None], "high": self.high[None]}
        self.hyperparameters = {key: bounds[key] for key in needed if key in bounds} | method.hyperparameters

    def explain(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Heatmaps (N, H, W) of the first input, pooled over channels and normalised as the settings say."""
        from canonize.explain import Choices, attribute
        from canonize.explain.zennit import is_canonical

        choices = Choices(**self.method.choices) if self.method.choices else None
        found = attribute(
            self.model,
            inputs if len(inputs) > 1 else inputs[0],
            targets,
            method=self.method.name,
            initial=self.method.initial,
            choices=choices,
            layers=self.layers,
            # A model that is no graph is explained as the papers do: the plain gradient where there is no rule.
            unruled=self.method.unruled if is_canonical(self.model) else "gradient",
            **self.hyperparameters,
        )
        relevance = found.relevance if isinstance(found.relevance, Tensor) else found.relevance[0]
        if relevance is None:
            raise InputError("the model's first input is no image", hint="Evaluation explains the first input")
        return normalised(pooled(relevance.detach(), self.settings.pooling), self.settings.normalise)

    def logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Outputs (N, K)."""
        with torch.no_grad():
            return outputs_of(self.model, inputs)

    def case(self, samples: Samples, target: str, seeds: tuple[int, ...]) -> MetricCase:
        """All that the metrics may ask for, on one batch."""
        samples = samples.to(self.device, self.dtype)
        others = samples.inputs[1:]
        outputs = self.logits(samples.inputs)
        check_classes(outputs, samples)
        predicted = outputs.argmax(1)
        targets = samples.labels if target == "label" else predicted
        return MetricCase(
            samples,
            targets,
            self.explain(samples.inputs, targets),
            logits=lambda images: self.logits((images, *others)),
            explain=lambda images, wanted: self.explain((images, *others), wanted),
            seeds=seeds,
            low=self.low,
            high=self.high,
            settings=self.settings,
            predicted=predicted,
            right=samples.right(outputs),
        )


def check_classes(outputs: Tensor, samples: Samples) -> None:
    """Refuse labels that are none of a model's classes.

    Raises
    ------
    InputError
        With both numbers.
    """
    largest = int(samples.labels.max())
    if largest >= outputs.shape[1]:
        raise InputError(
            f"the model has {outputs.shape[1]} outputs, and there are samples of class number {largest}",
            hint="Give a model of the data's classes",
        )


def outputs_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """What a classifier makes of some inputs, (N, K).

    Raises
    ------
    InputError
        If it cannot be called with them, or its output is no table of classes; with what does not fit.
    """
    try:
        outputs = model(*inputs)
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(_misfit(model, inputs, error), hint=_advice(model, inputs)) from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise InputError("the model's output is no table of classes", hint="Evaluation needs a classifier")
    return outputs


def _misfit(model: nn.Module, inputs: tuple[Tensor, ...], error: Exception) -> str:
    channels = _channels(model)
    if channels is not None and channels != inputs[0].shape[1]:
        return (
            f"the model takes images of {channels} channel{'s' * (channels > 1)}, the data's have {inputs[0].shape[1]}"
        )
    given = " and ".join("x".join(map(str, value.shape)) for value in inputs)
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"the model cannot be called with the data's inputs, {given} ({said})"


def _advice(model: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    channels = _channels(model)
    if channels is not None and channels != inputs[0].shape[1]:
        return f"Give a model that takes {inputs[0].shape[1]}, or wrap it in one that makes {channels} of them"
    if len(inputs) > 1:
        return "These data hold an image and a question: give a model that takes both"
    return "Pictures from files are brought to another size by --size; the model must take what the data hold"


def _channels(model: nn.Module) -> int | None:
    """How many channels the first convolution takes."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return next((module.in_channels for module in model.modules() if isinstance(module, kinds)), None)
