"""The catalogue: one file a pattern, one ordered list.

The order is the order in which patterns are tried around each affine: backward first, because it adds nothing; forward
next; with a threshold after that; two linear layers that meet become one; an explicit layer last (`Stage`).
"""

from __future__ import annotations

from typing import Any

from canonize.patterns.bn_activation_linear import BatchNormThenActivationThenLinear
from canonize.patterns.bn_linear import BatchNormThenLinear
from canonize.patterns.concat_bn import BatchNormOverConcat
from canonize.patterns.concat_linear import BranchThenConcatThenLinear
from canonize.patterns.last_resort import ExplicitLinearLayer
from canonize.patterns.linear_bn import LinearThenBatchNorm
from canonize.patterns.parallel_linear import ParallelLinear
from canonize.patterns.pattern import Pattern, Stage
from canonize.patterns.split_concat import SplitOverConcat
from canonize.patterns.stacked_linear import StackedLinear
from canonize.patterns.untangle import Untangle

PATTERNS: tuple[Pattern[Any], ...] = (
    LinearThenBatchNorm(),
    BatchNormOverConcat(),
    BatchNormThenLinear(),
    BranchThenConcatThenLinear(),
    Untangle(),
    BatchNormThenActivationThenLinear(),
    SplitOverConcat(),
    ParallelLinear(),
    StackedLinear(),
    ExplicitLinearLayer(),
)


def catalogue() -> tuple[Pattern[Any], ...]:
    """Every pattern, in the order in which they are tried."""
    return PATTERNS


def chosen(strategy: str, skip: tuple[str, ...] = ()) -> tuple[Pattern[Any], ...]:
    """The patterns of a strategy, without those to skip."""
    return tuple(p for p in PATTERNS if p.name not in skip and p.strategy in ("always", strategy))


__all__ = ["PATTERNS", "Pattern", "Stage", "catalogue", "chosen"]
