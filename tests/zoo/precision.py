"""Models that arrive in half precision or bfloat16.

They are not canonized in float64 but as they are; the harness measures against the original's own rounding noise.
"""

from __future__ import annotations

from torch import nn

from tests.zoo.blocks import RepVGGBlock
from tests.zoo.case import Case, conv, image, norm, vector
from tests.zoo.concatenation import DenseNet

Sequential = nn.Sequential

# 1e-30 is zero in half precision, and a variance of 0.01 beside one of 100 leaves nothing of either: mild statistics.
MILD = {"tiny": False}

CASES: list[Case] = [
    Case(
        "low-precision-fold",
        lambda: Sequential(conv(3, 6, bias=False), norm(6), nn.ReLU(), conv(6, 4, 1), norm(4), nn.ReLU()),
        image(3),
        hardening=MILD,
    ),
    Case(
        "low-precision-absorb",
        lambda: Sequential(norm(6), nn.ReLU(), conv(6, 6, padding=1), norm(6), nn.ReLU(), conv(6, 2)),
        image(6),
        hardening=MILD,
    ),
    Case(
        "low-precision-linear",
        lambda: Sequential(nn.Linear(5, 6), norm(6, 1), nn.ReLU(), nn.Linear(6, 2)),
        vector(5),
        hardening=MILD,
    ),
    Case("low-precision-densenet", DenseNet, image(3, 6, 8), hardening=MILD),
    Case("low-precision-repvgg", lambda: RepVGGBlock(6, 6), image(6), hardening=MILD),
]
