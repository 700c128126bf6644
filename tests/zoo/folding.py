"""Linear layers followed by a batch norm: convolutions of every kind, fully connected layers, and their traps."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F

from tests.zoo.case import SIZES, Case, conv, image, norm, vector, wired

Sequential = nn.Sequential


def _folding(name: str, dims: int, inputs: int, outputs: int, kernel: Any = 3, **options: Any) -> Case:
    return Case(
        name=f"fold-{name}-{dims}d",
        build=lambda: Sequential(conv(inputs, outputs, kernel, dims, **options), norm(outputs, dims), nn.ReLU()),
        inputs=image(inputs, *SIZES[dims]),
        themes=("fold", f"{dims}d"),
    )


def _options() -> list[tuple[str, int, int, Any, dict[str, Any]]]:
    transposed = {"transposed": True}
    return [
        ("conv", 3, 6, 3, {}),
        ("conv-no-bias", 3, 6, 3, {"bias": False}),
        ("conv-grouped", 4, 6, 3, {"groups": 2, "padding": 1}),
        ("conv-depthwise", 4, 8, 3, {"groups": 4, "bias": False}),
        ("conv-strided-dilated", 3, 6, 2, {"stride": 2, "dilation": 2, "padding": 1}),
        ("transposed", 3, 6, 3, transposed),
        ("transposed-no-bias", 3, 6, 2, {**transposed, "bias": False}),
        ("transposed-grouped", 4, 6, 3, {**transposed, "groups": 2, "stride": 2, "output_padding": 1}),
        ("transposed-depthwise", 4, 8, 3, {**transposed, "groups": 4, "padding": 1, "bias": False}),
        ("transposed-dilated", 4, 6, 2, {**transposed, "dilation": 2, "groups": 2}),
    ]


CASES: list[Case] = [
    _folding(name, dims, inputs, outputs, kernel, **options)
    for dims in (1, 2, 3)
    for name, inputs, outputs, kernel, options in _options()
]

for mode in ("reflect", "replicate", "circular"):
    CASES.append(_folding(f"conv-{mode}", 2, 3, 6, (3, 4), padding=(1, 2), padding_mode=mode))


def _relu_of(name: str, module: Any) -> Any:
    return lambda m, x: F.relu(getattr(m, name)(x)) + module(m, x)


CASES += [
    Case(
        "fold-linear",
        lambda: Sequential(nn.Linear(4, 6), norm(6, 1), nn.ReLU(), nn.Linear(6, 3, bias=False), norm(3, 1)),
        vector(4),
        themes=("fold", "linear"),
    ),
    Case(
        "fold-linear-no-bias",
        lambda: Sequential(nn.Linear(4, 6, bias=False), norm(6, 1), nn.Tanh()),
        vector(4),
        themes=("fold", "linear"),
    ),
    Case(
        # The batch norm's channels are dim 1 (length 6 here too), the linear layer's features are the last dim.
        "linear-on-ncl-does-not-share-the-axis",
        lambda: Sequential(nn.Linear(5, 6), norm(6, 1), nn.ReLU()),
        lambda batch: image(6, 5)(batch),
        themes=("linear", "axis"),
    ),
    Case(
        "linear-on-ncl-other-sizes",
        lambda: Sequential(nn.Linear(5, 7), norm(4, 1), nn.ReLU(), nn.Linear(7, 2)),
        image(4, 5),
        themes=("linear", "axis"),
    ),
    Case(
        "linear-transposed-onto-the-axis",
        lambda: wired(
            lambda m, x: m.bn(m.fc(x).transpose(1, 2)).relu(),
            fc=nn.Linear(4, 6),
            bn=norm(6, 1),
        ),
        image(5, 4),
        themes=("linear", "axis", "movement"),
    ),
    Case(
        "fold-1x1-conv",
        lambda: Sequential(conv(3, 6, 1), norm(6), nn.ReLU(), conv(6, 2, 1), norm(2)),
        image(3),
        themes=("fold",),
    ),
    Case(
        "fold-two-norms-in-a-row",
        lambda: Sequential(conv(3, 6), norm(6), norm(6, eps=0.5), nn.ReLU()),
        image(3),
        themes=("fold", "chain"),
    ),
    Case(
        "fold-affine-false",
        lambda: Sequential(conv(3, 6), norm(6, affine=False), nn.ReLU(), norm(6, affine=False), conv(6, 2, padding=1)),
        image(3),
        themes=("fold", "affine"),
    ),
    Case(
        "fold-huge-eps",
        lambda: Sequential(conv(3, 6), norm(6, eps=10.0), nn.ReLU()),
        image(3),
        themes=("fold", "eps"),
    ),
    Case(
        "fold-zero-eps",
        lambda: Sequential(conv(3, 4), norm(4, eps=0.0), nn.ReLU()),
        image(3),
        themes=("fold", "eps"),
    ),
    Case(
        "fold-functional-relu-between",
        lambda: wired(
            lambda m, x: m.bn(F.relu(m.conv(x))),
            conv=conv(3, 6),
            bn=norm(6),
        ),
        image(3),
        themes=("functional", "output"),
    ),
    Case(
        # Registered so that pairing by order folds bn2 into conv1.
        "registration-order-lies",
        lambda: wired(
            lambda m, x: m.bn1(m.conv2(F.relu(m.bn2(m.conv1(x))))),
            conv1=conv(3, 6, padding=1),
            bn1=norm(6),
            conv2=conv(6, 6, padding=1),
            bn2=norm(6, eps=0.1),
        ),
        image(3),
        themes=("fold", "order"),
    ),
    Case(
        # Called once between the two, but registered as neighbours.
        "registration-order-hides-a-relu",
        lambda: wired(
            lambda m, x: m.bn(m.act(m.conv(x))),
            conv=conv(3, 6),
            bn=norm(6),
            act=nn.ReLU(),
        ),
        image(3),
        themes=("order", "output"),
    ),
    Case(
        "fold-through-identity-and-dropout",
        lambda: Sequential(conv(3, 6), nn.Identity(), nn.Dropout2d(0.5), norm(6), nn.Dropout(0.1), nn.ReLU()),
        image(3),
        themes=("fold", "identity", "dropout"),
    ),
    Case(
        "fold-conv-of-batched-single-channel",
        lambda: Sequential(conv(1, 1), norm(1), nn.LeakyReLU()),
        image(1),
        themes=("fold",),
        hardening={"zero": False, "tiny": False},
    ),
    Case(
        "fold-backwards-through-average-pooling",
        lambda: Sequential(conv(3, 6), nn.AvgPool2d(2), norm(6), nn.ReLU(), conv(6, 2, 1)),
        image(3, 8, 9),
        themes=("fold", "movement"),
    ),
    Case(
        "fold-backwards-through-max-pooling",
        lambda: Sequential(conv(3, 6), nn.MaxPool2d(2), norm(6), nn.ReLU(), conv(6, 2, 1)),
        image(3, 8, 9),
        themes=("fold", "movement", "max pooling"),
    ),
    Case(
        "fold-backwards-through-max-pooling-positive",
        lambda: Sequential(conv(3, 6), nn.MaxPool2d(2), norm(6), nn.ReLU(), conv(6, 2, 1)),
        image(3, 8, 9),
        themes=("fold", "movement", "max pooling"),
        hardening={"positive": True, "zero": False},
    ),
    Case(
        # Padding after the convolution: its zeros are seen by the norm, so the fold must turn them into another value.
        "fold-backwards-through-zero-padding",
        lambda: Sequential(conv(3, 6), nn.ZeroPad2d((1, 2, 0, 1)), norm(6), nn.ReLU()),
        image(3),
        themes=("fold", "movement", "padding"),
    ),
    Case(
        "fold-backwards-through-flatten",
        lambda: Sequential(conv(3, 4, 4), nn.Flatten(), norm(32, 1), nn.ReLU(), nn.Linear(32, 3)),
        image(3),
        themes=("fold", "movement"),
    ),
    Case(
        "fold-backwards-through-squeeze",
        lambda: wired(
            lambda m, x: m.fc(F.relu(m.bn(m.conv(x).squeeze(3)))),
            conv=conv(3, 6, (3, 7)),
            bn=norm(6, 1),
            fc=nn.Linear(3, 2),
        ),
        image(3),
        themes=("fold", "movement"),
    ),
    Case(
        "fold-unflatten",
        lambda: Sequential(
            nn.Linear(4, 24), nn.Unflatten(1, (4, 2, 3)), norm(4), nn.ReLU(), conv(4, 2, 2, transposed=True), norm(2)
        ),
        vector(4),
        themes=("fold", "movement"),
    ),
    Case(
        "fold-pixel-shuffle",
        lambda: Sequential(conv(3, 16), nn.PixelShuffle(2), norm(4), nn.ReLU(), conv(4, 2)),
        image(3),
        themes=("fold", "movement"),
    ),
]
