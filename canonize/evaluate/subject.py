"""A model in one canonization, ready to be explained by one method."""

from __future__ import annotations

import functools
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from canonize.errors import InputError
from canonize.evaluate.data import DataSet, Samples, Transform, open_data
from canonize.evaluate.metrics.catalogue import Case, Settings, seed_of
from canonize.evaluate.plan import MethodSpec, ModelSource, parse_canonization

_KEPT = 8  # models and data sets that a process keeps; tasks come model by model


@functools.lru_cache(maxsize=_KEPT)
def data_set(spec: str, seed: int, samples: int, size: int) -> DataSet:
    """The data set of a seed, kept for the next task."""
    return open_data(spec, count=samples, seed=seed, transform=_transform(spec, size))


def _transform(spec: str, size: int) -> Transform | None:
    """Scenes keep what their reader says; photographs are brought to the size that the model wants."""
    return None if spec.startswith("clevr-xai") else Transform(size)


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
    example = example.to(torch.device(device), next(model.parameters()).dtype)
    strategy = cast(Literal["threshold", "untangle"], wanted.strategy)
    return canonize(model, example.inputs, strategy=strategy, skip=wanted.skip)


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
    """

    def __init__(self, model: nn.Module, method: MethodSpec, low: Tensor, high: Tensor, layers: Any = None) -> None:
        from canonize.explain.methods import find

        parameter = next(model.parameters())
        self.model, self.method, self.layers = model, method, layers
        self.low, self.high = low.to(parameter), high.to(parameter)
        self.device, self.dtype = parameter.device, parameter.dtype
        needed = find(method.name).required
        bounds = {"low": self.low[None], "high": self.high[None]}
        self.hyperparameters = {key: bounds[key] for key in needed if key in bounds} | method.hyperparameters

    def explain(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Heatmaps (N, H, W) of the first input, summed over channels."""
        from canonize.explain import Choices, attribute

        choices = Choices(**self.method.choices) if self.method.choices else None
        found = attribute(
            self.model,
            inputs if len(inputs) > 1 else inputs[0],
            targets,
            method=self.method.name,
            initial=self.method.initial,
            choices=choices,
            layers=self.layers,
            **self.hyperparameters,
        )
        return found.heatmap().detach()

    def logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Outputs (N, K)."""
        with torch.no_grad():
            outputs = self.model(*inputs)
        if not isinstance(outputs, Tensor) or outputs.ndim != 2:
            raise InputError("the model's output is no table of classes", hint="Evaluation needs a classifier")
        return outputs

    def case(self, samples: Samples, target: str, seeds: tuple[int, ...], settings: Settings) -> Case:
        """All that the metrics may ask for, on one batch."""
        samples = samples.to(self.device, self.dtype)
        others = samples.inputs[1:]
        predicted = self.logits(samples.inputs).argmax(1)
        targets = samples.labels if target == "label" else predicted
        return Case(
            samples,
            targets,
            self.explain(samples.inputs, targets),
            logits=lambda images: self.logits((images, *others)),
            explain=lambda images, wanted: self.explain((images, *others), wanted),
            seeds=seeds,
            low=self.low,
            high=self.high,
            settings=settings,
            predicted=predicted,
        )
