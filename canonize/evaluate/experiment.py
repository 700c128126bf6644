"""What is to be measured, as data: an experiment, and the tasks it falls into."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from canonize.errors import InputError
from canonize.evaluate.metrics.catalogue import Settings, metric
from canonize.explain.law import check_unruled
from canonize.explain.methods import find

# Raised whenever numbers change, so that nothing measured before is taken for what would be measured now.
FORMAT = 2
STRATEGIES = ("threshold", "untangle")


@dataclass(frozen=True)
class ModelSource:
    """A model as the command line names it.

    Attributes
    ----------
    name : str
        What tables call it.
    source : str
        A file, an architecture, ``package.module:factory``, or ``shipped:NAME``.
    arch : str, optional
        What a file with weights alone belongs to.
    allow, trust
        As for :func:`canonize.load`.
    """

    name: str
    source: str
    arch: str | None = None
    allow: tuple[str, ...] = ()
    trust: bool = False

    @staticmethod
    def parse(text: str, **more: Any) -> ModelSource:
        """``NAME=SOURCE``, or ``SOURCE`` whose name is what it is called in its own right."""
        name, _, source = text.rpartition("=")
        return ModelSource(name or _short(source), source, **more)

    def fingerprint(self) -> str:
        """Changes when the file does."""
        path = Path(self.source)
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        return json.dumps([self.source, self.arch, content])


@dataclass(frozen=True)
class MethodSpec:
    """A method with its hyperparameters, as the command line spells it.

    Attributes
    ----------
    text : str
        ``epsilon-gamma:gamma=0.5:threshold=gradient``.
    name : str
    hyperparameters : dict
        Of the method.
    choices : dict
        Rules of what is no linear layer: ``threshold``, ``gate``, ``sum``, ...; see `canonize.explain.Choices`.
    initial : {"one", "output"}
        Relevance that the target's output starts with. Where that output is negative and relevance starts with one,
        rules that share by contribution turn every sign.
    unruled : {"refuse", "gradient"}
        What becomes of operations without a rule in a canonical model. In the model as it is they get the plain
        gradient, as in the papers: that is what canonizing is compared with.
    """

    text: str
    name: str
    hyperparameters: dict[str, Any]
    choices: dict[str, str]
    initial: str = "one"
    unruled: str = "refuse"

    @staticmethod
    def parse(text: str) -> MethodSpec:
        """Read a method's spelling.

        Raises
        ------
        InputError, ExplainError
            If there is no such method, or a setting is no ``key=value``.
        """
        name, *settings = text.split(":")
        method = find(name)
        hyperparameters: dict[str, Any] = {}
        choices: dict[str, str] = {}
        initial, unruled = "one", "refuse"
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals:
                raise InputError(f"{setting!r} is no setting", where=text, hint="Write METHOD:key=value:key=value")
            if key == "initial":
                if value not in ("one", "output"):
                    raise InputError(f"there is no initial relevance {value!r}", where=text, hint="Use one or output")
                initial = value
            elif key == "unruled":
                unruled = check_unruled(value)
            elif key in CHOICES:
                choices[key] = value
            else:
                hyperparameters[key] = _number(value)
        # Bounds of the input are the data's where they are not given.
        method.check({*hyperparameters, *method.required})
        return MethodSpec(text, method.name, hyperparameters, choices, initial, unruled)


# The fields of canonize.explain.Choices, which only importing zennit would tell.
CHOICES = ("threshold", "gate", "sum", "pool", "offset", "normalisation", "attention")


@dataclass(frozen=True)
class Experiment:
    """Models x data x canonizations x methods x metrics, on samples of several seeds.

    Attributes
    ----------
    models : tuple of ModelSource
    data : tuple of str
        As `canonize.evaluate.data.open_data` takes them.
    canonizations : tuple of str
        ``none``; ``threshold`` or ``untangle``; either without some patterns, ``threshold-bn_linear-linear_bn``; or
        ``structure``, which folds nothing and gives every operation a module. Others are compared with the first.
    methods, metrics : tuple of str
    samples : int
        For each seed.
    seeds : tuple of int
        Each draws other samples and other noise.
    batch : int
        Samples at once: a task.
    target : {"label", "predicted"}
        What is explained.
    device : str
    size : int
        Side that pictures from files are brought to.
    settings : Settings
        Of the metrics.
    title : str
        Heading of its table.
    """

    models: tuple[ModelSource, ...]
    data: tuple[str, ...]
    canonizations: tuple[str, ...] = ("none", "threshold")
    methods: tuple[str, ...] = ("epsilon-plus",)
    metrics: tuple[str, ...] = ("sparseness",)
    samples: int = 64
    seeds: tuple[int, ...] = (0, 1, 2)
    batch: int = 16
    target: Literal["label", "predicted"] = "label"
    device: str = "cpu"
    size: int = 224
    settings: Settings = field(default_factory=Settings)
    title: str = "Explanations with and without canonization"

    def check(self) -> None:
        """Refuse what could not be measured, before anything is.

        Raises
        ------
        InputError, ExplainError
            With what there is instead.
        """
        for name in self.metrics:
            metric(name)
        for name in self.methods:
            MethodSpec.parse(name)
        for name in self.canonizations:
            parse_canonization(name)
        for what in ("models", "data", "canonizations", "methods", "metrics", "seeds"):
            values = getattr(self, what)
            if not values:
                raise InputError(f"there are no {what}", hint="Name at least one")
            if len({getattr(value, "name", value) for value in values}) < len(values):
                raise InputError(f"one of the {what} is named twice", hint="Give each a name of its own: NAME=SOURCE")
        self.settings.check()
        if self.samples < 1 or self.batch < 1:
            raise InputError("there is nothing to measure", hint="Give at least one sample and batches of at least one")
        if self.target not in ("label", "predicted"):
            raise InputError(f"there is no target {self.target!r}", hint="Use label or predicted")

    def tasks(self) -> Iterator[Task]:
        """What is to be done, models and canonizations outermost, so that a process seldom changes its model."""
        digest = self._digest
        for model in self.models:
            for canonization in self.canonizations:
                for data in self.data:
                    for method in self.methods:
                        for seed in self.seeds:
                            for first in range(0, self.samples, self.batch):
                                last = min(first + self.batch, self.samples)
                                yield Task(self, model, canonization, data, method, seed, first, last, digest)

    @functools.cached_property
    def _digest(self) -> str:
        """Changes with whatever a measurement depends on and its task does not name."""
        models = {model.name: model.fingerprint() for model in self.models}
        kept = {
            "format": FORMAT,
            "models": models,
            "metrics": self.metrics,
            "samples": self.samples,
            "target": self.target,
            "size": self.size,
            "settings": dataclasses.asdict(self.settings),
        }
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Task:
    """One batch of one cell of an experiment: the unit that is sharded, written and resumed."""

    experiment: Experiment
    model: ModelSource
    canonization: str
    data: str
    method: str
    seed: int
    first: int
    last: int
    digest: str

    @property
    def key(self) -> str:
        """Name of the task's file: another for anything that would change its numbers."""
        parts = (
            self.digest,
            self.model.name,
            self.canonization,
            self.data,
            self.method,
            self.seed,
            self.first,
            self.last,
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def __str__(self) -> str:
        return f"{self.model.name}, {self.canonization}, {self.method}, {self.data}, seed {self.seed}"


@dataclass(frozen=True)
class Canonization:
    """A canonization by its parts: no strategy means the model as it is."""

    strategy: str | None
    skip: tuple[str, ...]


def parse_canonization(text: str) -> Canonization:
    """Read ``none``, ``structure``, ``threshold``, ``untangle-PATTERN-PATTERN``.

    Raises
    ------
    InputError
        If there is no such strategy or pattern.
    """
    from canonize.patterns import catalogue

    patterns = [pattern.name for pattern in catalogue()]
    if text == "none":
        return Canonization(None, ())
    if text == "structure":
        return Canonization("threshold", tuple(patterns))
    strategy, *skipped = text.split("-")
    if strategy not in STRATEGIES:
        raise InputError(
            f"there is no canonization {text!r}", hint="Use none, structure, threshold, untangle, threshold-PATTERN"
        )
    for name in skipped:
        if name not in patterns:
            raise InputError(f"there is no pattern {name!r} to leave out", hint=f"Patterns: {', '.join(patterns)}")
    return Canonization(strategy, tuple(skipped))


def _short(source: str) -> str:
    """What a source is called in its own right: a file's name, an architecture's."""
    return (
        Path(source).stem
        if "/" in source or source.endswith((".pt", ".pth", ".pt2", ".safetensors"))
        else (source.rpartition(":")[2])
    )


def _number(text: str) -> Any:
    try:
        return float(text) if not text.lstrip("-").isdigit() else int(text)
    except ValueError:
        return text
