"""Graph -> network: one vocabulary, one module a call, nothing in place, nothing random, nothing idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import get_overridable_functions

import canonize
from canonize import nn as cnn
from canonize.capture import capture
from canonize.errors import CaptureError
from canonize.graph.network import FrozenAffine, Network
from canonize.inputs import normalise
from canonize.nn import resolve
from canonize.normalize import normalize
from canonize.normalize.naming import target_name
from tests import checks
from tests.statistics import harden
from tests.zoo.case import conv, image, norm, wired

TRACERS = ("symbolic_trace", "torch.export")


def _network(model: nn.Module, inputs: Any, tracer: str = "symbolic_trace") -> Network:
    example = normalise(checks.draw(inputs, 2, dtype=torch.float64))
    return normalize(capture(model, example, tracer), example, "Model")


def _normalized(model: nn.Module, inputs: Any, tracer: str = "symbolic_trace") -> fx.GraphModule:
    """The network as a module, the same function as the model."""
    model = model.double().eval()
    before = checks.snapshot(model)
    built = _network(model, inputs, tracer).build()
    checks.assert_same_function(model, built, inputs, tolerance=1e-12)
    checks.assert_untouched(model, before)
    return built


def _layers(built: fx.GraphModule) -> list[nn.Module]:
    return [built.get_submodule(str(node.target)) for node in built.graph.nodes if node.op == "call_module"]


# ---------------------------------------------------------------------------------------- one vocabulary

WEIGHT = torch.randn(5, 4, 3, 3)
SPELLINGS: dict[str, tuple[Callable[[Any, Tensor], Any], type]] = {
    "F.relu": (lambda m, x: F.relu(x), nn.ReLU),
    "torch.relu": (lambda m, x: torch.relu(x), nn.ReLU),
    "x.relu": (lambda m, x: x.relu(), nn.ReLU),
    "x.clamp(min=0)": (lambda m, x: x.clamp(min=0), nn.ReLU),
    "F.relu6": (lambda m, x: F.relu6(x), nn.Hardtanh),
    "F.hardtanh": (lambda m, x: F.hardtanh(x, -2.0, 0.5), nn.Hardtanh),
    "torch.clamp": (lambda m, x: torch.clamp(x, -0.2, 0.9), nn.Hardtanh),
    "F.leaky_relu": (lambda m, x: F.leaky_relu(x, 0.3), nn.LeakyReLU),
    "F.prelu": (lambda m, x: F.prelu(x, m.slope), nn.PReLU),
    "F.elu": (lambda m, x: F.elu(x, 0.5), nn.ELU),
    "F.gelu": (lambda m, x: F.gelu(x), nn.GELU),
    "torch.sigmoid": (lambda m, x: torch.sigmoid(x), nn.Sigmoid),
    "x.tanh": (lambda m, x: x.tanh(), nn.Tanh),
    "F.softmax": (lambda m, x: F.softmax(x, 1), nn.Softmax),
    "x.softmax": (lambda m, x: x.softmax(dim=-1), nn.Softmax),
    "F.log_softmax": (lambda m, x: F.log_softmax(x, dim=1), nn.LogSoftmax),
    "F.avg_pool2d": (lambda m, x: F.avg_pool2d(x, 2), nn.AvgPool2d),
    "F.max_pool2d": (lambda m, x: F.max_pool2d(x, 2, stride=1), nn.MaxPool2d),
    "F.adaptive_avg_pool2d": (lambda m, x: F.adaptive_avg_pool2d(x, 1), nn.AdaptiveAvgPool2d),
    "F.pad": (lambda m, x: F.pad(x, (1, 2, 0, 1), value=0.5), nn.ConstantPad2d),
    "F.pixel_shuffle": (lambda m, x: F.pixel_shuffle(x, 2), nn.PixelShuffle),
    "x.flatten": (lambda m, x: x.flatten(1), nn.Flatten),
    "x.view(n, -1)": (lambda m, x: x.view(x.size(0), -1), nn.Flatten),
    "x.reshape(n, -1)": (lambda m, x: x.reshape(x.shape[0], -1), nn.Flatten),
    "x.permute": (lambda m, x: x.permute(0, 2, 3, 1), cnn.Rearrange),
    "x.transpose": (lambda m, x: x.transpose(1, 2), cnn.Rearrange),
    "x.narrow": (lambda m, x: x.narrow(1, 1, 2), cnn.Rearrange),
    "x.repeat": (lambda m, x: x.repeat(1, 2, 1, 1), cnn.Rearrange),
    "F.conv2d": (lambda m, x: F.conv2d(x, m.weight, m.bias, padding=1), nn.Conv2d),
    "F.conv_transpose2d": (lambda m, x: F.conv_transpose2d(x, m.weight.transpose(0, 1), m.bias), nn.ConvTranspose2d),
    "aten.convolution": (
        lambda m, x: torch.ops.aten.convolution.default(x, m.weight, m.bias, [2, 1], [1, 0], [1, 1], False, [0, 0], 1),
        nn.Conv2d,
    ),
    "aten.convolution, transposed": (
        lambda m, x: torch.ops.aten.convolution.default(
            x, m.weight.transpose(0, 1), m.bias, [2, 2], [1, 1], [1, 1], True, [1, 0], 1
        ),
        nn.ConvTranspose2d,
    ),
    "aten.instance_norm": (
        lambda m, x: torch.ops.aten.instance_norm.default(x, None, None, None, None, True, 0.1, 0.01, False),
        nn.InstanceNorm2d,
    ),
    "F.linear": (lambda m, x: F.linear(x, m.matrix), nn.Linear),
    "x @ W": (lambda m, x: x @ m.matrix.T, nn.Linear),
    "torch.matmul": (lambda m, x: torch.matmul(x, m.matrix.T), nn.Linear),
    "x + x": (lambda m, x: x + x, cnn.Sum),
    "torch.sub": (lambda m, x: torch.sub(x, x.flip(1), alpha=0.5), cnn.Sum),
    "x * gate": (lambda m, x: x * x.mean(1, keepdim=True), cnn.Gate),
    "torch.cat": (lambda m, x: torch.cat([x, x], 1), cnn.Concat),
    "x.mean(1)": (lambda m, x: x.mean(1), cnn.Mean),
    "x.sum": (lambda m, x: x.sum((1, 2)), cnn.SumOver),
    "F.batch_norm": (lambda m, x: F.batch_norm(x, m.mean, m.var, m.slope, eps=0.1), FrozenAffine),
    "x * constant": (lambda m, x: x * 3, FrozenAffine),
    "constant - x": (lambda m, x: 1.5 - x, FrozenAffine),
    "x / constant": (lambda m, x: x / m.var[:, None, None], FrozenAffine),
    "-x": (lambda m, x: -x, FrozenAffine),
    "torch.addcmul": (lambda m, x: torch.addcmul(m.mean[:, None, None], x, m.var[:, None, None]), FrozenAffine),
    "x.cumsum": (lambda m, x: x.cumsum(2), cnn.Call),
    "torch.einsum": (lambda m, x: torch.einsum("nchw,nchw->nc", x, x), cnn.Call),
}


def _holder(forward: Callable[[Any, Tensor], Any]) -> nn.Module:
    torch.manual_seed(1)
    return wired(
        forward,
        weight=nn.Parameter(torch.randn(5, 4, 3, 3)),
        bias=nn.Parameter(torch.randn(5)),
        matrix=nn.Parameter(torch.randn(3, 6)),
        slope=nn.Parameter(torch.rand(4)),
        mean=torch.randn(4),
        var=torch.rand(4) + 0.5,
    )


# torch.export spells an operation in one way whatever the model does; these differ from all of torch's names.
EXPORTED = (
    "F.relu", "F.hardtanh", "F.prelu", "F.softmax", "F.max_pool2d", "F.adaptive_avg_pool2d", "F.pad", "x.view(n, -1)",
    "x.permute", "F.conv2d", "F.conv_transpose2d", "F.linear", "x @ W", "torch.sub", "torch.cat", "x.mean(1)", "x.sum",
    "F.batch_norm", "constant - x", "torch.addcmul",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tracer"), [*((name, TRACERS[0]) for name in SPELLINGS), *((name, TRACERS[1]) for name in EXPORTED)]
)
def test_spellings(name: str, tracer: str) -> None:
    forward, wanted = SPELLINGS[name]
    built = _normalized(_holder(forward), image(4, 4, 6), tracer)
    layers = _layers(built)
    assert any(isinstance(layer, wanted) for layer in layers), built
    # What is only needed to write it down differently is gone.
    exact = {type(layer) for layer in layers}
    if wanted is not cnn.Call and name not in ("x + x", "x * gate", "torch.sub", "torch.einsum"):
        assert cnn.Call not in exact
        assert len(layers) == 1
    assert all(node.op != "get_attr" for node in built.graph.nodes)


@pytest.mark.parametrize("tracer", TRACERS)
def test_functions_use_the_models_own_parameters(tracer: str) -> None:
    model = _holder(lambda m, x: F.conv2d(x, m.weight, m.bias, padding=1)).double()
    (layer,) = _layers(_normalized(model, image(4, 4, 6), tracer))
    assert layer.weight is model.weight
    assert layer.bias is model.bias


def test_an_operation_with_arguments_that_depend_on_the_input_stays_a_call() -> None:
    """A convolution whose kernel is computed is no linear layer with a weight."""
    model = wired(lambda m, x: F.conv2d(x, x.mean(0, keepdim=True)[:, :, :2, :2]))
    layers = _layers(_normalized(model, image(4, 4, 6)))
    assert not any(isinstance(layer, nn.Conv2d) for layer in layers)


def test_chunks_are_slices() -> None:
    model = wired(lambda m, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid() + x.split([3, 1], dim=1)[1])
    layers = _layers(_normalized(model, image(4)))
    assert sum(isinstance(layer, cnn.Rearrange) for layer in layers) == 3
    assert not any(type(layer) is cnn.Call for layer in layers)


# ------------------------------------------------------------------------------------- nothing in place


def _inplace_rectifier(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    z = F.relu(y, inplace=True)
    return y + z  # y is rectified, too


def _inplace_sum(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    y += m.conv2(x)
    y *= y.sigmoid()
    return y


def _inplace_module(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    m.act(y)  # its result is thrown away, its effect is not
    return y.tanh()


def _inplace_chain(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    y.mul_(2.0).add_(1.0).clamp_(min=0.0)
    return y - m.conv2(x)


def _inplace_on_a_view(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    half = y[:, :2]
    half.relu_()
    return y.sigmoid()


def _inplace_seen_by_a_view(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    flat = y.flatten(2)
    y.relu_()
    return flat.sigmoid()


def _item_assignment(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    y[:, 0] = 0.5
    return y.sigmoid()


def _inplace_behind_identity(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    z = m.idle(y)
    z.relu_()
    return y.tanh()


def _inplace_aten(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    torch.ops.aten.add_.Tensor(y, m.conv2(x))
    z = torch.ops.aten.relu_.default(y)
    return y.sigmoid() + z


def _inplace_aten_seen_by_a_view(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    flat = torch.ops.aten.view.default(y, [y.size(0), 4, -1])
    torch.ops.aten.__iand__.Scalar(y.detach() > 0, True)
    torch.ops.aten.relu_.default(y)
    return flat.sigmoid()


def _overwritten(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    torch.ops.aten.copy_.default(y, m.conv2(x).tanh())
    return y * 2


def _slice_set_to_zero(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    part = y[:, 1:3]
    part.zero_()
    return y.cos() + part.sum()


def _slice_of_a_slice(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    y[:, 1:][:, :2].mul_(3.0)
    return y.sigmoid()


def _overlapping_slices(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    first, second = y[:, :3], y[:, 1:]
    first.relu_()
    return second.sigmoid() + y[:, :3]


def _filled(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    z = torch.empty_like(y).fill_(value=0.5) + y.clone().fill_(2.0)
    return y.sigmoid() * z


IN_PLACE = (
    _filled,
    _inplace_rectifier,
    _inplace_sum,
    _inplace_module,
    _inplace_chain,
    _inplace_on_a_view,
    _inplace_aten,
    _inplace_aten_seen_by_a_view,
    _overwritten,
    _slice_set_to_zero,
    _slice_of_a_slice,
    _overlapping_slices,
    _inplace_seen_by_a_view,
    _item_assignment,
    _inplace_behind_identity,
)


@pytest.mark.parametrize("forward", IN_PLACE, ids=lambda forward: forward.__name__)
def test_in_place(forward: Callable[..., Any]) -> None:
    model = wired(forward, conv=conv(3, 4), conv2=conv(3, 4), act=nn.LeakyReLU(0.2, inplace=True), idle=nn.Identity())
    canonical = checks.assert_canonized(model.double().eval(), image(3), verify=False)
    for layer in canonical.modules():
        assert getattr(layer, "inplace", False) is False
    for node in canonical.graph.nodes:
        name = getattr(node.target, "__name__", str(node.target))
        assert not (name.endswith("_") and not name.endswith("__")), node
        assert not name.startswith("iadd")


def _diagonal(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    corner = y.detach()[0, 0, :3, :3].clone()
    return corner.fill_diagonal_(0.5).sum() + y.sigmoid()


def _strides(m: Any, x: Tensor) -> Any:
    y = m.conv(x).transpose(1, 2).contiguous()
    return y.as_strided((2, 3), (3, 1)).sum() + y


@pytest.mark.parametrize("forward", [_diagonal, _strides], ids=["diagonal", "strides"])
@pytest.mark.parametrize("verify", [True, False])
def test_refuses_because_memory_is_read_by_strides(forward: Callable[..., Any], verify: bool) -> None:
    """Copies that only change how a tensor lies in memory are left out."""
    model = wired(forward, conv=conv(3, 4)).double().eval()
    with pytest.raises(CaptureError, match="reads the memory of a tensor by strides"):
        canonize.canonize(model, torch.randn(2, 3, 5, 7).double(), verify=verify)


def test_an_input_that_the_model_writes_into_stays_as_it_is() -> None:
    model = wired(lambda m, x: m.bn(m.conv(x.mul_(2.0))), conv=conv(3, 4), bn=norm(4)).double().eval()
    canonical = canonize.canonize(model, torch.randn(2, 3, 5, 7).double(), verify=False)
    images = torch.randn(2, 3, 5, 7).double()
    given = images.clone()
    outputs = canonical(given)
    assert torch.equal(given, images)
    torch.testing.assert_close(outputs, model(images.clone()))


def test_two_names_of_one_tensor() -> None:
    """What `+=` writes, the other name shows, too: seen by the comparison with the model, then traced again."""

    def forward(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        z = y
        y += m.conv2(x)
        return m.bn(y * z.sigmoid())

    model = harden(wired(forward, conv=conv(3, 4), conv2=conv(3, 4), bn=norm(4))).double().eval()
    checks.assert_canonized(model, image(3), verify=True)


# -------------------------------------------------------------------------------------------- constants


def test_what_does_not_depend_on_the_input_is_evaluated_once() -> None:
    def standardised(m: Any, x: Tensor) -> Any:
        weight = m.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, m.bias)

    model = _holder(standardised)
    (layer,) = _layers(_normalized(model, image(4, 4, 6)))
    assert type(layer) is nn.Conv2d
    weight = model.weight.detach()
    wanted = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
    torch.testing.assert_close(layer.weight.detach(), wanted)


def test_constants_are_modules() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        places = m.table.cumsum(0).expand(x.shape[0], 1, 5, 7)
        return m.conv(torch.cat([x, places], 1)) - m.table.sum()

    model = wired(forward, conv=conv(4, 3), table=torch.randn(7))
    built = _normalized(model, image(3))
    assert any(isinstance(layer, cnn.Constant) for layer in built.modules())
    assert all(node.op != "get_attr" for node in built.graph.nodes)


def test_a_computed_weight_is_rounded_once() -> None:
    """The float64 value of a computed weight survives until it is written."""
    model = wired(
        lambda m, x: F.linear(x, m.a * m.b) * 3.0, a=nn.Parameter(torch.randn(2, 4)), b=nn.Parameter(torch.rand(2, 4))
    )
    canonical = canonize.canonize(model, torch.randn(2, 4), verify=False)
    (layer,) = (layer for layer in canonical.modules() if isinstance(layer, nn.Linear))
    wanted = (model.a.double() * model.b.double() * 3.0).float()
    assert torch.equal(layer.weight.detach(), wanted.detach())


def test_random_numbers_are_no_constants() -> None:
    model = wired(lambda m, x: x + torch.rand(4, 5, 7)).double()
    torch.manual_seed(0)
    built = _network(model, image(4), "torch.export").build()
    images = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    assert not torch.equal(built(images), built(images))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused_by_name(value: float) -> None:
    model = nn.Sequential(nn.Sequential(conv(3, 4), norm(4))).eval()
    model[0][1].running_mean[2] = value
    with pytest.raises(canonize.CaptureError, match=r"^0\.1: its statistics are not finite"):
        canonize.canonize(model, torch.zeros(1, 3, 5, 7))


def test_a_division_by_nothing_is_said() -> None:
    model = nn.Sequential(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, eps=0.0))).eval()
    model[0][1].running_var[2] = 0.0
    with pytest.raises(
        canonize.CaptureError, match=r"^0\.1: it divides by nothing in 1 of 4 channels, .* 2: .* eps are"
    ):
        canonize.canonize(model, torch.zeros(1, 3, 5, 7))


def test_weights_that_hold_nan_are_named() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).eval()
    model[2].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(canonize.NotEquivalentError, match=r"^2\.weight: nothing can be proven of it: 1 of \d+ numbers"):
        canonize.canonize(model, torch.zeros(1, 3, 9, 9))


# ------------------------------------------------------------------------------------ one call, one module


def _twice(m: Any, x: Tensor) -> Any:
    return m.act(m.conv(m.act(m.conv(x))))


@pytest.mark.parametrize("tracer", TRACERS)
def test_a_module_called_twice_becomes_two(tracer: str) -> None:
    model = wired(_twice, conv=conv(3, 3), act=nn.ReLU()).double()
    built = _normalized(model, image(3), tracer)
    targets = [str(node.target) for node in built.graph.nodes if node.op == "call_module"]
    assert len(set(targets)) == len(targets) == 4
    assert {"conv", "conv_1"} <= set(targets)
    assert built.get_submodule("conv") is not built.get_submodule("conv_1")
    assert built.get_submodule("conv").weight is built.get_submodule("conv_1").weight is model.conv.weight


def test_each_call_of_a_folded_layer_has_its_own_weights() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.bn2(m.conv(m.bn1(m.conv(x)).relu())).relu()

    model = harden(wired(forward, conv=conv(3, 3), bn1=norm(3), bn2=norm(3))).double().eval()
    canonical = checks.assert_canonized(model, image(3, 7, 9), verify=False)
    assert canonical.get_submodule("conv").weight is not canonical.get_submodule("conv_1").weight


def test_two_modules_that_are_one_object() -> None:
    layer = conv(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer).double()
    built = _normalized(model, image(3, 7, 9))
    assert len({id(module) for module in _layers(built)}) == 3


# ------------------------------------------------------------------------------------------------- names


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 3, padding=1)
        self.norm = norm(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + x)


@pytest.mark.parametrize("tracer", TRACERS)
def test_names_are_kept_and_new_ones_say_where_they_come_from(tracer: str) -> None:
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(Block(), Block()))
    model.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 7, 2)))
    built = _normalized(harden(model), image(3), tracer)
    targets = [str(node.target) for node in built.graph.nodes if node.op == "call_module"]
    # A constant's affine stands below the name of the constant's owner.
    targets = [name.removesuffix(".affine") for name in targets]
    assert [name for name in targets if name.endswith(("conv", "norm")) or name.startswith("head")] == [
        "features.0.conv", "features.0.norm", "features.1.conv", "features.1.norm", "head.0", "head.1",
    ]  # fmt: skip
    new = [name for name in targets if name.endswith(("add", "relu"))]
    assert new == ["features.0.add", "features.0.relu", "features.1.add", "features.1.relu"]


def test_new_names_do_not_clash_with_old_ones() -> None:
    model = wired(lambda m, x: m.relu(m.add(x)) + F.relu(x) + x, relu=conv(3, 3, 1), add=conv(3, 3, 1)).double()
    built = _normalized(model, image(3))
    assert type(built.get_submodule("relu")) is nn.Conv2d
    assert type(built.get_submodule("add")) is nn.Conv2d


def test_names_that_python_or_torch_keeps_for_itself() -> None:
    """``x.float()``, ``x.half()`` and ``x.type()`` must not hide the methods of the module around them."""
    model = wired(lambda m, x: m.bn(m.conv(x)).double().sum((2, 3)).type_as(x), conv=conv(3, 4), bn=norm(4))
    canonical = checks.assert_canonized(harden(model).double().eval(), image(3), verify=False)
    canonical.float().double()
    assert callable(canonical.type)


# -------------------------------------------------------------------------------------------------- idle

IDLE: dict[str, Callable[[Any, Tensor], Any]] = {
    "dropout-module": lambda m, x: m.drop(m.conv(x)),
    "F.dropout": lambda m, x: F.dropout(m.conv(x), 0.5, m.training),
    "F.dropout2d": lambda m, x: F.dropout2d(m.conv(x), training=m.training),
    "identity": lambda m, x: m.idle(m.conv(m.idle(x))),
    "contiguous": lambda m, x: m.conv(x.contiguous()).clone(),
    "view-as-itself": lambda m, x: (lambda y: y.view_as(y))(m.conv(x)),
    "times-one-plus-zero": lambda m, x: m.conv(x) * 1.0 + 0.0,
    "no-padding": lambda m, x: m.conv(F.pad(x, (0, 0, 0, 0))),
    "expand-to-its-own-size": lambda m, x: (lambda y: y.expand(-1, 4, -1, -1))(m.conv(x)),
    "an-unused-branch": lambda m, x: (lambda y: (m.drop(y).sum(), y)[1])(m.conv(x)),
    "assertions": lambda m, x: (torch._assert(x.dim() == 4, "images"), m.conv(x))[1],
}


@pytest.mark.parametrize(
    ("name", "tracer"),
    [
        *((name, TRACERS[0]) for name in IDLE),
        *((name, TRACERS[1]) for name in ("F.dropout", "contiguous", "assertions")),
    ],
)
def test_idle_operations_are_gone(name: str, tracer: str) -> None:
    model = wired(IDLE[name], conv=conv(3, 4), drop=nn.Dropout(0.5), idle=nn.Identity())
    (layer,) = _layers(_normalized(model, image(3), tracer))
    assert type(layer) is nn.Conv2d


def test_what_only_looks_idle_stays() -> None:
    model = wired(lambda m, x: m.conv(x).flatten(2).unflatten(2, (3, 5)), conv=conv(3, 4))
    built = _normalized(model, image(3))
    assert len(_layers(built)) == 3


def test_dropout_that_is_never_switched_off_stays() -> None:
    """``F.dropout(x)`` without ``training=self.training`` is random in evaluation mode: no constant, no identity."""
    model = wired(lambda m, x: F.dropout(m.conv(x), 0.5), conv=conv(3, 4)).eval()
    canonical = canonize.canonize(model, torch.randn(2, 3, 5, 7), verify=False)
    images = torch.randn(2, 3, 5, 7)
    assert not torch.equal(canonical(images), canonical(images))


class _TableOfPositions(nn.Module):
    """A bias computed by layers from a buffer (Swin V2): the same on every call."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 4))
        self.conv = conv(3, 4)
        self.register_buffer("table", torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).sigmoid() + 2 * self.mlp(self.table)[:, None, None].sigmoid()


def test_layers_on_constants_are_evaluated_once() -> None:
    model = _TableOfPositions().double().eval()
    canonical = checks.assert_canonized(model, image(3), verify=False)
    assert not any(isinstance(layer, nn.Linear) for layer in canonical.modules())
    # Rounded once: not the float32 layers' own error on top of it.
    single = canonize.canonize(model.float(), torch.randn(2, 3, 5, 7))
    assert single.report.verdict.passed


class Encoded(nn.Module):
    """Coordinates that follow from the size, scaled and shifted, added to what a layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[3], dtype=x.dtype) * 0.5 + 1
        return self.norm(self.conv(x) + places / (places[-1:] + 1e-6) * 6.28)


def test_leaves_alone_affines_of_coordinates_that_follow_from_the_size() -> None:
    model = harden(Encoded().double().eval(), 2)
    canonical = canonize.canonize(model, torch.randn(2, 3, 5, 7, dtype=torch.float64), verify=False)
    for size in ((2, 3, 5, 7), (1, 3, 9, 4)):
        x = torch.randn(size, dtype=torch.float64)
        assert checks.relative_error(canonical(x), model(x)) <= 1e-10
    assert [fate.kind for fate in canonical.report.affines] == ["BatchNorm2d"]
    assert canonical.report.canonical


def _functions() -> Iterator[Any]:
    """All functions of torch that a trace may meet."""
    listed = [f for functions in get_overridable_functions().values() for f in functions]
    held = (torch._VF, torch._C._VariableFunctions, torch._C._nn, torch._C._linalg, torch._C._fft, torch._C._special)
    listed += [getattr(home, name) for home in held for name in dir(home) if not name.startswith("__")]
    for function in dict.fromkeys(f for f in listed if callable(f) and not isinstance(f, type)):
        # Methods are called by their name.
        if not hasattr(function, "__objclass__") and not str(getattr(function, "__qualname__", "")).startswith(
            "Tensor"
        ):
            yield function


def test_every_function_of_torch_is_found_again_by_its_name() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    count = 0
    for function in _functions():
        node = graph.call_function(function, (x,))
        found = resolve(target_name(node))
        assert found is function or found.__name__ == function.__name__.rstrip("_"), (target_name(node), function)
        count += 1
    assert count > 1000


class _Grid(nn.Module):
    """Rotary coordinates, as in DINOv3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        rows, columns = (torch.linspace(0, 1, x.shape[dim], dtype=x.dtype) for dim in (2, 3))
        down, right = torch.meshgrid([rows, columns], indexing="ij")
        return x * down + torch.block_diag(rows, columns).sum() * right


def test_functions_that_torch_hides_are_called() -> None:
    model = harden(_Grid()).double().eval()
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    canonical = canonize.canonize(model, x, verify=False)
    assert canonical.report.captured_by == "symbolic_trace"
    for inputs in (x, torch.randn(3, 2, 4, 7, dtype=torch.float64)):
        torch.testing.assert_close(canonical(inputs), model(inputs), rtol=0, atol=1e-12)


def test_a_layer_of_a_class_that_adds_nothing_becomes_torchs_own(tmp_path: Path) -> None:
    class Convolution(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 4, 3)

    class Norm(nn.GroupNorm):
        def __init__(self) -> None:
            super().__init__(1, 4)

    model = nn.Sequential(Convolution(), harden(nn.BatchNorm2d(4)), nn.ReLU(), Norm(), nn.Tanh()).eval()
    x = torch.randn(2, 3, 9, 9)
    found = canonize.canonize(model, x)
    assert type(found.get_submodule("0")) is nn.Conv2d
    assert type(found.get_submodule("3")) is nn.GroupNorm
    assert type(model[0]) is Convolution
    canonize.save(found, tmp_path / "model.pt")
    torch.testing.assert_close(canonize.load(tmp_path / "model.pt")(x), found(x))


CONSTANTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a quotient of integers": lambda m, x: m.conv(x) * (torch.arange(4).view(1, -1, 1, 1) / 3),
    "a table of integers": lambda m, x: m.conv(x) * torch.log(m.counts + 1e-7),
    "a float32 grid": lambda m, x: m.conv(x) * (torch.arange(4, dtype=torch.float32).view(1, -1, 1, 1) / 3),
    "a mean of integers": lambda m, x: m.conv(x) + torch.arange(4).float().std(),
}


@pytest.mark.parametrize("tracer", ["symbolic_trace", "torch.export"])
@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_known_as_exactly_as_the_reference_knows_them(name: str, tracer: str) -> None:
    counts = torch.arange(1, 5).view(1, -1, 1, 1)
    model = wired(CONSTANTS[name], conv=conv(3, 4), counts=counts).eval()
    if tracer == "torch.export":
        model.forward = _untraceable(model.forward)
    x = torch.randn(2, 3, 8, 8)
    found = canonize.canonize(model, x)
    assert found.report.verdict.passed
    torch.testing.assert_close(found(x), model(x))


def _untraceable(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def other(x: Tensor) -> Tensor:
        if type(x) is fx.Proxy or type(x).__name__ == "SizedProxy":
            raise TypeError("not by proxies")
        return forward(x)

    return other
