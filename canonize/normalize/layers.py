"""Functional spellings of torch's own layers: activations, pooling, padding, resizing, reshaping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from canonize.normalize.constants import FixedValue
from canonize.normalize.operations import Builder, Built, Context, Layer, Same, is_node, is_number, operation, plain


def _activation(make: Any, *names: str) -> Builder:
    """An activation whose functional arguments are those of its module, in order."""

    def build(ctx: Context, input: Any, *args: Any, **named: Any) -> Built:
        options = dict(zip(names, args, strict=False)) | named
        options.pop("inplace", None)
        options = {key: value for key, value in options.items() if key != "_stacklevel"}
        if not is_node(input) or not plain(*options.values()) or options.pop("dtype", None) is not None:
            return None
        if "training" in options and options.pop("training"):
            return None
        return Layer(make(**options), (input,))

    return build


_ACTIVATIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "relu": (nn.ReLU, ("inplace",)),
    "relu6": (nn.ReLU6, ("inplace",)),
    "hardtanh": (nn.Hardtanh, ("min_val", "max_val", "inplace")),
    "leaky_relu": (nn.LeakyReLU, ("negative_slope", "inplace")),
    "selu": (nn.SELU, ("inplace",)),
    "celu": (nn.CELU, ("alpha", "inplace")),
    "silu": (nn.SiLU, ("inplace",)),
    "mish": (nn.Mish, ("inplace",)),
    "hardswish": (nn.Hardswish, ("inplace",)),
    "hardsigmoid": (nn.Hardsigmoid, ("inplace",)),
    "sigmoid": (nn.Sigmoid, ()),
    "tanh": (nn.Tanh, ()),
    "softplus": (nn.Softplus, ("beta", "threshold")),
    "softsign": (nn.Softsign, ()),
    "softshrink": (nn.Softshrink, ("lambd",)),
    "hardshrink": (nn.Hardshrink, ("lambd",)),
    "tanhshrink": (nn.Tanhshrink, ()),
    "logsigmoid": (nn.LogSigmoid, ()),
    "log_sigmoid": (nn.LogSigmoid, ()),
    "threshold": (nn.Threshold, ("threshold", "value", "inplace")),
    "glu": (nn.GLU, ("dim",)),
}
for _name, (_make, _names) in _ACTIVATIONS.items():
    operation(_name)(_activation(_make, *_names))


@operation("elu")
def elu(
    ctx: Context, input: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0, inplace: bool = False
) -> Built:
    """ELU; ATen's version has two more scales, which other activations use."""
    if isinstance(scale, bool):  # torch.nn.functional.elu(input, alpha, inplace)
        scale = 1.0
    if not is_node(input) or not plain(alpha, scale, input_scale) or (scale, input_scale) != (1.0, 1.0):
        return None
    return Layer(nn.ELU(alpha), (input,))


@operation("gelu")
def gelu(ctx: Context, input: Any, *, approximate: str = "none") -> Built:
    """GELU."""
    return Layer(nn.GELU(approximate), (input,)) if is_node(input) else None


@operation("prelu")
def prelu(ctx: Context, input: Any, weight: Any) -> Built:
    """PReLU with a fixed slope."""
    if not is_node(input) or not isinstance(weight, FixedValue) or weight.value.ndim > 1:
        return None
    module = nn.PReLU(weight.value.numel())
    value = weight.value
    if isinstance(value, nn.Parameter) and value.ndim == 1:
        module.weight = value
    else:
        module.weight = nn.Parameter(value.detach().reshape(-1), requires_grad=False)
    return Layer(module, (input,), weight.name.rpartition(".")[0])


@operation("embedding")
def embedding(ctx: Context, weight: Any, indices: Any, *_: Any, **__: Any) -> Built:
    """ATen's look-up in a fixed table; ``F.embedding`` has another order."""
    named = isinstance(ctx.node.target, torch._ops.OpOverload)
    if not named or not is_node(indices) or not isinstance(weight, FixedValue) or weight.value.ndim != 2:
        return None
    count, size = weight.value.shape
    module = nn.Embedding(count, size, device="meta")
    own = isinstance(weight.value, nn.Parameter)
    module.weight = weight.value if own else nn.Parameter(weight.value.detach(), requires_grad=False)
    return Layer(module, (indices,), weight.name.rpartition(".")[0])


@operation("softmax", "_softmax")
def softmax(ctx: Context, input: Any, dim: Any = None, *_: Any, dtype: Any = None, **__: Any) -> Built:
    """Softmax along a fixed dimension."""
    if not is_node(input) or dtype is not None or not isinstance(dim, int):
        return None
    return Layer(nn.Softmax(dim), (input,))


@operation("log_softmax")
def log_softmax(ctx: Context, input: Any, dim: Any = None, *_: Any, dtype: Any = None, **__: Any) -> Built:
    """Logarithm of softmax along a fixed dimension."""
    if not is_node(input) or dtype is not None or not isinstance(dim, int):
        return None
    return Layer(nn.LogSoftmax(dim), (input,))


def _number(value: Any) -> Any:
    if isinstance(value, FixedValue):
        value = value.exact.item() if value.is_tensor and value.exact.numel() == 1 else value.value
    return value


@operation("clamp", "clip", "hardtanh_")
def clamp(ctx: Context, input: Any, min: Any = None, max: Any = None) -> Built:
    """A clamp between numbers is a rectifier or a hard tanh."""
    low, high = _number(min), _number(max)
    if not is_node(input) or not ctx.shapes.is_floating(input) or isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    if is_number(low) and is_number(high) and low < high:
        return Layer(nn.Hardtanh(float(low), float(high)), (input,))
    return Layer(nn.ReLU(), (input,)) if low == 0 and is_number(low) and high is None else None


@operation("clamp_min", "maximum")
def clamp_min(ctx: Context, input: Any, min: Any) -> Built:
    """A clamp from below."""
    if is_node(min) and not is_node(input):
        input, min = min, input
    return clamp(ctx, input, min) if is_node(input) and not is_node(min) else None


def _pool(cls: Any, *names: str) -> Builder:
    def build(ctx: Context, input: Any, *args: Any, **named: Any) -> Built:
        options = dict(zip(names, args, strict=False)) | named
        if not is_node(input) or not plain(*options.values()) or options.pop("return_indices", False):
            return None
        if options.get("stride") in ((), []):
            options["stride"] = None
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        return Layer(cls(**options), (input,))

    return build


for _d in (1, 2, 3):
    _average = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    _maximum = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    operation(f"avg_pool{_d}d")(_pool(getattr(nn, f"AvgPool{_d}d"), *_average))
    operation(f"max_pool{_d}d")(_pool(getattr(nn, f"MaxPool{_d}d"), *_maximum))
    operation(f"adaptive_avg_pool{_d}d")(_pool(getattr(nn, f"AdaptiveAvgPool{_d}d"), "output_size"))
    operation(f"adaptive_max_pool{_d}d")(_pool(getattr(nn, f"AdaptiveMaxPool{_d}d"), "output_size", "return_indices"))

_PADDINGS = {"reflect": "ReflectionPad", "replicate": "ReplicationPad", "circular": "CircularPad"}


@operation("pad", "constant_pad_nd")
def pad(ctx: Context, input: Any, pad: Any, mode: Any = "constant", value: Any = None) -> Built:
    """Padding by fixed amounts."""
    if is_number(mode):  # aten.constant_pad_nd(input, pad, value)
        mode, value = "constant", mode
    if not is_node(input) or not plain(pad, mode, value) or len(pad) not in (2, 4, 6):
        return None
    if not any(pad):
        return Same(input)
    dims = len(pad) // 2
    if mode == "constant":
        return Layer(getattr(nn, f"ConstantPad{dims}d")(tuple(pad), float(value or 0.0)), (input,))
    cls = getattr(nn, f"{_PADDINGS.get(mode, '')}{dims}d", None)
    return Layer(cls(tuple(pad)), (input,)) if cls is not None else None


@operation("interpolate", "upsample")
def interpolate(
    ctx: Context,
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: bool = False,
) -> Built:
    """Resizing by a fixed factor or to a fixed size."""
    if not is_node(input) or not plain(size, scale_factor) or antialias:
        return None
    module = nn.Upsample(size, scale_factor, mode, align_corners, recompute_scale_factor)
    return Layer(module, (input,))


@operation("pixel_shuffle")
def pixel_shuffle(ctx: Context, input: Any, upscale_factor: int) -> Built:
    """Pixel shuffle."""
    return Layer(nn.PixelShuffle(upscale_factor), (input,)) if is_node(input) else None


@operation("pixel_unshuffle")
def pixel_unshuffle(ctx: Context, input: Any, downscale_factor: int) -> Built:
    """Pixel unshuffle."""
    return Layer(nn.PixelUnshuffle(downscale_factor), (input,)) if is_node(input) else None


@operation("channel_shuffle")
def channel_shuffle(ctx: Context, input: Any, groups: int) -> Built:
    """Channel shuffle."""
    return Layer(nn.ChannelShuffle(groups), (input,)) if is_node(input) else None


@operation("flatten")
def flatten(ctx: Context, input: Any, start_dim: int = 0, end_dim: int = -1) -> Built:
    """Flatten a range of dimensions."""
    if not is_node(input) or not plain(start_dim, end_dim):
        return None
    return _unless_idle(ctx, input, nn.Flatten(start_dim, end_dim))


@operation("view", "reshape")
def reshape(ctx: Context, input: Any, *shape: Any) -> Built:
    """``x.view(n, -1)`` is a flattening; other reshapes stay what they are."""
    before, after = (ctx.shapes.shape(input), ctx.shapes.shape(ctx.node)) if is_node(input) else (None, None)
    if before is None or after is None:
        return None
    if isinstance(shape[0], torch.dtype):
        return None
    if ctx.shapes.always(lambda old, new: len(new) == 2 < len(old) and new[0] == old[0], input, ctx.node):
        return Layer(nn.Flatten(1), (input,))
    return None


def _unless_idle(ctx: Context, input: Any, module: nn.Module) -> Built:
    """Drop a flattening of something that is flat already."""
    before, after = ctx.shapes.shape(input), ctx.shapes.shape(ctx.node)
    if before is not None and before == after and len(before) <= 2:
        return Same(input)
    return Layer(module, (input,))
