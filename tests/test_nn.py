"""The modules that torch lacks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import canonize
from canonize import nn as cnn

LOWER = torch.tensor([-0.5, 0.3, -torch.inf, 0.2]).reshape(1, 4, 1, 1)
UPPER = torch.tensor([torch.inf, 0.9, 0.4, 0.2]).reshape(1, 4, 1, 1)


def _images() -> Tensor:
    return torch.randn(3, 4, 5, 6)


# ------------------------------------------------------------------------------------------------ activations


def test_a_threshold_clamps_every_channel_to_its_own_bounds() -> None:
    x = _images()
    y = cnn.ThreshReLU(LOWER, UPPER)(x)
    for channel in range(4):
        wanted = x[:, channel].clamp(LOWER[0, channel].item(), UPPER[0, channel].item())
        assert torch.equal(y[:, channel], wanted)
    assert torch.equal(cnn.ThreshReLU(LOWER)(x), torch.maximum(x, LOWER))
    assert torch.equal(cnn.ThreshReLU(upper=UPPER)(x), torch.minimum(x, UPPER))


def test_a_threshold_of_zero_is_a_rectifier() -> None:
    x = _images()
    assert torch.equal(cnn.ThreshReLU(torch.zeros(1, 4, 1, 1))(x), x.relu())


def test_types_are_what_rules_look_for() -> None:
    thresholds = (cnn.ThreshReLU(LOWER), cnn.ThreshLeakyReLU(LOWER, LOWER, LOWER))
    assert not any(isinstance(layer, nn.ReLU | nn.LeakyReLU) for layer in thresholds), "zennit would give them Pass"
    assert isinstance(cnn.ChannelLinear(4), nn.Conv1d)


def test_the_two_slopes_around_a_kink() -> None:
    z, left, right = (torch.randn(1, 4, 1, 1) for _ in range(3))
    x = _images()
    wanted = z + right * (x - z).clamp(min=0) + left * (x - z).clamp(max=0)
    torch.testing.assert_close(cnn.ThreshLeakyReLU(z, left, right)(x), wanted)
    zero, one = torch.zeros(1), torch.ones(1)
    torch.testing.assert_close(cnn.ThreshLeakyReLU(zero, 0.3 * one, one)(x), F.leaky_relu(x, 0.3))


# ------------------------------------------------------------------------------- sums, gates, concatenations


def test_sums_are_weighted() -> None:
    a, b, c = (torch.randn(2, 3) for _ in range(3))
    assert torch.equal(cnn.Sum()(a, b), a + b)
    assert torch.equal(cnn.Sum((1.0, -1.0))(a, b), a - b)
    torch.testing.assert_close(cnn.Sum((0.5, 1.0, -2.0))(a, b, c), 0.5 * a + b - 2.0 * c)
    with pytest.raises(ValueError):
        cnn.Sum((1.0, 1.0))(a, b, c)


def test_gates_concatenations_and_reductions() -> None:
    x = _images()
    gate = torch.rand(3, 4, 1, 1)
    assert torch.equal(cnn.Gate()(x, gate), x * gate)
    assert torch.equal(cnn.Concat(1)(x, gate.expand_as(x)), torch.cat([x, gate.expand_as(x)], 1))
    assert torch.equal(cnn.Concat(-1)(x, x, x), torch.cat([x, x, x], -1))
    assert torch.equal(cnn.Mean((2, 3))(x), x.mean((2, 3)))
    assert torch.equal(cnn.Mean((1,), keepdim=True)(x), x.mean(1, keepdim=True))
    assert torch.equal(cnn.SumOver((2, 3))(x), x.sum((2, 3)))
    assert torch.equal(cnn.SumOver([1], keepdim=True)(x), x.sum(1, keepdim=True))


# ------------------------------------------------------------------------------------------------- channels


@pytest.mark.parametrize("padding", [(1, 2), (1, 2, 0, 3), (0, 0, 2, 1)])
def test_padding_with_a_constant_per_channel(padding: tuple[int, ...]) -> None:
    x, value = _images(), torch.randn(1, 4, 1, 1)
    y = cnn.ChannelPad(padding, value)(x)
    # Around x - value stand zeros.
    torch.testing.assert_close(y, F.pad(x - value, padding) + value)
    inside = F.pad(torch.ones_like(x), padding).bool()
    assert torch.equal(y[inside], x.flatten())


def test_padding_crops_where_it_is_negative() -> None:
    x, value = _images(), torch.randn(1, 4, 1, 1)
    y = cnn.ChannelPad((-1, 2, 1, -2), value)(x)
    torch.testing.assert_close(y, F.pad(x - value, (-1, 2, 1, -2)) + value)


def test_padding_keeps_what_is_not_finite_inside() -> None:
    """x - value + value would lose infinities and precision."""
    x = torch.tensor([[[1e30, -torch.inf, 1e-30]]])
    y = cnn.ChannelPad((1, 1), torch.full((1, 1, 1), 7.0))(x)
    assert y.flatten().tolist() == [7.0, *x.flatten().tolist(), 7.0]


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 6), (3, 4, 2, 3, 2)], ids=str)
def test_a_linear_layer_per_channel(shape: tuple[int, ...]) -> None:
    x, layer = torch.randn(shape), cnn.ChannelLinear(4)
    weight, bias = (v.reshape(-1, *(1,) * (x.ndim - 2)) for v in (layer.weight, layer.bias))
    torch.testing.assert_close(layer(x), x * weight + bias)


@pytest.mark.parametrize("dim", [1, 2, 3, -1])
def test_a_linear_layer_per_channel_along_any_dimension(dim: int) -> None:
    x = torch.randn(2, 3, 4, 5)
    layer = cnn.ChannelLinear(x.shape[dim], dim)
    shape = [1] * 4
    shape[dim] = -1
    y = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y, x * layer.weight.reshape(shape) + layer.bias.reshape(shape))


def test_offsets_and_constants() -> None:
    x, scale, shift = torch.randn(2, 3, 4), torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(cnn.Offset(scale, shift)(x), x * scale + shift)
    assert torch.equal(cnn.Offset(None, shift)(x), x + shift)
    assert torch.equal(cnn.Offset(scale, None)(x), x * scale)
    assert torch.equal(cnn.Constant(shift)(), shift)


# --------------------------------------------------------------------------------------------------- calls

CALLS: dict[str, tuple[cnn.Call, Callable[[Tensor, Tensor], Any]]] = {
    "a-function": (cnn.Call("torch.cumsum", (cnn.Slot(0), 1)), lambda x, y: x.cumsum(1)),
    "a-method": (cnn.Call(".cumsum", (cnn.Slot(0),), {"dim": 1}), lambda x, y: x.cumsum(1)),
    "a-keyword": (cnn.Call("torch.cumsum", (cnn.Slot(0),), {"dim": 1}), lambda x, y: x.cumsum(1)),
    "an-aten-overload": (cnn.Call("torch.ops.aten.mul.Tensor", (cnn.Slot(1), cnn.Slot(0))), lambda x, y: x * y),
    "two-inputs-out-of-order": (cnn.Call("operator.sub", (cnn.Slot(1), cnn.Slot(0))), lambda x, y: y - x),
    "a-list-of-inputs": (
        cnn.Call("torch.stack", ([cnn.Slot(1), cnn.Slot(0)],), {"dim": 1}),
        lambda x, y: torch.stack([y, x], 1),
    ),
    "slices": (
        cnn.Rearrange("operator.getitem", (cnn.Slot(0), (slice(None), slice(1, None, 2)))),
        lambda x, y: x[:, 1::2],
    ),
    "an-input-in-a-keyword": (cnn.Call("torch.add", (cnn.Slot(0),), {"other": cnn.Slot(1)}), lambda x, y: x + y),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str) -> None:
    call, wanted = CALLS[name]
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.equal(call(x, y), wanted(x, y))
    for again in (copy.deepcopy(call), pickle.loads(pickle.dumps(call))):
        assert torch.equal(again(x, y), wanted(x, y))
    assert call.target in repr(call)


def test_a_size_from_the_graph_goes_into_a_slice() -> None:
    call = cnn.Rearrange("operator.getitem", (cnn.Slot(0), (slice(None), slice(None, cnn.Slot(1)))))
    x = torch.randn(2, 5)
    assert torch.equal(call(x, 3), x[:, :3])


def test_a_function_that_does_not_exist() -> None:
    with pytest.raises((ImportError, AttributeError)):
        cnn.Call("nothing.of.that.name", (cnn.Slot(0),))(torch.zeros(1))


MODULES: list[nn.Module] = [
    cnn.ThreshReLU(LOWER, UPPER), cnn.ThreshLeakyReLU(LOWER, UPPER, UPPER), cnn.Sum((1.0, 2.0)), cnn.Gate(),
    cnn.Concat(1), cnn.Mean((1,)), cnn.SumOver((1,)), cnn.ChannelPad((1, 1), UPPER), cnn.ChannelLinear(4),
    cnn.Offset(LOWER, None), cnn.Constant(UPPER),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_they_are_modules_like_any_other(module: nn.Module) -> None:
    again = pickle.loads(pickle.dumps(module))
    assert [name for name, _ in again.named_buffers()] == [name for name, _ in module.named_buffers()]
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), module.state_dict().values(), strict=True)
    )
    assert {tensor.dtype for tensor in copy.deepcopy(module).double().state_dict().values()} <= {torch.float64}
    assert type(module).__name__ in repr(module)
    assert type(module).__name__ in cnn.__all__


def test_all_is_complete() -> None:
    defined = {
        name for name, value in vars(cnn).items() if isinstance(value, type) and issubclass(value, nn.Module)
        and value.__module__ == cnn.__name__
    }  # fmt: skip
    assert defined == set(cnn.__all__)


class Attended(nn.Module):
    """Functions and methods that become calls by name."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, -1).transpose(1, 2) @ torch.nn.functional.gelu(x.sin()).cos()


def test_torch_compile_makes_one_graph_of_calls() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    canonical = canonize.canonize(Attended().eval(), x, verify=False)
    assert any(isinstance(module, cnn.Call) for module in canonical.modules())
    torch._dynamo.reset()
    compiled = torch.compile(canonical, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), canonical(x))
