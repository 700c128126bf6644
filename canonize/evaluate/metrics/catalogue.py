"""The metrics by name: what each is called, which way is better, what it needs, and how a case is measured by it."""

from __future__ import annotations

import difflib
import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from canonize.errors import InputError
from canonize.evaluate.data.samples import Samples
from canonize.evaluate.metrics import localisation
from canonize.evaluate.metrics.complexity import entropy, sparseness
from canonize.evaluate.metrics.faithfulness import faithfulness_correlation
from canonize.evaluate.metrics.fill import FILLS, Fill, make_fill
from canonize.evaluate.metrics.localisation import Select
from canonize.evaluate.metrics.perturbation import ORDERS, growing, pixel_flipping, region_perturbation
from canonize.evaluate.metrics.pooling import NORMALISATIONS, POOLINGS, Normalise, Pooling
from canonize.evaluate.metrics.randomisation import other_targets, random_logit
from canonize.evaluate.metrics.robustness import Sensitivity, sensitivity

Better = Literal["higher", "lower", "neither"]
# Settings that are one of some words.
CHOICES: dict[str, tuple[str, ...]] = {
    "output": ("softmax", "logit"),
    "select": get_args(Select),
    "pooling": POOLINGS,
    "normalise": NORMALISATIONS,
}


@dataclass(frozen=True)
class Settings:
    """What the metrics leave open.

    Attributes
    ----------
    patch : int
        Side of the squares of region perturbation, in pixels.
    perturbation_steps : int
        How many of them go.
    flipping_steps : int
        In how many steps pixel flipping takes away all pixels.
    blur : int
        Width of the box filter of the fill ``blur``, in pixels.
    noise : float
        Radius of the noise of both sensitivities, as a share of the range of the pixels' values.
    noise_samples : int
        Noisy copies of each image.
    output : {"softmax", "logit"}
        Which score of the target perturbation watches.
    radius : float
        Radius of that noise in the units of the model's input; 0 leaves it to `noise`.
    flipping_patch : int
        Side of the squares that pixel flipping takes away, in pixels.
    growth : float
        By how much each step of pixel flipping takes more squares than the one before it: 1 for equal steps.
    select : {"positive", "all", "absolute"}
        What of a heatmap counts for rank and mass accuracy. (`mu` is about positive relevance by definition.)
    pooling : str
        From channels to pixels: ``sum``, ``pos-l2-norm-sq``, ``max-norm``, ...; see `canonize.evaluate.metrics.pooled`.
    normalise : {"none", "largest", "second-moment"}
        What each heatmap is divided by before it is measured.
    subsets, subset : int
        Random sets of pixels of faithfulness correlation, and pixels in each; 0 for an eighth of the image.
    """

    patch: int = 4
    perturbation_steps: int = 30
    flipping_steps: int = 20
    blur: int = 15
    noise: float = 0.05
    noise_samples: int = 5
    output: Literal["softmax", "logit"] = "softmax"
    radius: float = 0.0
    flipping_patch: int = 1
    growth: float = 1.0
    select: Select = "positive"
    pooling: Pooling = "sum"
    normalise: Normalise = "none"
    subsets: int = 50
    subset: int = 0

    def check(self) -> None:
        """Refuse what means nothing.

        Raises
        ------
        InputError
            With what there is instead.
        """
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"there is no {name} {getattr(self, name)!r}", hint=f"Use {name}={f', {name}='.join(allowed)}"
                )
        counts = (self.patch, self.perturbation_steps, self.flipping_steps, self.blur, self.noise_samples)
        if min(*counts, self.flipping_patch, self.subsets) < 1:
            raise InputError(
                "settings that count something are at least 1", hint="Leave the setting out for its default"
            )
        if self.subset < 0 or self.radius < 0 or self.noise < 0:
            raise InputError("subset, radius and noise are not negative", hint="Leave the setting out for its default")
        if self.growth < 1:
            raise InputError(
                f"steps grow by a factor of at least 1, not {self.growth}", hint="Use growth=1 or growth=1.5"
            )


@dataclass(frozen=True, eq=False)
class MetricCase:
    """One model, explained by one method, on one batch: all that a metric may ask for.

    Attributes
    ----------
    samples : Samples
    targets : Tensor, shape (N,)
        Classes that are explained.
    relevance : Tensor, shape (N, H, W)
        Heatmaps, summed over channels.
    logits : callable
        Images (N, C, H, W) -> outputs (N, K).
    explain : callable
        ``explain(images, targets)`` -> heatmaps (N, H, W).
    seeds : tuple of int
        One a sample, for whatever is random about its measurement: the same for every model, canonization and method,
        so that comparisons are paired.
    low, high : Tensor, shape (C, 1, 1)
        Range of the pixels' values.
    settings : Settings
    predicted : Tensor, shape (N,), optional
        What the model decides.
    right : Tensor, shape (N,), bool, optional
        Whether that is right.
    """

    samples: Samples
    targets: Tensor
    relevance: Tensor
    logits: Callable[[Tensor], Tensor]
    explain: Callable[[Tensor, Tensor], Tensor]
    seeds: tuple[int, ...]
    low: Tensor
    high: Tensor
    settings: Settings = Settings()
    predicted: Tensor | None = None
    right: Tensor | None = None

    def score(self, images: Tensor) -> Tensor:
        """The target's softmax probability or logit, (N,)."""
        with torch.no_grad():
            outputs = self.logits(images)
        if self.settings.output == "softmax":
            outputs = outputs.softmax(1)
        return outputs.gather(1, self.targets[:, None])[:, 0]

    def generators(self, purpose: str) -> list[torch.Generator]:
        """One random generator a sample, another stream for each purpose."""
        return [torch.Generator().manual_seed(seed_of(seed, purpose)) for seed in self.seeds]

    def fill(self, name: Any) -> Fill:
        """A way to replace pixels; see `make_fill`."""
        return make_fill(
            name,
            self.samples.images,
            low=self.low,
            high=self.high,
            kernel=self.settings.blur,
            generators=self.generators("fill"),
        )

    @functools.cached_property
    def sensitivity(self) -> Sensitivity:
        """Average and maximum sensitivity, which share their noisy images."""
        span = float((self.high - self.low).max())
        return sensitivity(
            lambda noisy: self.explain(noisy, self.targets),
            self.samples.images,
            self.relevance,
            radius=self.settings.radius or self.settings.noise * span,
            samples=self.settings.noise_samples,
            generators=self.generators("noise"),
        )

    @functools.cached_property
    def classes(self) -> int:
        """Number of the model's outputs."""
        with torch.no_grad():
            return int(self.logits(self.samples.images[:1].expand_as(self.samples.images)).shape[1])


@dataclass(frozen=True)
class Metric:
    """A metric by name.

    Attributes
    ----------
    name : str
        What the command line calls it.
    title : str
        What tables call it.
    group : str
        Complexity, faithfulness, localisation, robustness or randomisation, as in Quantus.
    better : {"higher", "lower", "neither"}
    needs : {None, "mask", "box"}
        Ground truth without which it gives NaN.
    measure : callable
        ``measure(case)`` -> one number a sample, (N,).
    """

    name: str
    title: str
    group: str
    better: Better
    measure: Callable[[MetricCase], Tensor]
    needs: Literal["mask", "box"] | None = None

    @property
    def arrow(self) -> str:
        """Which way is better, as tables show it."""
        return {"higher": "↑", "lower": "↓", "neither": ""}[self.better]


def seed_of(*parts: object) -> int:
    """A seed for a random generator that is another for any other parts, and the same everywhere."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _on_mask(
    measure: Callable[[Tensor, Tensor, Select], Tensor], name: str = "object"
) -> Callable[[MetricCase], Tensor]:
    def on_case(case: MetricCase) -> Tensor:
        mask = case.samples.masks.get(name)
        return _unknown(case) if mask is None else measure(case.relevance, mask, case.settings.select)

    return on_case


def _on_box(measure: Callable[[Tensor, Tensor], Tensor]) -> Callable[[MetricCase], Tensor]:
    def on_case(case: MetricCase) -> Tensor:
        return _unknown(case) if case.samples.boxes is None else measure(case.relevance, case.samples.boxes)

    return on_case


def _unknown(case: MetricCase) -> Tensor:
    return torch.full_like(case.relevance[:, 0, 0], torch.nan)


def _random_logit(case: MetricCase) -> Tensor:
    others = other_targets(case.targets, case.classes, case.generators("class"))
    return random_logit(
        lambda targets: case.explain(case.samples.images, targets),
        case.relevance,
        others,
        by_largest=case.settings.normalise == "none",
    )


def _region_perturbation(case: MetricCase, order: Any, fill: str) -> Tensor:
    return region_perturbation(
        case.score,
        case.samples.images,
        case.relevance,
        case.fill(fill),
        patch=case.settings.patch,
        steps=case.settings.perturbation_steps,
        order=order,
        generators=case.generators("order"),
    )


def _pixel_flipping(case: MetricCase, order: Any, fill: str) -> Tensor:
    patch, (height, width) = case.settings.flipping_patch, case.relevance.shape[1:]
    squares = math.ceil(height / patch) * math.ceil(width / patch)
    return pixel_flipping(
        case.score,
        case.samples.images,
        case.relevance,
        case.fill(fill),
        patch=patch,
        regions_per_step=growing(squares, case.settings.flipping_steps, case.settings.growth),
        order=order,
        generators=case.generators("order"),
    )


def _occluded(case: MetricCase, what: Callable[[Tensor], Tensor]) -> Tensor:
    """Drop of the score where the object's box, or all around it, is grey; unknown where there is no box."""
    boxes = case.samples.boxes
    if boxes is None:
        return _unknown(case)
    images = case.samples.images
    drop = case.score(images) - case.score(case.fill("constant")(images, what(boxes)))
    return drop.masked_fill(~boxes.flatten(1).any(1), torch.nan).to(case.relevance.dtype)


def _faithfulness(case: MetricCase) -> Tensor:
    return faithfulness_correlation(
        case.score,
        case.samples.images,
        case.relevance,
        case.fill("constant"),
        subset=case.settings.subset or max(1, case.relevance[0].numel() // 8),
        runs=case.settings.subsets,
        generators=case.generators("subsets"),
    )


# Ground truths beside ``object``: those that CLEVR-XAI publishes.
OTHER_MASKS = {
    "all": "all objects",
    "single": "single object",
    "unique": "unique",
    "unique-first": "unique, first non-empty",
    "union": "union",
}

_PLAIN = (
    Metric("sparseness", "Sparseness", "complexity", "higher", lambda case: sparseness(case.relevance)),
    Metric("entropy", "Complexity", "complexity", "lower", lambda case: entropy(case.relevance)),
    Metric("faithfulness-correlation", "Faithfulness corr.", "faithfulness", "higher", _faithfulness),
    Metric(
        "rank-accuracy",
        "RRA",
        "localisation",
        "higher",
        _on_mask(localisation.relevance_rank_accuracy),
        "mask",
    ),
    Metric("mass-accuracy", "RMA", "localisation", "higher", _on_mask(localisation.relevance_mass_accuracy), "mask"),
    *(
        Metric(f"{stem}-{name}", f"{title} ({words})", "localisation", "higher", _on_mask(measure, name), "mask")
        for name, words in OTHER_MASKS.items()
        for stem, title, measure in (
            ("rank-accuracy", "RRA", localisation.relevance_rank_accuracy),
            ("mass-accuracy", "RMA", localisation.relevance_mass_accuracy),
        )
    ),
    Metric("mu", "μ", "localisation", "higher", _on_box(localisation.inside_total_ratio), "box"),
    Metric("mu-weighted", "μ_w", "localisation", "higher", _on_box(localisation.weighted_inside_total_ratio), "box"),
    # Of data and model, whatever the heatmap: whether the decision rests on the object (Kohlbrenner et al. 2020).
    Metric(
        "object-occlusion", "Object occluded", "data", "neither", lambda case: _occluded(case, lambda box: box), "box"
    ),
    Metric(
        "context-occlusion",
        "Context occluded",
        "data",
        "neither",
        lambda case: _occluded(case, torch.logical_not),
        "box",
    ),
    Metric("avg-sensitivity", "Avg. sensitivity", "robustness", "lower", lambda case: case.sensitivity.average),
    Metric("max-sensitivity", "Max. sensitivity", "robustness", "lower", lambda case: case.sensitivity.maximum),
    Metric("random-logit", "Random logit", "randomisation", "lower", _random_logit),
)


def _perturbing(
    name: str,
    title: str,
    measure: Callable[[MetricCase, Any, str], Tensor],
    order: str,
    fill: str,
    usual: str,
    falls: bool,
) -> Metric:
    """A perturbation metric; `falls` says whether it is lower that is better, most relevant first."""
    unusual = [word for word, default in ((order, "morf"), (fill, usual)) if word != default]
    spelt = ", ".join({"lerf": "LeRF", "random": "any order"}.get(word, word) for word in unusual)
    better: Better = "neither"
    if order != "random":
        better = "lower" if falls == (order == "morf") else "higher"
    return Metric(
        ":".join([name, *unusual]),
        f"{title} ({spelt})" if spelt else title,
        "faithfulness",
        better,
        lambda case: measure(case, order, fill),
    )


_PERTURBING = tuple(
    _perturbing(name, title, measure, order, fill, usual, falls)
    for name, title, measure, usual, falls in (
        ("region-perturbation", "Region perturbation", _region_perturbation, "blur", False),
        ("pixel-flipping", "Pixel flipping", _pixel_flipping, "constant", True),
    )
    for order in ORDERS
    for fill in FILLS
)

METRICS: dict[str, Metric] = {found.name: found for found in (*_PLAIN, *_PERTURBING)}
"""Every metric by name. Perturbation is spelt ``pixel-flipping[:ORDER][:FILL]``: most relevant first, and blur (region
perturbation) or grey (pixel flipping), where nothing else is said."""


def metric(name: str) -> Metric:
    """The metric of this name.

    Raises
    ------
    InputError
        If there is none; with names that look like it.
    """
    if name in METRICS:
        return METRICS[name]
    close = difflib.get_close_matches(name, METRICS, n=3) or [found.name for found in _PLAIN]
    raise InputError(f"there is no metric {name!r}", hint=f"Try {', '.join(close)}; canonize evaluate --list")
