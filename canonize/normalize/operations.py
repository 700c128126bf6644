"""How each of torch's operators is spelt as a module.

One builder per operator, under the name that the vocabulary gives it. A builder gets the call's arguments by the names
of the operator's schema, with graph nodes for tensors that depend on the input and ``FixedValue`` for those that do
not, and returns what the call is:

- ``Layer``: a module and the nodes it reads,
- ``Same``: nothing at all, the value of one of its inputs,
- ``None``: no special form; the call becomes a ``canonize.nn.Call``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.algebra.affine import EXACT, Affine, Statistics, batch_norm
from canonize.algebra.exact import exact_parameter
from canonize.graph.network import FrozenAffine, Origin
from canonize.graph.shapes import Shapes
from canonize.normalize.constants import FixedValue
from canonize.vocabulary import ROWS


@dataclass
class Layer:
    """A call as a module.

    Attributes
    ----------
    module : nn.Module
    inputs : tuple of fx.Node
    owner : str
        Qualified name of the layer whose parameters it uses; empty for operations without parameters.
    before : nn.Module, optional
        What its one input goes through first: a cast, a change of shape.
    after : nn.Module, optional
        What its output goes through.
    """

    module: nn.Module
    inputs: tuple[fx.Node, ...]
    owner: str = ""
    before: nn.Module | None = None
    after: nn.Module | None = None


@dataclass
class Same:
    """A call that hands its input through."""

    node: fx.Node


Built = Layer | Same | None


@dataclass
class Context:
    """What a builder may ask."""

    shapes: Shapes
    node: fx.Node
    path: str
    kind: str


Builder = Callable[..., Built]
OPERATIONS: dict[str, Builder] = {}


def operation(*names: str) -> Callable[[Builder], Builder]:
    """Register a builder under the names of its operation."""

    def register(builder: Builder) -> Builder:
        for name in names:
            OPERATIONS[name] = builder
        return builder

    return register


def is_node(value: Any) -> bool:
    """Whether an argument is a tensor that depends on the input."""
    return isinstance(value, fx.Node)


def is_number(value: Any) -> bool:
    """Whether an argument is a plain number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def reads_first_only(node: fx.Node) -> bool:
    """Whether of what a call gives only the first output is ever read."""
    return all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)


def plain(*values: Any) -> bool:
    """Whether no argument holds a node or a tensor."""
    for value in values:
        if isinstance(value, fx.Node | FixedValue | Tensor):
            return False
        if isinstance(value, tuple | list) and not plain(*value):
            return False
    return True


def cast_to(dtype: torch.dtype) -> cnn.Rearrange:
    """A cast as a layer."""
    return cnn.Rearrange(".to", (cnn.Slot(0), dtype))


def _owner(*values: Any) -> str:
    for value in values:
        if isinstance(value, FixedValue) and "." in value.name:
            return value.name.rpartition(".")[0]
    return ""


def _parameter(value: Any) -> nn.Parameter | None:
    """A fixed value as a parameter: the model's own, or a new one that remembers its float64 value."""
    if not isinstance(value, FixedValue) or not value.is_tensor:
        return None
    if isinstance(value.value, nn.Parameter):
        return value.value
    made = exact_parameter(value.exact, value.value)
    if value.computed is False:
        # A plain buffer: shared, not copied.
        made = nn.Parameter(value.value.detach(), requires_grad=False)
    return made


def _fixed_or_none(*values: Any) -> bool:
    return all(value is None or isinstance(value, FixedValue) for value in values)


# ------------------------------------------------------------------------------------------- linear layers


@operation("linear")
def linear(ctx: Context, input: Any, weight: Any, bias: Any = None) -> Built:
    """``F.linear`` with fixed weights."""
    if not is_node(input) or not isinstance(weight, FixedValue) or not _fixed_or_none(bias) or weight.value.ndim != 2:
        return None
    outputs, inputs = weight.value.shape
    return with_weights(ctx, nn.Linear(inputs, outputs, bias=bias is not None, device="meta"), input, weight, bias)


def with_weights(ctx: Context, module: Any, input: fx.Node, weight: Any, bias: Any) -> Layer:
    """A linear layer with these weights."""
    module.weight = _parameter(weight)
    if bias is not None:
        module.bias = _parameter(bias)
    return Layer(module, (input,), _owner(weight, bias))


def _convolution(dims: int, transposed: bool) -> Builder:
    cls: Any = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")

    def build(ctx: Context, input: Any, weight: Any, bias: Any = None, *rest: Any, **named: Any) -> Built:
        order = "stride padding output_padding groups dilation" if transposed else "stride padding dilation groups"
        options: dict[str, Any] = dict(zip(order.split(), rest, strict=False)) | named
        if not is_node(input) or not isinstance(weight, FixedValue) or not _fixed_or_none(bias):
            return None
        if not plain(*options.values()) or len(ctx.shapes.shape(input) or ()) != dims + 2:
            return None
        options = {k: v if isinstance(v, str | int) else _tuple(v, dims) for k, v in options.items()}
        groups = int(options.get("groups", 1))
        shape = weight.value.shape
        channels = (shape[0], shape[1] * groups) if transposed else (shape[1] * groups, shape[0])
        module = cls(*channels, tuple(shape[2:]), bias=bias is not None, device="meta", **options)
        return with_weights(ctx, module, input, weight, bias)

    return build


def _tuple(value: Sequence[int], dims: int) -> tuple[int, ...]:
    value = tuple(value)
    return value * dims if len(value) == 1 else value


@operation("convolution", "_convolution")
def convolution(
    ctx: Context,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: Any,
    output_padding: Any,
    groups: Any,
    **switches: Any,
) -> Built:
    """ATen's one convolution for all dimensions, which is what ``torch.jit.trace`` records."""
    if not isinstance(weight, FixedValue) or not isinstance(transposed, bool) or weight.value.ndim not in (3, 4, 5):
        return None
    build = _convolution(weight.value.ndim - 2, transposed)
    if transposed:
        return build(ctx, input, weight, bias, stride, padding, output_padding, groups, dilation)
    return build(ctx, input, weight, bias, stride, padding, dilation, groups)


for _dims in (1, 2, 3):
    operation(f"conv{_dims}d")(_convolution(_dims, transposed=False))
    operation(f"conv_transpose{_dims}d")(_convolution(_dims, transposed=True))


# ---------------------------------------------------------------------------------------- frozen affines


@operation("batch_norm")
def functional_batch_norm(
    ctx: Context,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Built:
    """``F.batch_norm`` with running statistics is an affine along dimension 1."""
    if training or running_mean is None or not is_node(input):
        return None
    return running_statistics(ctx, input, weight, bias, running_mean, running_var, eps)


@operation("native_batch_norm", "_native_batch_norm_legit")
def native_batch_norm_call(
    ctx: Context,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any = None,
    running_var: Any = None,
    training: Any = True,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> Built:
    """``torch.native_batch_norm`` in eval mode; only its first output means anything then."""
    if training is not False or running_mean is None or not reads_first_only(ctx.node):
        return None
    return running_statistics(ctx, input, weight, bias, running_mean, running_var, eps)


@operation("_native_batch_norm_legit_no_training")
def native_batch_norm(
    ctx: Context, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float, eps: float
) -> Built:
    """What torch.export makes of a BatchNorm in eval mode; only its first output is ever read."""
    return running_statistics(ctx, input, weight, bias, running_mean, running_var, eps)


def running_statistics(ctx: Context, input: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> Built:
    """A normalisation by fixed statistics: an affine along dimension 1."""
    if not is_node(input) or not isinstance(mean, FixedValue) or not isinstance(var, FixedValue):
        return None
    if not _fixed_or_none(weight, bias) or not plain(eps):
        return None
    shape = ctx.shapes.shape(input)
    if shape is None:
        return None
    gamma, beta = (None if value is None else value.exact for value in (weight, bias))
    affine = batch_norm(gamma, beta, mean.exact, var.exact, eps, len(shape))
    owner = _owner(mean, weight) or ctx.path
    read = Statistics(gamma, beta, mean.exact, var.exact, eps)
    return Layer(FrozenAffine(affine, [Origin(owner or ctx.node.name, ctx.kind)], read), (input,), owner)


def fixed_affine(ctx: Context, input: Any, scale: Any = 1.0, shift: Any = 0.0) -> Built:
    """``x * scale + shift`` with fixed operands that do not enlarge ``x``."""
    shape = ctx.shapes.shape(input)
    if shape is None or not ctx.shapes.is_floating(input):
        return None
    if ctx.shapes.shape(ctx.node) not in (shape, None):
        return None
    operands = []
    for value in (scale, shift):
        exact = value.exact if isinstance(value, FixedValue) else value
        tensor = _as_tensor(exact)
        if tensor.is_complex() or tensor.ndim > len(shape):
            return None
        tensor = tensor.detach().to(EXACT)
        operands.append(tensor.reshape((1,) * (len(shape) - tensor.ndim) + tuple(tensor.shape)))
    devices = {t.device for t in operands if t.device.type != "cpu"}
    if devices:
        operands = [t.to(next(iter(devices))) for t in operands]
    affine = Affine(operands[0], operands[1]).compress()
    if not affine.is_finite:  # a mask of minus infinities: nothing that a layer could absorb
        return None
    if affine.is_identity:
        return Same(input)
    owner = _owner(scale, shift)
    name = next((v.name for v in (scale, shift) if isinstance(v, FixedValue) and v.name), "")
    return Layer(FrozenAffine(affine, [Origin(name or ctx.path or ctx.node.name, ctx.kind)]), (input,), owner)


def _as_tensor(value: Any) -> Tensor:
    """A number as a float64 tensor: torch's default would round it to float32."""
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=EXACT)


def _fixed(value: Any) -> bool:
    return is_number(value) or (isinstance(value, FixedValue) and (value.is_tensor or is_number(value.value)))


def _negated(value: Any, factor: float) -> Any:
    if factor == 1:
        return value
    if isinstance(value, FixedValue):
        return FixedValue(value.value, value.exact * factor, value.name)
    return value * factor


@operation("add")
def add(ctx: Context, input: Any, other: Any, *, alpha: float = 1) -> Built:
    """A residual sum, or a fixed shift."""
    if not plain(alpha):
        return None
    if is_node(input) and is_node(other):
        return _sum(ctx, (input, other), (1.0, float(alpha)))
    if is_node(input) and _fixed(other):
        return fixed_affine(ctx, input, 1.0, _negated(other, alpha))
    if is_node(other) and _fixed(input):
        return fixed_affine(ctx, other, float(alpha), input)
    return None


@operation("sub")
def subtract(ctx: Context, input: Any, other: Any, *, alpha: float = 1) -> Built:
    """A difference, or a fixed shift."""
    if not plain(alpha):
        return None
    if is_node(input) and is_node(other):
        return _sum(ctx, (input, other), (1.0, -float(alpha)))
    if is_node(input) and _fixed(other):
        return fixed_affine(ctx, input, 1.0, _negated(other, -alpha))
    if is_node(other) and _fixed(input):
        return fixed_affine(ctx, other, -float(alpha), input)
    return None


@operation("rsub")
def reverse_subtract(ctx: Context, input: Any, other: Any, alpha: float = 1) -> Built:
    """``other - alpha * input``."""
    return subtract(ctx, other, input, alpha=alpha)


def _sum(ctx: Context, inputs: tuple[Any, ...], weights: tuple[float, ...]) -> Built:
    if not ctx.shapes.is_floating(ctx.node):
        return None
    return Layer(cnn.Sum(weights), inputs)


@operation("mul")
def multiply(ctx: Context, input: Any, other: Any) -> Built:
    """A gate, or a fixed scale."""
    if is_node(input) and is_node(other):
        if not (ctx.shapes.is_floating(input) and ctx.shapes.is_floating(other)):
            return None
        # The signal is the operand with the shape of the result; the gate is what is broadcast to it.
        signal, gate = input, other
        if ctx.shapes.shape(input) != ctx.shapes.shape(ctx.node):
            signal, gate = other, input
        return Layer(cnn.Gate(), (signal, gate))
    if is_node(input) and _fixed(other):
        return fixed_affine(ctx, input, other, 0.0)
    if is_node(other) and _fixed(input):
        return fixed_affine(ctx, other, input, 0.0)
    return None


@operation("div")
def divide(ctx: Context, input: Any, other: Any, *, rounding_mode: str | None = None) -> Built:
    """Division by something fixed."""
    if rounding_mode is not None or not is_node(input) or not _fixed(other):
        return None
    exact = _as_tensor(other.exact if isinstance(other, FixedValue) else other)
    inverse = 1.0 / exact.detach().to(EXACT)
    if not bool(torch.isfinite(inverse).all()):
        return None
    name = other.name if isinstance(other, FixedValue) else ""
    return fixed_affine(ctx, input, FixedValue(inverse, inverse, name), 0.0)


@operation("neg")
def negative(ctx: Context, input: Any) -> Built:
    """A scale of minus one."""
    return fixed_affine(ctx, input, -1.0) if is_node(input) else None


@operation("addcmul")
def addcmul(ctx: Context, input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Built:
    """``input + value * tensor1 * tensor2`` with two fixed tensors."""
    if not plain(value) or not _fixed(input):
        return None
    if is_node(tensor1) and _fixed(tensor2):
        return fixed_affine(ctx, tensor1, _negated(tensor2, value), input)
    if is_node(tensor2) and _fixed(tensor1):
        return fixed_affine(ctx, tensor2, _negated(tensor1, value), input)
    return None


# -------------------------------------------------------------------------------------- nothing happens


def dropout(ctx: Context, input: Any, p: Any = 0.5, training: Any = True, mode: Any = None) -> Built:
    """Dropout, or stochastic depth, that is switched off."""
    train = training if isinstance(training, bool) else True
    return Same(input) if is_node(input) and (not train or p == 0) else None


for _name, _row in ROWS.items():
    if _row.drops and _name != "native_dropout":
        operation(_name)(dropout)


@operation("copy")
def overwrite(ctx: Context, input: Any, src: Any, non_blocking: bool = False) -> Built:
    """``x.copy_(y)`` is ``y``, where it has the shape and the type of ``x``."""
    if not is_node(src) or not isinstance(ctx.shapes.value(ctx.node), Tensor):
        return None
    same = ctx.shapes.value(src).dtype == ctx.shapes.value(ctx.node).dtype
    return Same(src) if same and ctx.shapes.always(lambda new, old: new == old, src, ctx.node) else None


# ------------------------------------------------------------------------------------- sums over positions


@operation("mean")
def mean(ctx: Context, input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Built:
    """Global average pooling where it averages an image, else a mean over dimensions."""
    shape = ctx.shapes.shape(input) if is_node(input) else None
    if not shape or dtype is not None or not plain(dim, keepdim) or not ctx.shapes.is_floating(input):
        return None
    dims = _reduced(dim, len(shape))
    if keepdim and len(shape) in (3, 4, 5) and dims == tuple(range(2, len(shape))):
        pool: Any = getattr(nn, f"AdaptiveAvgPool{len(shape) - 2}d")
        return Layer(pool(1), (input,))
    return Layer(cnn.Mean(dims, bool(keepdim)), (input,))


@operation("sum")
def sum_over(ctx: Context, input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Built:
    """A sum over dimensions."""
    shape = ctx.shapes.shape(input) if is_node(input) else None
    if not shape or dtype is not None or not plain(dim, keepdim) or not ctx.shapes.is_floating(input):
        return None
    return Layer(cnn.SumOver(_reduced(dim, len(shape)), bool(keepdim)), (input,))


def _reduced(dim: Any, ndim: int) -> tuple[int, ...]:
    if dim is None or dim in ((), []):
        return tuple(range(ndim))
    return tuple(sorted(d % ndim for d in (dim if isinstance(dim, tuple | list) else (dim,))))


@operation("cat")
def concatenate(ctx: Context, tensors: Any, dim: Any = 0) -> Built:
    """A concatenation; of one tensor, nothing."""
    if not isinstance(tensors, tuple | list) or not all(is_node(t) for t in tensors) or not plain(dim):
        return None
    if len(tensors) == 1:
        return Same(tensors[0])
    return Layer(cnn.Concat(int(dim)), tuple(tensors))
