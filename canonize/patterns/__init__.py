"""The catalogue: one file a pattern, one ordered list.

The order is the order in which patterns are tried around each affine: backward first, because it adds nothing; forward
next; with a threshold after that; an explicit layer last.
"""

from __future__ import annotations

from canonize.patterns.bn_activation_linear import BatchNormThenActivationThenLinear
from canonize.patterns.bn_linear import BatchNormThenLinear
from canonize.patterns.concat_bn import BatchNormOverConcat
from canonize.patterns.concat_linear import BranchThenConcatThenLinear
from canonize.patterns.last_resort import ExplicitLinearLayer
from canonize.patterns.linear_bn import LinearThenBatchNorm
from canonize.patterns.merge import MergePattern
from canonize.patterns.parallel_linear import ParallelLinear
from canonize.patterns.pattern import Pattern
from canonize.patterns.split_concat import SplitOverConcat
from canonize.patterns.stacked_linear import StackedLinear
from canonize.patterns.untangle import Untangle

PATTERNS: tuple[Pattern, ...] = (
    LinearThenBatchNorm(),
    BatchNormOverConcat(),
    BatchNormThenLinear(),
    BranchThenConcatThenLinear(),
    Untangle(),
    BatchNormThenActivationThenLinear(),
    SplitOverConcat(),
    ExplicitLinearLayer(),
)
# Tried between the affine's patterns: each makes one linear layer of two.
MERGES: tuple[MergePattern, ...] = (ParallelLinear(), StackedLinear())


def catalogue() -> tuple[Pattern | MergePattern, ...]:
    """Every pattern, in the order in which they are tried."""
    return (*PATTERNS[:-1], *MERGES, PATTERNS[-1])


def chosen_merges(skip: tuple[str, ...] = ()) -> tuple[MergePattern, ...]:
    """The patterns that make one linear layer of two, without those to skip."""
    return tuple(p for p in MERGES if p.name not in skip)


def chosen(strategy: str, skip: tuple[str, ...] = ()) -> tuple[Pattern, ...]:
    """The patterns of a strategy, without those to skip."""
    return tuple(p for p in PATTERNS if p.name not in skip and p.strategy in ("always", strategy))


__all__ = ["MERGES", "PATTERNS", "MergePattern", "Pattern", "catalogue", "chosen", "chosen_merges"]
