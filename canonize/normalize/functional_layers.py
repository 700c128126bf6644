"""Functional spellings of torch's own layers: activations, pooling, padding, resizing, reshaping."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from canonize.normalize.constants import FixedValue
from canonize.normalize.operations import (
    Builder,
    Built,
    Context,
    Layer,
    Same,
    cast_to,
    is_node,
    is_number,
    operation,
    plain,
    reads_first_only,
)
from canonize.vocabulary.layers import ACTIVATIONS, POOLINGS


def _activation(make: Any) -> Builder:
    """An activation whose arguments are those of its module."""

    def build(ctx: Context, input: Any, **options: Any) -> Built:
        options = {key: value for key, value in options.items() if value is not None or key != "dtype"}
        if not is_node(input) or not plain(*options.values()) or "dtype" in options:
            return None
        try:
            return Layer(make(**options), (input,))
        except AssertionError:  # bounds that the function takes and the layer does not: Hardtanh(0, 0)
            return None

    return build


for _name, _make in ACTIVATIONS.items():
    operation(_name)(_activation(_make))


@operation("elu")
def elu(ctx: Context, input: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Built:
    """ELU; ATen's version has two more scales, which other activations use."""
    if not is_node(input) or not plain(alpha, scale, input_scale) or (scale, input_scale) != (1.0, 1.0):
        return None
    return Layer(nn.ELU(alpha), (input,))


@operation("gelu")
def gelu(ctx: Context, input: Any, approximate: str = "none") -> Built:
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
def embedding(ctx: Context, weight: Any, indices: Any, max_norm: Any = None, **_: Any) -> Built:
    """A look-up in a fixed table."""
    if max_norm is not None or not is_node(indices) or not isinstance(weight, FixedValue) or weight.value.ndim != 2:
        return None
    count, size = weight.value.shape
    module = nn.Embedding(count, size, device="meta")
    own = isinstance(weight.value, nn.Parameter)
    module.weight = weight.value if own else nn.Parameter(weight.value.detach(), requires_grad=False)
    return Layer(module, (indices,), weight.name.rpartition(".")[0])


def _normalised(make: Any) -> Builder:
    def build(ctx: Context, input: Any, dim: Any = None, dtype: Any = None, half_to_float: Any = False) -> Built:
        if not is_node(input) or half_to_float or not isinstance(dim, int) or not plain(dtype):
            return None
        module = make(dim)
        # The input is cast first, then normalised.
        return Layer(module, (input,)) if dtype is None else Layer(module, (input,), before=cast_to(dtype))

    return build


for _names, _make in ((("softmax", "_softmax"), nn.Softmax), (("log_softmax", "_log_softmax"), nn.LogSoftmax)):
    operation(*_names)(_normalised(_make))
operation("softmin")(_normalised(nn.Softmin))


def _number(value: Any) -> Any:
    if isinstance(value, FixedValue):
        value = value.exact.item() if value.is_tensor and value.exact.numel() == 1 else value.value
    return value


@operation("clamp")
def clamp(ctx: Context, input: Any, min: Any = None, max: Any = None) -> Built:
    """A clamp between numbers is a rectifier or a hard tanh."""
    low, high = _number(min), _number(max)
    if not is_node(input) or not ctx.shapes.is_floating(input) or isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    if ctx.shapes.shape(ctx.node) != ctx.shapes.shape(input):  # a bound of more dimensions than the value
        return None
    if is_number(low) and is_number(high) and low < high:
        return Layer(nn.Hardtanh(float(low), float(high)), (input,))
    return Layer(nn.ReLU(), (input,)) if low == 0 and is_number(low) and high is None else None


@operation("clamp_min")
def clamp_min(ctx: Context, input: Any, min: Any) -> Built:
    """A clamp from below."""
    return clamp(ctx, input, min) if is_node(input) and not is_node(min) else None


@operation("maximum")
def maximum(ctx: Context, input: Any, other: Any) -> Built:
    """The larger of a value and a fixed number is a clamp from below."""
    return clamp_min(ctx, other, input) if is_node(other) and not is_node(input) else clamp_min(ctx, input, other)


def _pool(cls: Any) -> Builder:
    def build(ctx: Context, input: Any, **options: Any) -> Built:
        if not is_node(input) or not plain(*options.values()) or options.pop("return_indices", False):
            return None
        if not isinstance(ctx.shapes.value(ctx.node), Tensor) and not reads_first_only(ctx.node):
            return None  # ATen's maxima, and where they lie
        if options.get("stride") in ((), []):
            options["stride"] = None
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        return Layer(cls(**options), (input,))

    return build


for _name, _make in POOLINGS.items():
    operation(_name)(_pool(_make))

_PADDINGS = {"reflect": "ReflectionPad", "replicate": "ReplicationPad", "circular": "CircularPad"}


@operation("pad", "constant_pad_nd")
def pad(ctx: Context, input: Any, pad: Any, mode: Any = "constant", value: Any = None) -> Built:
    """Padding by fixed amounts."""
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
def reshape(ctx: Context, input: Any, shape: Any = None, dtype: Any = None) -> Built:
    """``x.view(n, -1)`` is a flattening; other reshapes stay what they are."""
    before, after = (ctx.shapes.shape(input), ctx.shapes.shape(ctx.node)) if is_node(input) else (None, None)
    if before is None or after is None:
        return None
    if dtype is not None:
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
