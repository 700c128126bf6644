"""The last resort: an affine that nobody can take becomes an explicit linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor, nn

import canonize
from canonize.nn import ChannelLinear, Offset
from tests import checks
from tests.patterns.rows import Alone, Row, assert_alone, canonized, fate_of, rows
from tests.patterns.symbols import is_zero, numbers
from tests.zoo.case import SIZES, conv, image, norm, vector, wired

PATTERN = "last_resort"
Sequential = nn.Sequential


def _explicit(name: str, build: Callable[[], nn.Module], inputs: Any, layer: str, wanted: type, channels: int) -> Any:
    return pytest.param(Row(name=name, build=build, inputs=inputs), layer, wanted, channels, id=name)


def _scaled(*shape: int) -> Any:
    return lambda: wired(
        lambda m, x: (x.sigmoid() * m.gamma).sigmoid(), gamma=nn.Parameter(torch.linspace(-2.0, 3.0, 6).reshape(shape))
    )


FOLDS = [
    *(
        _explicit(
            f"at-the-input-{dims}d",
            lambda dims=dims: Sequential(norm(6, dims), nn.Sigmoid()),
            image(6, *SIZES[dims]),
            "0",
            getattr(nn, f"Conv{dims}d"),
            6,
        )
        for dims in (1, 2, 3)
    ),
    _explicit("at-the-output", lambda: Sequential(nn.Sigmoid(), norm(6)), image(6), "1", nn.Conv2d, 6),
    _explicit("features", lambda: Sequential(nn.Sigmoid(), norm(6, 1)), vector(6), "1", ChannelLinear, 6),
    _explicit(
        "a-maximum-behind",
        lambda: Sequential(norm(6), nn.MaxPool2d(2), conv(6, 4, 2)),
        image(6),
        "0",
        nn.Conv2d,
        6,
    ),
    _explicit("a-scale-of-channels", _scaled(6, 1, 1), image(6), "gamma.affine", nn.Conv2d, 6),
    _explicit(
        "a-scale-of-the-last-dimension",
        _scaled(6),
        lambda batch: torch.randn(batch, 4, 6),
        "gamma.affine",
        ChannelLinear,
        6,
    ),
    _explicit(
        "a-number",
        # The same everywhere: one weight a channel, so that the layer is of the usual kind.
        lambda: wired(lambda m, x: (x.sigmoid() * 3.0).sigmoid()),
        image(6),
        "mul.affine",
        nn.Conv2d,
        6,
    ),
    _explicit(
        "a-number-on-tokens",
        # Dimension 1 counts the tokens, as many as there are: the features get the weights.
        lambda: wired(lambda m, x: m.fc((x.sigmoid() * 3.0).sigmoid()), fc=nn.Linear(4, 2)),
        image(5, 4),
        "mul.affine",
        ChannelLinear,
        4,
    ),
    _explicit(
        "a-slice-of-a-concatenation",
        lambda: wired(
            lambda m, x: m.bn(torch.cat([m.conv(x), x], 1)).sigmoid(), conv=conv(3, 4, padding=1), bn=norm(7)
        ),
        image(3),
        "bn_branch",
        nn.Conv2d,
        3,
    ),
]


@pytest.mark.parametrize(("row", "layer", "wanted", "channels"), FOLDS)
def test_folds(row: Row, layer: str, wanted: type, channels: int) -> None:
    canonical = canonized(row, row.model())
    (fate,) = canonical.report.affines
    assert (fate.outcome, fate.pattern) == ("last resort", PATTERN)
    assert layer in fate.into
    explicit: Any = canonical.get_submodule(layer)
    assert type(explicit) is wanted
    assert explicit.groups == explicit.in_channels == explicit.out_channels == channels
    assert set(explicit.kernel_size) == {1}
    assert fate.reason, "the report says why nobody took it"
    assert canonical.report.canonical


def test_its_weights_are_the_affine() -> None:
    row = Row(name="weights", build=lambda: Sequential(norm(6), nn.Sigmoid()), inputs=image(6))
    model = row.model()
    layer, bn = canonized(row, model).get_submodule("0"), model[0]
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    torch.testing.assert_close(layer.weight.flatten(), scale, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(layer.bias, bn.bias - bn.running_mean * scale, rtol=1e-13, atol=1e-15)


def test_every_reason_is_reported() -> None:
    row = Row(name="reasons", build=lambda: Sequential(norm(6), nn.Sigmoid()), inputs=image(6))
    report = canonized(row, row.model()).report
    (fate,) = report.affines
    # Patterns that stumble over the same share its reason.
    assert fate.reason.split("; ") == [
        "linear_bn, concat_bn, split_concat: it acts on the input input of the model",
        "bn_linear, concat_linear, bn_activation_linear: no affine passes 1 (Sigmoid)",
    ]
    assert {refusal.pattern for refusal in report.refusals} >= {"linear_bn", "concat_bn", "bn_linear"}


def test_free_dimensions_get_no_weights() -> None:
    """A factor on images of any size: the layer is one of channels."""
    row = Row(name="free", build=lambda: wired(lambda m, x: (x.sigmoid() * 3.0).sigmoid()), inputs=image(4))
    canonical = canonized(row, row.model())
    for size in ((3, 9), (8, 2)):
        images = torch.randn(1, 4, *size, dtype=torch.float64)
        torch.testing.assert_close(canonical(images), (images.sigmoid() * 3.0).sigmoid())
    row = Row(
        name="tokens",
        build=lambda: wired(lambda m, x: m.fc((x.sigmoid() * 3.0).sigmoid()), fc=nn.Linear(4, 2)),
        inputs=image(5, 4),
    )
    model = row.model()
    tokens = torch.randn(2, 9, 4, dtype=torch.float64)
    torch.testing.assert_close(canonized(row, model)(tokens), model(tokens))


# -------------------------------------------------------------------------------------------------- refusals


def _two_directions(m: Any, x: Tensor) -> Tensor:
    return (m.bn(x.sigmoid()) * m.gamma).sigmoid()


def _width() -> nn.Module:
    # The layer behind fixes the width, so that one number a column is a fixed affine.
    return wired(
        lambda m, x: m.fc(_two_directions(m, x)),
        bn=norm(4),
        gamma=nn.Parameter(torch.linspace(-2.0, 3.0, 6)),
        fc=nn.Linear(6, 2),
    )


def test_refuses_because_it_differs_along_two_dimensions() -> None:
    """Channels and columns: no layer has a weight for each of both; it stays a scale and a shift."""
    row = Row(name="two-directions", build=_width, inputs=image(4, 5, 6))
    canonical = canonized(row, row.model())
    fates = {fate.name: fate for fate in canonical.report.affines}
    assert set(fates) == {"bn", "gamma"}
    for fate in fates.values():
        assert fate.outcome == "left"
        assert f"{PATTERN}: it is not one number per channel along a dimension of fixed size" in fate.reason
    assert [type(layer) for layer in canonical.modules() if isinstance(layer, Offset)] == [Offset]


def test_refuses_because_every_dimension_is_free() -> None:
    row = Row(
        name="no-fixed-dimension",
        build=lambda: wired(lambda m, x: (x.sigmoid().mean((1, 2, 3)) * 3.0).sigmoid()),
        inputs=image(4),
    )
    canonical = canonized(row, row.model())
    (fate,) = canonical.report.affines
    assert fate.outcome == "left"
    assert f"{PATTERN}: it is not one number per channel along a dimension of fixed size" in fate.reason


def test_skipped_it_stays_a_scale_and_a_shift() -> None:
    row = Row(name="skipped", build=lambda: Sequential(norm(6), nn.Sigmoid()), inputs=image(6), skip=(PATTERN,))
    canonical = canonized(row, row.model())
    fate = fate_of(canonical, "0")
    assert (fate.outcome, fate.into) == ("left", ())
    layer = canonical.get_submodule("0")
    assert type(layer) is Offset
    (finding,) = canonical.report.findings
    assert (finding.rule, finding.where, finding.reason) == ("C1", "0", fate.reason)


def test_it_keeps_the_models_precision() -> None:
    model = Sequential(norm(4), nn.Sigmoid()).eval().to(torch.bfloat16)
    canonical = canonize.canonize(model, torch.randn(2, 4, 5, 7).to(torch.bfloat16), verify=False)
    assert {tensor.dtype for tensor in canonical.parameters()} == {torch.bfloat16}


ALONE = rows(
    Alone(
        name="a-neighbour-takes-it",
        build=lambda: Sequential(conv(3, 6), norm(6), nn.Sigmoid()),
        inputs=image(3),
        untouched=(),
    ),
    Alone(
        name="batch-statistics",
        build=lambda: Sequential(norm(6, track_running_stats=False), nn.Sigmoid()),
        inputs=image(6),
        untouched=("0",),
        batch_norms=1,
    ),
    Alone(
        name="no-affine",
        build=lambda: Sequential(nn.Sigmoid(), conv(6, 6, 1, groups=6), nn.Tanh()),
        inputs=image(6),
        untouched=("1",),
    ),
    Alone(
        name="a-position-embedding",
        build=lambda: wired(lambda m, x: (x + m.pos).sigmoid(), pos=nn.Parameter(torch.randn(5, 4))),
        inputs=lambda batch: torch.randn(batch, 5, 4),
        untouched=(),
    ),
)


@pytest.mark.parametrize("row", ALONE)
def test_leaves_alone(row: Alone) -> None:
    canonical = assert_alone(row, PATTERN)
    assert canonical.report.count("last resort") == 0
    assert checks.loose_ends(canonical, checks.draw(row.inputs, 2)) == []


def test_symbolic() -> None:
    """A depthwise 1x1 convolution is a scale and a shift per channel: its kernel's diagonal is all there is."""
    x, s, t = sympy.Matrix(numbers("x", 3)), numbers("s", 3), sympy.Matrix(numbers("t", 3))
    have = sympy.Matrix([s[c] * x[c] + t[c] for c in range(3)])
    want = sympy.diag(*s) * x + t
    assert all(is_zero(entry) for entry in have - want)


def test_a_part_in_another_precision_gets_a_layer_of_that_precision() -> None:
    """A float64 model that computes positions in float32."""
    row = Row(
        name="mixed",
        build=lambda: wired(
            lambda m, x: m.conv(x) + (x.float().sigmoid() * m.scale).cos().double().sum(),
            conv=nn.Conv2d(4, 4, 1),
            scale=nn.Parameter(torch.tensor([2.0, -1.0, 0.5, 3.0]).reshape(4, 1, 1)),
        ),
        inputs=image(4),
    )
    model = row.model().double()
    model.scale.data = model.scale.data.float()
    images = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    canonical = canonize.canonize(model, images, verify=False)
    torch.testing.assert_close(canonical(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("verify", [True, False])
def test_behind_a_computed_constant_the_layer_has_the_models_precision(verify: bool) -> None:
    def distances(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        return (-(y.sum(1, keepdim=True) + (m.second.weight**2).sum(1, keepdim=True).t())).sigmoid()

    model = wired(distances, first=nn.Linear(3, 4), second=nn.Linear(4, 5)).eval()
    x = torch.randn(6, 3)
    found = canonize.canonize(model, x, verify=verify)
    assert {t.dtype for t in (*found.parameters(), *found.buffers())} == {torch.float32}
    torch.testing.assert_close(found(x), model(x))
