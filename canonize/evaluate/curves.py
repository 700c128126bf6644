"""Pixel flipping as curves and pictures: the score as more and more pixels go, and what is left to see."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from canonize.errors import CanonizeError
from canonize.evaluate.experiment import Experiment, MethodSpec
from canonize.evaluate.libraries import require
from canonize.evaluate.metrics.catalogue import seed_of
from canonize.evaluate.metrics.perturbation import growing, perturbation_curve
from canonize.evaluate.plots import HUES, figure
from canonize.evaluate.subject import Subject, chosen_indices, data_set, model_in

if TYPE_CHECKING:
    import pandas as pd

SAMPLES = 16
SHOWN = 5


@dataclass(frozen=True)
class Curves:
    """Pixel flipping of some samples, most relevant first, grey in place of what is gone.

    Attributes
    ----------
    frame : DataFrame
        One row a step: method, canonization, share (of the pixels that are gone), score (mean over samples), error (its
        standard error).
    pictures : dict of str to Tensor
        For each method and canonization the first sample with more and more gone, (SHOWN, C, H, W), pixels from 0 to 1.
    """

    frame: pd.DataFrame
    pictures: dict[str, Tensor]


def measure_curves(experiment: Experiment, data: str, model_name: str) -> Curves | None:
    """Curves of every method and canonization on the first samples; None where none can be explained."""
    source = next(model for model in experiment.models if model.name == model_name)
    seed, settings = experiment.seeds[0], experiment.settings
    found = data_set(data, seed, experiment.samples, experiment.size)
    indices = chosen_indices(found, data, seed, experiment.samples)[:SAMPLES]
    samples, seeds = found.take(indices), tuple(seed_of(data, seed, index) for index in indices)
    rows: list[dict[str, Any]] = []
    pictures: dict[str, Tensor] = {}
    for method, form in itertools.product(experiment.methods, experiment.canonizations):
        try:
            model = model_in(source, form, experiment.device, data, experiment.size)
            subject = Subject(model, MethodSpec.parse(method), found.low, found.high, settings=settings)
            case = subject.case(samples, experiment.target, seeds)
        except CanonizeError:
            continue  # the report lists it among what could not be measured
        patch, (height, width) = settings.flipping_patch, case.relevance.shape[1:]
        squares = math.ceil(height / patch) * math.ceil(width / patch)
        sizes = growing(squares, settings.flipping_steps, settings.growth)
        seen: list[Tensor] = []

        def watched(images: Tensor, case: Any = case, seen: list[Tensor] = seen) -> Tensor:
            seen.append(images[0].float().cpu())
            score: Tensor = case.score(images)
            return score

        curve = perturbation_curve(
            watched, case.samples.images, case.relevance, case.fill("constant"), patch=patch, regions_per_step=sizes
        )
        shares = [0.0, *(gone / squares for gone in itertools.accumulate(sizes))]
        errors = curve.std(0) / len(curve) ** 0.5 if len(curve) > 1 else torch.zeros_like(curve[0])
        rows += [
            {"method": method, "canonization": form, "share": share, "score": float(mean), "error": float(error)}
            for share, mean, error in zip(shares, curve.mean(0), errors, strict=True)
        ]
        chosen = torch.linspace(0, len(seen) - 1, SHOWN).round().long().tolist()
        shown = torch.stack([seen[step] for step in chosen])
        pictures[f"{method}, {form}"] = ((shown - found.low) / (found.high - found.low)).clamp(0, 1)
    return Curves(require("pandas").DataFrame(rows), pictures) if rows else None


def draw_curves(curves: Curves) -> Any:
    """A panel of curves for each method, a line for each canonization, and the first sample as it vanishes."""
    methods = list(dict.fromkeys(curves.frame["method"]))
    drawn = figure(figsize=(3.2 * max(len(methods), 2), 2.6 + 0.8 * len(curves.pictures)))
    above, below = drawn.subfigures(2, 1, height_ratios=(2.6, 0.8 * len(curves.pictures)))
    axes = above.subplots(1, len(methods), squeeze=False, sharey=True)[0]
    for axis, method in zip(axes, methods, strict=True):
        part = curves.frame[curves.frame["method"] == method]
        for hue, (form, line) in zip(itertools.cycle(HUES), part.groupby("canonization", sort=False), strict=False):
            axis.errorbar(line["share"], line["score"], yerr=line["error"], color=hue, label=form, capsize=2, ms=3)
        axis.set_title(method, fontsize=8)
        axis.set_xlabel("share of the pixels that are gone", fontsize=7)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel("score of the target", fontsize=8)
    axes[-1].legend(fontsize=7)
    grid = below.subplots(len(curves.pictures), SHOWN, squeeze=False)
    for row, (label, shown) in zip(grid, curves.pictures.items(), strict=True):
        for axis, picture in zip(row, shown, strict=True):
            axis.imshow(picture.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, fontsize=6, rotation=0, ha="right", va="center")
    return drawn
