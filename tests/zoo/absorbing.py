"""Batch norms in front of a linear layer, with and without an activation between, under every kind of padding."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F

from tests.zoo.case import SIZES, Case, conv, image, norm, vector, wired

Sequential = nn.Sequential

PADDINGS: dict[str, dict[str, Any]] = {
    "unpadded": {},
    "zero": {"padding": 1},
    "zero-uneven": {"kernel": (3, 5), "padding": (0, 2)},
    "zero-wider-than-kernel": {"kernel": 2, "padding": 3},
    "same": {"padding": "same"},
    "same-even-kernel": {"kernel": (2, 4), "padding": "same"},
    "same-dilated": {"padding": "same", "dilation": 2},
    "valid": {"padding": "valid"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": 2, "padding_mode": "replicate"},
    "circular": {"padding": (1, 2), "padding_mode": "circular"},
    "same-reflect": {"kernel": (2, 3), "padding": "same", "padding_mode": "reflect"},
    "strided": {"padding": 1, "stride": 2},
    "dilated": {"padding": 2, "dilation": 2},
    "even-kernel": {"kernel": 4, "padding": 2, "stride": (1, 2)},
    "grouped": {"padding": 1, "groups": 2},
    "depthwise": {"padding": 1, "groups": 6},
    "depthwise-no-bias": {"padding": 1, "groups": 6, "bias": False},
    "no-bias": {"padding": 1, "bias": False},
    "1x1": {"kernel": 1},
    "1x1-padded": {"kernel": 1, "padding": 1},
    "transposed": {"transposed": True},
    "transposed-padded": {"transposed": True, "padding": 1, "stride": 2, "output_padding": 1},
    "transposed-grouped": {"transposed": True, "groups": 2, "stride": 2, "bias": False},
}


def _second_conv(options: dict[str, Any], dims: int = 2) -> nn.Module:
    options = dict(options)
    return conv(6, 6, options.pop("kernel", 3), dims, **options)


def _absorbing(name: str, options: dict[str, Any], activation: bool, dims: int = 2) -> Case:
    between: tuple[type[nn.Module], ...] = (nn.ReLU,) if activation else ()
    middle = "-relu" if activation else ""
    return Case(
        f"absorb-bn{middle}-conv-{name}-{dims}d",
        lambda: Sequential(norm(6, dims), *(kind() for kind in between), _second_conv(options, dims)),
        image(6, *SIZES[dims]),
        themes=("absorb", "padding", f"{dims}d"),
    )


CASES: list[Case] = [
    _absorbing(name, options, activation) for activation in (False, True) for name, options in PADDINGS.items()
]
CASES += [
    _absorbing(name, PADDINGS[name], activation, dims)
    for dims in (1, 3)
    for activation in (False, True)
    for name in ("zero", "grouped", "transposed", "strided")
]
for dims in (1, 3):
    CASES.append(_absorbing("circular", {"padding": 1, "padding_mode": "circular"}, True, dims))

CASES += [
    Case(
        "absorb-input-bn-linear",
        lambda: Sequential(norm(6, 1), nn.Linear(6, 4)),
        vector(6),
        themes=("absorb", "input", "linear"),
    ),
    Case(
        "absorb-bn-relu-linear",
        lambda: Sequential(norm(6, 1), nn.ReLU(), nn.Linear(6, 4, bias=False)),
        vector(6),
        themes=("absorb", "linear"),
    ),
    Case(
        "absorb-bn-linear-other-axis",
        lambda: Sequential(norm(6, 1), nn.Linear(5, 4)),
        image(6, 5),
        themes=("absorb", "linear", "axis"),
    ),
    Case(
        "absorb-bn-linear-other-axis-same-length",
        lambda: Sequential(norm(5, 1), nn.ReLU(), nn.Linear(5, 4)),
        image(5, 5),
        themes=("absorb", "linear", "axis"),
    ),
    Case(
        "bn-alone",
        lambda: norm(6),
        image(6),
        themes=("input", "output"),
    ),
    Case(
        "bn-alone-in-a-container",
        lambda: Sequential(norm(6)),
        image(6),
        themes=("input", "output"),
    ),
    Case(
        "bn-alone-on-vectors",
        lambda: Sequential(norm(6, 1)),
        vector(6),
        themes=("input", "output", "linear"),
    ),
    Case(
        "bn-alone-3d",
        lambda: Sequential(norm(6, 3), nn.Sigmoid()),
        image(6, *SIZES[3]),
        themes=("input", "output", "3d"),
    ),
    Case(
        "bn-at-the-output-behind-relu",
        lambda: Sequential(conv(3, 6), nn.ReLU(), norm(6)),
        image(3),
        themes=("output",),
    ),
    Case(
        "bn-between-two-relus",
        lambda: Sequential(conv(3, 6), nn.ReLU(), norm(6), nn.ReLU()),
        image(3),
        themes=("output", "chain"),
    ),
    Case(
        "bn-chain-three",
        lambda: Sequential(norm(6), norm(6, eps=0.2), nn.ReLU(), norm(6), norm(6, eps=0.5), conv(6, 4, padding=1)),
        image(6),
        themes=("chain", "absorb"),
        draw=1,
    ),
    Case(
        # Folds backwards into one and forwards into the other: either is exact, both at once is not.
        "bn-between-two-convs",
        lambda: Sequential(conv(3, 6, padding=1), norm(6), conv(6, 4, padding=1)),
        image(3),
        themes=("fold", "absorb", "stacked"),
    ),
    Case(
        "conv-relu-bn-conv",
        lambda: Sequential(conv(3, 6), nn.ReLU(), norm(6), conv(6, 6, padding=1), nn.ReLU(), norm(6), conv(6, 2)),
        image(3, 7, 9),
        themes=("absorb",),
    ),
    Case(
        "conv-relu-bn-conv-all-dead",
        lambda: Sequential(conv(3, 1), nn.ReLU(), norm(1), conv(1, 2, padding=1)),
        image(3),
        themes=("absorb", "dead"),
    ),
    Case(
        "bn-functional-relu-functional-conv",
        lambda: wired(
            lambda m, x: F.conv2d(F.relu(m.bn(x)), m.conv.weight, m.conv.bias, padding=1, stride=2),
            bn=norm(6),
            conv=conv(6, 4),
        ),
        image(6),
        themes=("absorb", "functional", "padding"),
    ),
    Case(
        "bn-functional-linear",
        lambda: wired(
            lambda m, x: F.linear(F.relu(m.bn(x)), m.fc.weight, bias=m.fc.bias),
            bn=norm(6, 1),
            fc=nn.Linear(6, 4),
        ),
        vector(6),
        themes=("absorb", "functional", "linear"),
    ),
]
for case_seed in range(3):
    CASES.append(
        # The same model under three draws of statistics: which channel is dead, tiny or negative moves.
        Case(
            f"preactivation-draw-{case_seed}",
            lambda: Sequential(norm(8), nn.ReLU(), conv(8, 8, padding=1), norm(8), nn.ReLU(), conv(8, 2, 1)),
            image(8),
            themes=("absorb", "dead"),
        )
    )
