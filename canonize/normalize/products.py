r"""Products with a fixed matrix: linear layers, whichever operand is fixed and whichever way they are spelt.

.. math:: x W = \mathrm{linear}(x; W^\top), \qquad W x = \mathrm{linear}(x^\top; W)^\top, \qquad
          \beta b + \alpha\, x W = \mathrm{linear}(x; \alpha W^\top, \beta b)
"""

from __future__ import annotations

from typing import Any

from torch import nn

from canonize import nn as cnn
from canonize.normalize.constants import FixedValue
from canonize.normalize.operations import Built, Context, Layer, is_node, is_number, operation, plain, with_weights


def _matrix(value: Any, ndim: int = 2) -> bool:
    return isinstance(value, FixedValue) and value.is_tensor and value.value.ndim == ndim


def _floating(ctx: Context, *values: Any) -> bool:
    return all(ctx.shapes.is_floating(v) if is_node(v) else v.value.is_floating_point() for v in values)


def _turned(matrix: FixedValue, factor: float = 1.0) -> FixedValue:
    """A matrix transposed, times a number; computed, so that it is a parameter of its own."""
    return FixedValue(matrix.value.detach().T * factor, matrix.exact.detach().T * factor, matrix.name)


def _dense(ctx: Context, input: Any, weight: FixedValue, bias: Any = None) -> Layer:
    outputs, inputs = weight.value.shape
    return with_weights(ctx, nn.Linear(inputs, outputs, bias=bias is not None, device="meta"), input, weight, bias)


def _moved(*order: int) -> cnn.Rearrange:
    return cnn.Rearrange(".permute", (cnn.Slot(0), *order))


_SWAP = (cnn.Slot(0), -2, -1)


@operation("matmul", "mm", "mv")
def matmul(ctx: Context, input: Any, other: Any) -> Built:
    """A product of a value with a fixed matrix, from either side, or with a fixed vector."""
    if is_node(input) and _matrix(other) and _floating(ctx, input, other):
        return _dense(ctx, input, _turned(other))
    if is_node(input) and _matrix(other, 1) and _floating(ctx, input, other):
        row = FixedValue(other.value.detach()[None], other.exact.detach()[None], other.name)
        layer = _dense(ctx, input, row)
        layer.after = cnn.Rearrange(".squeeze", (cnn.Slot(0), -1))
        return layer
    shape = ctx.shapes.shape(other) if is_node(other) else None
    if shape is not None and len(shape) >= 2 and _matrix(input) and _floating(ctx, input, other):
        layer = _dense(ctx, other, FixedValue(input.value.detach(), input.exact.detach(), input.name))
        layer.before, layer.after = cnn.Rearrange(".transpose", _SWAP), cnn.Rearrange(".transpose", _SWAP)
        return layer
    return None


@operation("addmm")
def addmm(ctx: Context, input: Any, mat1: Any, mat2: Any, beta: Any = 1, alpha: Any = 1) -> Built:
    """``beta input + alpha mat1 @ mat2`` with a fixed matrix and a fixed bias."""
    if not is_node(mat1) or not _matrix(mat2) or not isinstance(input, FixedValue) or not plain(beta, alpha):
        return None
    if not input.is_tensor or not _floating(ctx, mat1, mat2, input) or not (is_number(beta) and is_number(alpha)):
        return None
    outputs = mat2.value.shape[1]
    if input.value.numel() not in (1, outputs) or input.value.shape[-1:] not in ((outputs,), (1,), ()):
        return None
    bias = FixedValue(
        (input.value.detach().reshape(-1) * beta).expand(outputs).clone(),
        (input.exact.detach().reshape(-1) * beta).expand(outputs).clone(),
        input.name,
    )
    return _dense(ctx, mat1, _turned(mat2, alpha), bias)


@operation("einsum")
def einsum(ctx: Context, equation: Any = None, tensors: Any = None, args: Any = None, path: Any = None) -> Built:
    """A sum over dimensions, or a product with a fixed matrix."""
    if args is not None:
        equation, *operands = args
        tensors = operands[0] if len(operands) == 1 and isinstance(operands[0], tuple | list) else operands
    if not isinstance(equation, str) or "->" not in equation or "." in equation or tensors is None:
        return None
    left, _, made = equation.replace(" ", "").partition("->")
    labels = left.split(",")
    if len(labels) != len(tensors) or any(len(set(one)) < len(one) for one in (*labels, made)):
        return None
    if len(tensors) == 1 and is_node(tensors[0]):
        return _summed(ctx, tensors[0], labels[0], made)
    if len(tensors) != 2:
        return None
    first = 0 if is_node(tensors[0]) else 1
    value, matrix = tensors[first], tensors[1 - first]
    if not is_node(value) or not _matrix(matrix) or not _floating(ctx, value, matrix):
        return None
    return _contracted(ctx, value, labels[first], matrix, labels[1 - first], made)


def _summed(ctx: Context, value: Any, labels: str, made: str) -> Built:
    """``einsum("bchw->bc", x)``."""
    if not set(made) <= set(labels) or not _floating(ctx, value):
        return None
    dims = [i for i, label in enumerate(labels) if label not in made]
    kept = [label for label in labels if label in made]
    order = [kept.index(label) for label in made]
    turned = _moved(*order) if order != sorted(order) else None
    if not dims:
        return Layer(_moved(*order), (value,))
    return Layer(cnn.SumOver(dims), (value,), after=turned)


def _contracted(ctx: Context, value: Any, labels: str, matrix: FixedValue, names: str, made: str) -> Built:
    """``einsum("bnd,od->bno", x, W)``: one dimension is exchanged for another."""
    gone = [name for name in names if name in labels and name not in made]
    new = [name for name in names if name not in labels and name in made]
    if len(gone) != 1 or len(new) != 1 or {*labels} - {*gone} | {*new} != {*made}:
        return None
    weight = matrix if names == new[0] + gone[0] else FixedValue(matrix.value.T, matrix.exact.T, matrix.name)
    layer = _dense(ctx, value, FixedValue(weight.value.detach(), weight.exact.detach(), weight.name))
    kept = [label for label in labels if label != gone[0]]
    if labels[-1] != gone[0]:
        layer.before = _moved(*(labels.index(label) for label in (*kept, gone[0])))
    have = [*kept, new[0]]
    if have != list(made):
        layer.after = _moved(*(have.index(label) for label in made))
    return layer
