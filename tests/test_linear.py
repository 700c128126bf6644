"""Pending rescalings of linear layers: what is absorbed, and that it is rounded once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import canonize
from canonize.algebra.affine import EXACT
from canonize.algebra.weights import Kernel, PendingWeights
from canonize.errors import RewriteError
from canonize.graph.network import shell

LAYERS: dict[str, Any] = {
    "dense": lambda: nn.Linear(4, 6),
    "dense-no-bias": lambda: nn.Linear(4, 6, bias=False),
    **{
        f"{kind}{dims}d{name}": (
            lambda kind=kind, dims=dims, options=options: getattr(nn, f"{kind}{dims}d")(4, 6, 3, **options)
        )
        for kind in ("Conv", "ConvTranspose")
        for dims in (1, 2, 3)
        for name, options in {"": {}, "-no-bias": {"bias": False}, "-grouped": {"groups": 2}}.items()
    },
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "depthwise-transposed": lambda: nn.ConvTranspose2d(4, 8, 3, groups=4),
}
NAMES = [pytest.param(name, id=name) for name in LAYERS]


@pytest.fixture(autouse=True, params=[20, None], ids=["in pieces", "in one piece"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are rescaled piece by piece; those of the tests are too small to be cut."""
    if request.param is not None:
        monkeypatch.setattr("canonize.algebra.weights._CHUNK", request.param)


def _layer(name: str) -> tuple[nn.Module, Tensor]:
    layer = LAYERS[name]().double().eval()
    dims = layer.weight.ndim - 2
    size = (7, 5, 4)[: max(dims, 0)]
    return layer, torch.randn(3, 4, *size, dtype=EXACT)


def _along_channels(vector: Tensor, value: Tensor) -> Tensor:
    return vector.reshape(-1, *(1,) * (value.ndim - 2))


def _written(pending: PendingWeights, layer: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    made = shell(layer)
    pending.write(made, dtype)
    return made


def _vector(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(count, generator=generator, dtype=EXACT)
    vector[1] = 0.0
    return vector


@pytest.mark.parametrize("name", NAMES)
def test_channels(name: str) -> None:
    layer, value = _layer(name)
    pending = PendingWeights(layer)
    assert pending.in_channels == value.shape[1]
    assert pending.out_channels == layer(value).shape[1]


@pytest.mark.parametrize("name", NAMES)
def test_absorbs_what_is_behind(name: str) -> None:
    layer, value = _layer(name)
    pending = PendingWeights(layer)
    scale, shift = _vector(pending.out_channels, 0), _vector(pending.out_channels, 1)
    pending.absorb_output(scale, shift)
    output = layer(value)
    wanted = output * _along_channels(scale, output) + _along_channels(shift, output)
    torch.testing.assert_close(_written(pending, layer)(value), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_absorbs_a_scale_before(name: str) -> None:
    layer, value = _layer(name)
    pending = PendingWeights(layer)
    scale = _vector(4, 0)
    pending.absorb_input(scale, torch.zeros_like(scale))
    wanted = layer(value * _along_channels(scale, value))
    made = _written(pending, layer)
    torch.testing.assert_close(made(value), wanted, rtol=1e-12, atol=1e-12)
    # No shift, no new bias.
    assert made.bias is layer.bias


@pytest.mark.parametrize("name", [name for name in LAYERS if "ranspose" not in name])
def test_absorbs_what_is_before(name: str) -> None:
    layer, value = _layer(name)
    pending = PendingWeights(layer)
    scale, shift = _vector(4, 0), _vector(4, 1)
    pending.absorb_input(scale, shift)
    wanted = layer(value * _along_channels(scale, value) + _along_channels(shift, value))
    torch.testing.assert_close(_written(pending, layer)(value), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in LAYERS if "ranspose" in name])
def test_a_transposed_convolution_answers_a_constant_where_every_tap_reaches(name: str) -> None:
    layer, _ = _layer(name)
    pending, shift = PendingWeights(layer), _vector(4, 1)
    sizes = (9, 8, 7)[: layer.weight.ndim - 2]
    constant = shift.reshape(1, -1, *(1,) * len(sizes)).expand(1, 4, *sizes)
    bias = 0.0 if layer.bias is None else layer.bias.detach()
    answer = layer(constant).detach()[(0, slice(None), *(size // 2 for size in sizes))] - bias
    torch.testing.assert_close(pending.response_to(shift), answer, rtol=1e-12, atol=1e-12)
    pending.absorb_input(torch.ones(4, dtype=EXACT), shift)
    torch.testing.assert_close(pending.bias, answer + bias, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in LAYERS if "ranspose" not in name])
@pytest.mark.parametrize("order", [("out", "in"), ("in", "out"), ("in", "in", "out", "out")], ids="-".join)
def test_absorbs_in_any_order(name: str, order: tuple[str, ...]) -> None:
    layer, value = _layer(name)
    pending = PendingWeights(layer)
    before: list[tuple[Tensor, Tensor]] = []
    behind: list[tuple[Tensor, Tensor]] = []
    for seed, side in enumerate(order):
        count = 4 if side == "in" else pending.out_channels
        pair = (_vector(count, 2 * seed), _vector(count, 2 * seed + 1))
        if side == "in":
            pending.absorb_input(*pair)
            before.insert(0, pair)  # the latest stands in front of what is there
        else:
            pending.absorb_output(*pair)
            behind.append(pair)
    wanted = value
    for scale, shift in before:
        wanted = wanted * _along_channels(scale, wanted) + _along_channels(shift, wanted)
    wanted = layer(wanted)
    for scale, shift in behind:
        wanted = wanted * _along_channels(scale, wanted) + _along_channels(shift, wanted)
    torch.testing.assert_close(_written(pending, layer)(value), wanted, rtol=1e-11, atol=1e-11)


def test_nothing_is_written_before_write() -> None:
    layer = nn.Linear(4, 6)
    weight, bias = layer.weight, layer.bias
    values = weight.detach().clone(), bias.detach().clone()
    pending = PendingWeights(layer)
    assert not pending.touched
    pending.absorb_input(torch.full((4,), 2.0, dtype=EXACT), torch.ones(4, dtype=EXACT))
    pending.absorb_output(torch.full((6,), 3.0, dtype=EXACT), torch.ones(6, dtype=EXACT))
    assert pending.touched
    made = _written(pending, layer)
    assert layer.weight is weight
    assert layer.bias is bias
    assert torch.equal(weight, values[0])
    assert torch.equal(bias, values[1])
    assert made.weight is not weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_many_absorptions_round_once(dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 6).to(dtype)
    exact = layer.weight.double().detach()
    pending = PendingWeights(layer)
    factor = torch.ones(6, dtype=EXACT)
    for seed in range(20):
        scale = 0.5 + torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=EXACT)
        pending.absorb_output(scale, torch.zeros(6, dtype=EXACT))
        factor = factor * scale
    made = _written(pending, layer)
    assert made.weight.dtype == dtype
    assert torch.equal(made.weight.detach(), (exact * factor[:, None]).to(dtype))
    assert _written(pending, layer, EXACT).weight.dtype == EXACT
    torch.testing.assert_close(_written(pending, layer, EXACT).weight.detach(), exact * factor[:, None])


@pytest.mark.parametrize("trained", [True, False])
def test_what_is_written_asks_for_gradients_as_the_layer_did(trained: bool) -> None:
    layer = nn.Linear(4, 6).requires_grad_(trained)
    pending = PendingWeights(layer)
    pending.absorb_output(torch.full((6,), 2.0, dtype=EXACT), torch.ones(6, dtype=EXACT))
    assert {parameter.requires_grad for parameter in _written(pending, layer).parameters()} == {trained}


def test_a_clone_goes_its_own_way() -> None:
    layer = nn.Conv2d(4, 6, 3).double()
    pending = PendingWeights(layer)
    pending.absorb_output(torch.full((6,), 2.0, dtype=EXACT), torch.ones(6, dtype=EXACT))
    pending.absorb_input(torch.full((4,), 3.0, dtype=EXACT), torch.zeros(4, dtype=EXACT))
    copy = pending.clone(shell(layer))
    torch.testing.assert_close(copy.exact_weight(), 6.0 * layer.weight.detach())
    torch.testing.assert_close(copy.exact_weight(), pending.exact_weight())
    assert copy.touched
    before = pending.exact_weight().clone()
    copy.absorb_output(torch.full((6,), 5.0, dtype=EXACT), torch.ones(6, dtype=EXACT))
    copy.absorb_input(torch.full((4,), 5.0, dtype=EXACT), torch.ones(4, dtype=EXACT))
    assert torch.equal(pending.exact_weight(), before)
    assert pending.bias is not None
    torch.testing.assert_close(pending.bias, 2.0 * layer.bias.detach() + 1.0)


def test_set_replaces_everything() -> None:
    layer = nn.Linear(4, 6).double()
    pending = PendingWeights(layer)
    pending.absorb_output(torch.full((6,), 2.0, dtype=EXACT), torch.ones(6, dtype=EXACT))
    weight, bias = torch.randn(6, 4, dtype=EXACT), torch.randn(6, dtype=EXACT)
    pending.set(weight, bias)
    made = _written(pending, layer)
    assert torch.equal(made.weight, weight)
    assert torch.equal(made.bias, bias)


class Doubled(Kernel):
    """Twice another weight."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.shape, self.device, self.at_once = kernel, kernel.shape, kernel.device, kernel.at_once

    def add_to(self, target: torch.Tensor, part: slice, factor: float) -> None:
        self.kernel.add_to(target, part, 2.0 * factor)


def test_a_clone_of_a_layer_without_weights_of_its_own_is_written() -> None:
    layer = nn.Conv2d(4, 6, 3).double()
    pending = PendingWeights(nn.Conv2d(4, 6, 3, device="meta", dtype=EXACT))
    pending.set(Doubled(PendingWeights(layer)), None)
    copy = pending.clone(nn.Conv2d(4, 6, 3, device="meta", dtype=EXACT))
    assert copy.touched
    for weights in (pending, copy):
        made = shell(layer)
        weights.write(made, None)
        assert torch.equal(made.weight.detach(), 2.0 * layer.weight.detach())


def test_what_waits_is_worked_out_with_what_is_pending_on_both_sides() -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2).double()
    inner = PendingWeights(layer)
    inner.absorb_input(torch.full((4,), 3.0, dtype=EXACT), torch.zeros(4, dtype=EXACT))
    outer = PendingWeights(nn.Conv2d(4, 6, 3, groups=2, device="meta", dtype=EXACT))
    outer.set(Doubled(inner), None)
    outer.absorb_output(torch.arange(1.0, 7.0, dtype=EXACT), torch.ones(6, dtype=EXACT))
    expected = layer.weight.detach() * 6.0 * torch.arange(1.0, 7.0, dtype=EXACT)[:, None, None, None]
    torch.testing.assert_close(outer.exact_weight(), expected)
    shift = torch.randn(4, dtype=EXACT)
    groups = shift.view(2, 2)[torch.arange(6) // 3]
    torch.testing.assert_close(outer.response_to(shift), (expected.sum((2, 3)) * groups).sum(1))


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (torch.float16, {"0.weight": 100.0, "1.weight": 1000.0, "1.running_var": 2.0**-20}),
        (torch.float32, {"0.weight": 1e30, "1.weight": 1e10}),
        (torch.float32, {"0.weight": 1e30, "1.weight": -1e10}),
        (torch.float16, {"1.bias": 4e4, "1.running_mean": -4e4}),
    ],
    ids=["half", "single", "negative", "bias"],
)
def test_refuses_because_a_folded_weight_overflows(dtype: torch.dtype, values: dict[str, float], verify: bool) -> None:
    """Each is a number in the model's own precision; what they make of the weight is none."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.0)).to(dtype).eval()
    held = model.state_dict()
    for name, value in values.items():
        held[name].view(4, -1)[1] = value
    assert all(bool(torch.isfinite(tensor).all()) for tensor in held.values())
    with pytest.raises(RewriteError, match=r"^0: .* overflow.* Widen the model first"):
        canonize.canonize(model, torch.randn(2, 3, 5, 5, dtype=dtype), verify=verify)


def test_large_weights_that_do_not_overflow_are_written_although_their_sum_does() -> None:
    layer = nn.Linear(64, 64, bias=False)
    nn.init.constant_(layer.weight, 1e37)
    pending = PendingWeights(layer)
    pending.absorb_output(torch.full((64,), 2.0, dtype=EXACT), torch.zeros(64, dtype=EXACT))
    assert torch.equal(_written(pending, layer).weight.detach(), 2 * layer.weight.detach())


def test_a_weight_that_was_no_number_stays_none() -> None:
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight[0, 0] = math.nan
    pending = PendingWeights(layer)
    pending.absorb_output(torch.full((4,), 2.0, dtype=EXACT), torch.zeros(4, dtype=EXACT))
    assert torch.isnan(_written(pending, layer).weight[0, 0])
