"""Metrics of explanations: from heatmaps to one number a sample, on any device, in any floating dtype.

Each is a function of tensors with a docstring that holds its equation; `catalogue` gives them names, directions and
what they need, for `canonize evaluate` and `canonize search`.
"""

from __future__ import annotations

from canonize.evaluate.metrics.catalogue import METRICS, Metric, MetricCase, Settings, metric
from canonize.evaluate.metrics.complexity import entropy, sparseness
from canonize.evaluate.metrics.faithfulness import faithfulness_correlation
from canonize.evaluate.metrics.fill import blurred, make_fill
from canonize.evaluate.metrics.localisation import (
    inside_total_ratio,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    weighted_inside_total_ratio,
)
from canonize.evaluate.metrics.perturbation import (
    area_under_curve,
    growing,
    perturbation_curve,
    pixel_flipping,
    region_perturbation,
)
from canonize.evaluate.metrics.pooling import normalised, pooled
from canonize.evaluate.metrics.randomisation import other_targets, random_logit, structural_similarity
from canonize.evaluate.metrics.robustness import Sensitivity, sensitivity

__all__ = [
    "METRICS",
    "Metric",
    "MetricCase",
    "Sensitivity",
    "Settings",
    "area_under_curve",
    "blurred",
    "entropy",
    "faithfulness_correlation",
    "growing",
    "inside_total_ratio",
    "make_fill",
    "metric",
    "normalised",
    "other_targets",
    "perturbation_curve",
    "pixel_flipping",
    "pooled",
    "random_logit",
    "region_perturbation",
    "relevance_mass_accuracy",
    "relevance_rank_accuracy",
    "sensitivity",
    "sparseness",
    "structural_similarity",
    "weighted_inside_total_ratio",
]
