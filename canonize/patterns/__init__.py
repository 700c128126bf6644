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
from canonize.patterns.pattern import Pattern
from canonize.patterns.split_concat import SplitOverConcat
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


def catalogue() -> tuple[Pattern, ...]:
    """Every pattern, in the order in which they are tried."""
    return PATTERNS


def chosen(strategy: str, skip: tuple[str, ...] = ()) -> tuple[Pattern, ...]:
    """The patterns of a strategy, without those to skip."""
    return tuple(p for p in PATTERNS if p.name not in skip and p.strategy in ("always", strategy))


__all__ = ["PATTERNS", "Pattern", "catalogue", "chosen"]
