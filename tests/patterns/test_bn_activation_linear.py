"""BN -> ReLU -> Linear: the kink moves to a threshold, the layers behind take the affine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import canonize
from canonize.nn import ChannelPad, ThreshLeakyReLU, ThreshReLU
from tests.patterns import symbols
from tests.patterns.rows import (
    ALIVE,
    MIXED,
    POSITIVE,
    Alone,
    Folds,
    Refuses,
    assert_alone,
    assert_folds,
    assert_refuses,
    rows,
)
from tests.patterns.symbols import around, down, is_zero, leaky, relu, t, up
from tests.zoo.case import SIZES, conv, image, norm, vector, wired

PATTERN = "bn_activation_linear"
Sequential = nn.Sequential


def _uneven_prelu(channels: int) -> nn.Module:
    layer = nn.PReLU(channels)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.4, 1.3, channels))
    return layer


def _thresholds(lower: bool = True, upper: bool = True) -> nn.Module:
    bounds = torch.linspace(-1.0, 1.0, 6).reshape(1, 6, 1, 1)
    return ThreshReLU(bounds if lower else None, bounds + 0.5 if upper else None)


ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], type]] = {
    "relu": (nn.ReLU, ThreshReLU),
    "relu-in-place": (lambda: nn.ReLU(inplace=True), ThreshReLU),
    "relu6": (nn.ReLU6, ThreshReLU),
    "hardtanh": (lambda: nn.Hardtanh(-0.3, 1.7), ThreshReLU),
    "leaky-relu": (lambda: nn.LeakyReLU(0.2), ThreshLeakyReLU),
    "leaky-relu-steep": (lambda: nn.LeakyReLU(1.5), ThreshLeakyReLU),
    "leaky-relu-falling": (lambda: nn.LeakyReLU(-0.5), ThreshLeakyReLU),
    "prelu": (lambda: nn.PReLU(init=0.1), ThreshLeakyReLU),
    "prelu-per-channel": (lambda: _uneven_prelu(6), ThreshLeakyReLU),
    "a-threshold-from-below": (lambda: _thresholds(upper=False), ThreshReLU),
    "a-threshold-from-above": (lambda: _thresholds(lower=False), ThreshReLU),
    "two-thresholds": (_thresholds, ThreshReLU),
}
STATISTICS = {"hard": {}, "positive": ALIVE, "positive-or-dead": POSITIVE, "mixed": MIXED}


def _activation(name: str, kind: str) -> Folds:
    make, wanted = ACTIVATIONS[name]
    return Folds(
        name=f"{name}-{kind}",
        build=lambda: Sequential(norm(6), make(), conv(6, 4)),
        inputs=image(6),
        hardening=STATISTICS[kind],
        into={"0": ("2",)},
        layers={"1": wanted},
    )


def _way(name: str, forward: Any, **options: Any) -> Folds:
    rest = {key: options.pop(key) for key in ("inputs", "layers", "hardening", "into") if key in options}
    modules = {"bn": lambda: norm(4), "conv": lambda: conv(4, 5, 2)} | options
    return Folds(
        name=name,
        build=lambda: wired(forward, **{key: make() for key, make in modules.items()}),
        **({"inputs": image(4), "into": {"bn": ("conv",)}} | rest),
    )


FOLDS = rows(
    [_activation(name, kind) for name in ACTIVATIONS for kind in STATISTICS],
    [
        Folds(
            name=f"padded-{dims}d",
            build=lambda dims=dims: Sequential(norm(6, dims), nn.ReLU(), conv(6, 4, 3, dims, padding=1)),
            inputs=image(6, *SIZES[dims]),
            into={"0": ("2",)},
            layers={"1": ThreshReLU, "_2_pad": ChannelPad},
        )
        for dims in (1, 2, 3)
    ],
    Folds(
        name="dense",
        build=lambda: Sequential(norm(6, 1), nn.ReLU(), nn.Linear(6, 4)),
        inputs=vector(6),
        into={"0": ("2",)},
        layers={"1": ThreshReLU},
    ),
    _way("functional", lambda m, x: m.conv(F.relu(m.bn(x))), layers={"relu": ThreshReLU}),
    _way("a-method-in-place", lambda m, x: m.conv(m.bn(x).relu_()), layers={"relu": ThreshReLU}),
    _way("a-clamp", lambda m, x: m.conv(m.bn(x).clamp(-0.4, 0.9)), layers={"clamp": ThreshReLU}),
    _way(
        "two-activations",
        lambda m, x: m.conv(F.leaky_relu(m.bn(x).clamp(-0.4, 0.9), 0.3)),
        layers={"clamp": ThreshReLU, "leaky_relu": ThreshLeakyReLU},
    ),
    _way("pooled", lambda m, x: m.conv(F.avg_pool2d(m.bn(x).relu(), 2)), layers={"relu": ThreshReLU}),
    _way("max-pooled", lambda m, x: m.conv(F.max_pool2d(m.bn(x).relu(), 3, 1, 1)), hardening=POSITIVE),
    _way("pooled-in-front", lambda m, x: m.conv(F.avg_pool2d(m.bn(x), 2).relu()), layers={"relu": ThreshReLU}),
    _way(
        "flattened",
        lambda m, x: m.conv(m.bn(x).relu().flatten(1)),
        inputs=image(4, 3, 2),
        conv=lambda: nn.Linear(24, 5),
        layers={"relu": ThreshReLU},
    ),
    _way(
        "flattened-in-front",
        lambda m, x: m.conv(m.bn(x).flatten(1).relu()),
        inputs=image(4, 3, 2),
        conv=lambda: nn.Linear(24, 5),
        layers={"relu": ThreshReLU},
    ),
    _way("global-pooling", lambda m, x: m.conv(m.bn(x).relu().mean((2, 3))), conv=lambda: nn.Linear(4, 5)),
    _way("concatenated", lambda m, x: m.conv(torch.cat([m.bn(x).relu(), x], 1)), conv=lambda: conv(8, 5, 2)),
    _way(
        "concatenated-in-front",
        lambda m, x: m.conv(torch.cat([m.bn(x), x], 1).relu()),
        conv=lambda: conv(8, 5, 2),
        layers={"relu": ThreshReLU},
    ),
    _way(
        "a-dense-layer",
        # A DenseNet's layer: what it reads is read by the next one, too.
        lambda m, x: (lambda y: m.last(m.behind(torch.cat([y, m.conv(m.bn(y).relu())], 1)).relu()))(x.tanh()),
        conv=lambda: conv(4, 3, padding=1),
        behind=lambda: norm(7),
        last=lambda: conv(7, 2),
        into={"bn": ("conv",), "behind": ("last",)},
    ),
    _way(
        "two-readers",
        lambda m, x: (lambda y: m.conv(y) + m.other(y.flip(2)))(m.bn(x).relu()),
        other=lambda: conv(4, 5, 2),
        into={"bn": ("conv", "other")},
    ),
    _way(
        "read-before-and-behind-the-activation",
        lambda m, x: (lambda y: m.conv(y.relu()) + m.other(y))(m.bn(x)),
        other=lambda: conv(4, 5, 2),
        into={"bn": ("conv", "other")},
    ),
)


@pytest.mark.parametrize("row", FOLDS)
def test_folds(row: Folds) -> None:
    assert_folds(row, PATTERN)


def _constants(model: nn.Module) -> tuple[Tensor, Tensor]:
    bn = model[0]
    scale = (bn.weight / (bn.running_var + bn.eps).sqrt()).detach()
    return scale, (bn.bias - bn.running_mean * scale).detach()


def test_the_bounds_are_those_of_equation_7() -> None:
    row = _activation("relu", "mixed")
    model, canonical = row.model(), assert_folds(row, PATTERN)
    scale, shift = _constants(model)
    layer = canonical.get_submodule("1")
    lower, upper, z = layer.lower.flatten(), layer.upper.flatten(), -shift / scale
    rising = scale > 0
    assert rising.any()
    assert not rising.all()
    torch.testing.assert_close(lower[rising], z[rising], rtol=1e-13, atol=0.0)
    torch.testing.assert_close(upper[~rising], z[~rising], rtol=1e-13, atol=0.0)
    assert bool((upper[rising] == torch.inf).all())
    assert bool((lower[~rising] == -torch.inf).all())


def test_only_rising_channels_have_no_upper_bound() -> None:
    canonical = assert_folds(_activation("relu", "positive"), PATTERN)
    assert canonical.get_submodule("1").upper is None


def test_a_dead_channel_is_the_constant_that_it_was() -> None:
    row = _activation("relu", "hard")
    model, canonical = row.model(), assert_folds(row, PATTERN)
    dead, layer = (model[0].weight == 0).detach(), canonical.get_submodule("1")
    assert dead.any()
    wanted = model[0].bias.detach().relu()[dead]
    torch.testing.assert_close(layer.lower.flatten()[dead], wanted, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(layer.upper.flatten()[dead], wanted, rtol=1e-14, atol=0.0)
    # Scale 1: the weights behind a dead channel are not multiplied by zero.
    assert torch.equal(canonical.get_submodule("2").weight[:, dead], model[2].weight[:, dead])


def test_without_shift_and_negative_scale_the_kink_stays_at_zero() -> None:
    """A plain ReLU is cheaper than a threshold, and every explainer knows it."""
    for layer, wanted in ((nn.ReLU(), nn.ReLU), (nn.LeakyReLU(0.3), nn.LeakyReLU)):
        row = Folds(
            name=f"scale-{wanted.__name__}",
            build=lambda layer=layer: wired(
                lambda m, x: m.conv(m.act(x * m.gamma)),
                gamma=nn.Parameter(torch.tensor([0.5, 1.5, 2.0, 0.1]).reshape(4, 1, 1)),
                act=layer,
                conv=conv(4, 3),
            ),
            inputs=image(4),
            into={"gamma": ("conv",)},
            layers={"act": wanted},
        )
        assert_folds(row, PATTERN)


def test_a_negative_scale_alone_moves_the_kink() -> None:
    row = Folds(
        name="negative-scale",
        build=lambda: wired(
            lambda m, x: m.conv(m.act(x * m.gamma)),
            gamma=nn.Parameter(torch.tensor([0.5, -1.5, 2.0, -0.1]).reshape(4, 1, 1)),
            act=nn.LeakyReLU(0.3),
            conv=conv(4, 3),
        ),
        inputs=image(4),
        into={"gamma": ("conv",)},
        layers={"act": ThreshLeakyReLU},
    )
    assert_folds(row, PATTERN)


# -------------------------------------------------------------------------------------------------- refusals


def _refuses(name: str, because: str, forward: Any, **options: Any) -> Refuses:
    rest = {key: options.pop(key) for key in ("inputs", "hardening", "goes", "into") if key in options}
    modules = {"bn": lambda: norm(4), "conv": lambda: conv(4, 5, 2)} | options
    return Refuses(
        name=name,
        build=lambda: wired(forward, **{key: make() for key, make in modules.items()}),
        affine="bn",
        because=because,
        **({"inputs": image(4), "goes": "last_resort", "into": ("bn",)} | rest),
    )


SMOOTH: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid, "hardswish": nn.Hardswish,
    "softplus": nn.Softplus, "jump": lambda: nn.Threshold(0.2, -1.0),
}  # fmt: skip

REFUSES = rows(
    [
        _refuses(
            f"behind-{name}",
            rf"no affine passes act \({type(make()).__name__}\)",
            lambda m, x: m.conv(m.act(m.bn(x))),
            act=make,
        )
        for name, make in SMOOTH.items()
    ],
    _refuses(
        "no-activation",
        "no activation lies behind it",
        lambda m, x: m.conv(m.bn(x)),
        goes="bn_linear",
        into=("conv",),
    ),
    _refuses("returned", "the model returns it as it is", lambda m, x: m.bn(x).relu()),
    _refuses(
        "a-residual-connection",
        "only one side of the sum add carries its scale",
        lambda m, x: m.conv(m.bn(x).relu() + x),
    ),
    _refuses(
        "a-residual-connection-around-it",
        "only one side of the sum add carries its scale",
        lambda m, x: (lambda y: m.conv(F.pad(y, (1, 0, 1, 0))) + y)(m.bn(x.tanh()).relu()),
        conv=lambda: conv(4, 4, 2),
        into=("bn",),
    ),
    _refuses(
        "a-negative-scale-and-a-maximum",
        "a negative scale does not pass max_pool2d, which takes maxima",
        lambda m, x: m.conv(F.max_pool2d(m.bn(x).relu(), 2)),
    ),
    _refuses(
        "a-transposed-convolution-with-a-stride",
        "conv is a transposed convolution with a stride: "
        "what a shift adds to its output differs from position to position",
        lambda m, x: m.conv(m.bn(x).relu()),
        conv=lambda: conv(4, 5, transposed=True, stride=2),
    ),
    _refuses(
        "a-leaky-threshold-that-has-moved-already",
        "act has moved already",
        lambda m, x: m.conv(m.act(m.bn(x))),
        act=lambda: ThreshLeakyReLU(*(torch.full((1, 4, 1, 1), value) for value in (0.5, 0.1, 1.0))),
    ),
    _refuses(
        "a-gate",
        "a shift does not pass the product mul",
        lambda m, x: m.conv(m.bn(x).relu() * x.mean((2, 3), keepdim=True).sigmoid()),
    ),
    _refuses(
        "taken-in-front-instead",
        "the model returns it as it is",
        lambda m, x: m.bn(m.conv(x)).relu(),
        bn=lambda: norm(5),
        goes="linear_bn",
        into=("conv",),
    ),
)


@pytest.mark.parametrize("row", REFUSES)
def test_refuses_because(row: Refuses) -> None:
    assert_refuses(row, PATTERN)


def test_refuses_a_threshold_that_the_models_dtype_cannot_hold() -> None:
    """Neither dead nor harmless: -t/s is -1e5, float16 ends at 65504, and s x still counts for large x."""
    model = Sequential(norm(2, eps=0.0), nn.ReLU(), conv(2, 3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1e-5, 0.7]))
        model[0].bias.copy_(torch.tensor([1.0, -0.3]))
    model = model.half()
    canonical = canonize.canonize(model, torch.randn(2, 2, 5, 7).half(), verify=False)
    (fate,) = canonical.report.affines
    assert (fate.outcome, fate.into) == ("last resort", ("0",))
    assert (
        "bn_activation_linear: its scale is so small that the threshold -t/s overflows torch.float16 at 1"
        in fate.reason
    )
    images = torch.randn(3, 2, 6, 5).half()
    torch.testing.assert_close(canonical(images), model(images), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_tiny_scale_is_a_dead_channel_in_low_precision(dtype: torch.dtype) -> None:
    """-t/s overflows, and s x drowns in t: the channel is the constant relu(t)."""
    model = Sequential(norm(2), nn.ReLU(), conv(2, 3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1e-39, 0.7]))
        model[0].bias.copy_(torch.tensor([1.0, -0.3]))
    model = model.to(dtype)
    canonical = canonize.canonize(model, torch.randn(2, 2, 5, 7).to(dtype), verify=False)
    assert [fate.outcome for fate in canonical.report.affines] == ["absorbed"]
    layer = canonical.get_submodule("1")
    assert float(layer.lower[0, 0]) == float(layer.upper[0, 0]) == 1.0
    images = torch.randn(3, 2, 6, 5).to(dtype)
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(canonical(images), model(images), rtol=tolerance, atol=tolerance)


ALONE = rows(
    Alone(
        name="no-affine",
        build=lambda: Sequential(nn.ReLU(), conv(4, 3, padding=1), nn.LeakyReLU()),
        inputs=image(4),
        untouched=("0", "1", "2"),
    ),
    Alone(
        name="batch-statistics",
        build=lambda: Sequential(norm(4, track_running_stats=False), nn.ReLU(), conv(4, 3)),
        inputs=image(4),
        untouched=("0", "1", "2"),
        batch_norms=1,
    ),
    Alone(
        name="the-layer-before-takes-it",
        build=lambda: Sequential(conv(4, 4), norm(4), nn.ReLU(), conv(4, 3)),
        inputs=image(4),
        untouched=("2", "3"),
    ),
    Alone(
        name="the-other-strategy-where-a-producer-takes-it",
        build=lambda: Sequential(conv(4, 4), norm(4), nn.ReLU(), conv(4, 3)),
        inputs=image(4),
        strategy="untangle",
        untouched=("2", "3"),
    ),
    Alone(
        name="skipped",
        build=lambda: Sequential(norm(4), nn.ReLU(), conv(4, 3)),
        inputs=image(4),
        skip=(PATTERN,),
        untouched=("1", "2"),
    ),
)


@pytest.mark.parametrize("row", ALONE)
def test_leaves_alone(row: Alone) -> None:
    assert_alone(row, PATTERN)


# ---------------------------------------------------------------------------------------------- the identity


def test_symbolic_relu_with_a_positive_scale() -> None:
    z = -t / up
    for x in around(z):
        assert is_zero(relu(up * x + t) - (up * (z + relu(x - z)) + t))
    # max(x, z) is z + max(x - z, 0).
    assert is_zero(symbols.d + z - (z + relu(symbols.d)))


def test_symbolic_relu_with_a_negative_scale() -> None:
    """min(x, z): the printed Eq. 8 has the sign of z the other way round."""
    z = -t / down
    for x in around(z):
        minimum = z - relu(z - x)
        assert is_zero(relu(down * x + t) - (down * minimum + t))
    x, slip = z + symbols.d, t / down
    assert not is_zero(relu(down * x + t) - (down * slip + t))


@pytest.mark.parametrize("scale", [up, down])
def test_symbolic_two_bounds(scale: Any) -> None:
    """clamp(s x + t, low, high) = s clamp(x, ...) + t, the bounds exchanged where s is negative."""
    low, width = sympy.Symbol("low", real=True), sympy.Symbol("width", positive=True)
    high, d = low + width, symbols.d
    at_low, at_high = (low - t) / scale, (high - t) / scale
    side = 1 if scale is up else -1
    for x, bound in ((at_low - side * d, low), (at_high + side * d, high), (at_low, low), (at_high, high)):
        beyond = sympy.simplify(scale * x + t - bound)
        assert beyond == 0 or (beyond.is_negative if bound is low else beyond.is_positive)
        clamped = at_low if bound is low else at_high
        assert is_zero(scale * clamped + t - bound)


@pytest.mark.parametrize("scale", [up, down])
def test_symbolic_leaky_relu(scale: Any) -> None:
    """Two slopes around z; a negative scale exchanges them."""
    slope = sympy.Symbol("slope", real=True)
    z = -t / scale
    right, left = (1, slope) if scale is up else (slope, 1)
    for x in around(z):
        moved = z + (right * (x - z) if x == z + symbols.d else left * (x - z))
        assert is_zero(leaky(scale * x + t, slope) - (scale * moved + t))


def test_symbolic_a_dead_channel() -> None:
    """Equal bounds: clamp(x, c, c) is c for every x, which is max(0 x + t, 0); no affine is left behind."""
    constant = sympy.Max(0 * symbols.x + t, 0)
    assert symbols.x not in constant.free_symbols
    for x in around(constant):
        assert is_zero(sympy.Min(sympy.Max(x, constant), constant) - constant)


def test_symbolic_a_threshold_that_is_there_already() -> None:
    """max(s x + t, low) moves once more."""
    low = sympy.Symbol("low", real=True)
    for scale in (up, down):
        z = (low - t) / scale
        for x in around(z):
            beyond = sympy.simplify(scale * x + t - low)
            want = scale * (x if beyond.is_positive else z) + t
            assert is_zero(low + relu(beyond) - want)
