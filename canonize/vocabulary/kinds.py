"""What an operation is to a rule of relevance: kinds of modules, named once.

Explainers map rules to kinds; the kind of every module of a canonical model is asked for here and nowhere else. What is
of kind :attr:`Kind.UNKNOWN` has no rule: an explainer that took the plain gradient there would give relevances that
mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import nn

from canonize import nn as cnn
from canonize.vocabulary.resolve import resolve_module


class Kind(Enum):
    """What an operation does, as far as rules go."""

    LINEAR = "a linear layer"
    ACTIVATION = "element by element"
    THRESHOLD = "a threshold per channel"
    BATCH_NORM = "a normalisation by fixed statistics"
    SUM = "a sum of its inputs"
    AVERAGE = "linear, without weights of its own"
    GATE = "a product, element by element"
    PRODUCT = "a product of matrices"
    SOFTMAX = "softmax"
    NORMALISATION = "a normalisation by its own input"
    SCALE = "a product with numbers"
    OFFSET = "a constant that is added or multiplied"
    COPY = "copies of its inputs, or constants"
    CLOSED = "attention in one piece"
    SOURCE = "a constant, or what depends on sizes alone"
    DISCRETE = "whole numbers or conditions"
    UNKNOWN = "no rule is known"


LINEAR = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
THRESHOLDS = (cnn.ThreshReLU, cnn.ThreshLeakyReLU)
# Element by element: LRP hands relevance through.
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.RReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign, nn.LogSigmoid),
    *(nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold),
)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORMALISATIONS = (
    *(nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LocalResponseNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else [])),
)
AVERAGES = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(cnn.Mean, cnn.SumOver, nn.Upsample, nn.Fold),
)
MAXIMA = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# Each output is one of the inputs or a constant: the gradient hands its relevance back to that input.
COPIES = (
    *(cnn.Concat, cnn.ChannelPad, cnn.Rearrange, nn.Flatten, nn.Unflatten, nn.Unfold, nn.Identity, *DROPOUTS),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Embedding, *MAXIMA),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d),
    *(nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(getattr(nn, name) for name in ("CircularPad1d", "CircularPad2d", "CircularPad3d") if hasattr(nn, name)),
)

_MODULES: tuple[tuple[tuple[type, ...], Kind], ...] = (
    (LINEAR, Kind.LINEAR),
    (THRESHOLDS, Kind.THRESHOLD),
    (ACTIVATIONS, Kind.ACTIVATION),
    (BATCH_NORMS, Kind.BATCH_NORM),
    (NORMALISATIONS, Kind.NORMALISATION),
    ((cnn.Sum,), Kind.SUM),
    (AVERAGES, Kind.AVERAGE),
    ((cnn.Gate, nn.GLU), Kind.GATE),
    ((cnn.Offset,), Kind.OFFSET),
    ((cnn.Constant,), Kind.SOURCE),
    ((nn.MultiheadAttention,), Kind.CLOSED),
)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Which element they hand on depends on the input.
_CHOOSING = _names("""
max min amax amin maximum minimum fmax fmin aminmax sort msort topk kthvalue median nanmedian cummax cummin
max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d
""")
# Calls that stayed calls, by the name of torch's operator.
_CALLS: tuple[tuple[frozenset[str], Kind], ...] = (
    (_CHOOSING, Kind.COPY),
    (
        _names("""
        view reshape permute transpose t swapaxes swapdims movedim moveaxis squeeze unsqueeze expand expand_as repeat
        tile repeat_interleave getitem select narrow slice index_select flip fliplr flipud roll unflatten view_as
        reshape_as broadcast_to numpy_T T mT H mH adjoint diagonal diag diag_embed rot90 to type_as float double half
        bfloat16 _to_copy ravel flatten _unsafe_view cpu cuda type unfold im2col contiguous clone alias positive pos
        cat concat concatenate stack hstack vstack dstack column_stack row_stack chunk split split_with_sizes
        unsafe_chunk unsafe_split tensor_split unbind hsplit vsplit dsplit getattr gather take take_along_dim index
        masked_select masked_fill where tril triu pad constant_pad_nd reflection_pad1d reflection_pad2d
        reflection_pad3d replication_pad1d replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle
        channel_shuffle native_channel_shuffle narrow_copy meshgrid atleast_1d atleast_2d atleast_3d block_diag
        broadcast_tensors select_scatter slice_scatter diagonal_scatter index_copy index_fill masked_scatter assign
        values indices real resolve_conj resolve_neg conj conj_physical embedding
        """),
        Kind.COPY,
    ),
    (
        _names("""
        sum mean nansum nanmean cumsum trace diff sum_to_size avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d interpolate upsample
        upsample_nearest upsample_bilinear upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d
        upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
        _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d fold col2im add sub subtract
        """),
        Kind.AVERAGE,
    ),
    (_names("mul multiply div divide true_divide truediv neg negative"), Kind.SCALE),
    (
        _names("""
        matmul mm bmm dot inner mv outer ger kron tensordot vecdot linalg_vecdot linalg_matmul linear
        conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
        """),
        Kind.PRODUCT,
    ),
    (_names("softmax _softmax"), Kind.SOFTMAX),
    (_names("normalize"), Kind.NORMALISATION),
    (
        _names("""
        gt lt ge le eq ne greater less greater_equal less_equal not_equal argmax argmin argsort isnan isinf isfinite
        isposinf isneginf isreal isclose allclose equal logical_and logical_or logical_xor logical_not bitwise_and
        bitwise_or bitwise_xor bitwise_not invert and_ or_ xor not_ __and__ __or__ __xor__ nonzero count_nonzero any
        all bucketize searchsorted signbit one_hot bincount is_floating_point is_complex is_nonzero long int short char
        byte bool
        """),
        Kind.DISCRETE,
    ),
    (
        _names("""
        zeros ones full empty arange linspace eye tensor as_tensor scalar_tensor zeros_like ones_like full_like
        empty_like new_zeros new_ones new_full new_empty new_tensor size dim numel ndimension nelement stride finfo
        iinfo tril_indices triu_indices lift_fresh_copy
        """),
        Kind.SOURCE,
    ),
)
# Other names of copies in torch's autograd graph.
_MORE_COPIES = _names("""
copy_slices copy as_strided reshape_alias index_put split_with_sizes squeeze_multiple fill detach to_copy
""")
_COPYING = (*(names for names, kind in _CALLS if kind is Kind.COPY), _MORE_COPIES)
_COPIES = frozenset(name.strip("_").replace("_", "") for names in _COPYING for name in names)


def is_copy(operator: str) -> bool:
    """Whether an operator, in whatever spelling of words, only hands on elements of its inputs, or constants."""
    return operator.strip("_").replace("_", "").lower() in _COPIES


def operator_of(module: nn.Module) -> str:
    """The name of the operator that a call calls, however it is spelt; empty for foreign functions."""
    operation = resolve_module(module)
    return "" if operation is None else operation.name


def kind_of(module: nn.Module) -> Kind:
    """What a module is to a rule."""
    if type(module) is cnn.Call:
        return Kind.SOURCE if only_measures(module) else _kind_of_call(module)
    if isinstance(module, nn.Softmax):
        return Kind.SOFTMAX if module.dim is not None else Kind.UNKNOWN
    if isinstance(module, cnn.Rearrange) and operator_of(module) == "detach":
        return Kind.UNKNOWN
    of = type(module)
    if of not in _OF_TYPE:
        _OF_TYPE[of] = _kind_of_type(of)
    return _OF_TYPE[of]


_OF_TYPE: dict[type, Kind] = {}


def _kind_of_type(of: type) -> Kind:
    for types, kind in _MODULES:
        if issubclass(of, types):
            return kind
    if of.__module__.startswith("zennit.layer"):
        return Kind.AVERAGE
    return Kind.COPY if issubclass(of, COPIES) else Kind.UNKNOWN


def _kind_of_call(module: cnn.Call) -> Kind:
    operation = resolve_module(module)
    if operation is None:
        return Kind.COPY if module.target == "canonize.nn.assign" else Kind.UNKNOWN
    name, given = operation.name, operation.bound
    if name == "einsum":
        return _einsum(module)
    if given.get("rounding_mode") is not None:
        return Kind.UNKNOWN
    if name == "softmax" and softmax_dim(module) is None:
        return Kind.UNKNOWN
    if operation.row.asks:
        return Kind.SOURCE
    return next((kind for names, kind in _CALLS if name in names), Kind.UNKNOWN)


def _einsum(module: cnn.Call) -> Kind:
    """A sum along dimensions, or a product of two operands; each operand is linear in it."""
    equation, *operands = module.args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) > 2:
        return Kind.UNKNOWN
    return Kind.AVERAGE if len(operands) == 1 else Kind.PRODUCT


def reads_first_alone(module: nn.Module) -> bool:
    """Whether a call looks at the values of its first argument alone: others say a type, a shape, or places."""
    if isinstance(module, cnn.Rearrange):
        return True
    operation = resolve_module(module)
    return operation is not None and (operation.name in ("to", "type_as") or bool(operation.row.like))


def only_measures(module: nn.Module) -> bool:
    """Whether a call looks at no value of its inputs: a constant that gets an input's type or shape."""
    if not isinstance(module, cnn.Call) or not module.args or isinstance(module.args[0], cnn.Slot):
        return False
    return not isinstance(module, cnn.Rearrange) and reads_first_alone(module)


@dataclass(frozen=True)
class Operands:
    """Which inputs of a product are factors, how often each, and which one is added.

    Attributes
    ----------
    factors : dict
        Place of an input to the number of factors that it is: twice in ``torch.matmul(h, h)``.
    addend : int or None
        Place of the input that is a bias: of ``F.linear`` and convolutions whose bias is computed.
    divisors : frozenset of int
        Places of inputs that are divided by.
    """

    factors: dict[int, int]
    addend: int | None = None
    divisors: frozenset[int] = frozenset()


def operands_of(module: nn.Module, inputs: int) -> Operands:
    """What the inputs of a product, elementwise or of matrices, are to it."""
    operation = resolve_module(module)
    if operation is None or not operation.bound:
        return Operands(dict.fromkeys(range(inputs), 1))
    factors: dict[int, int] = {}
    addend, divisors = None, set()
    for name, value in operation.bound.items():
        for place in _slots(value):
            if name == "bias":
                addend = place
            else:
                factors[place] = factors.get(place, 0) + 1
                if name == "other" and "div" in operation.name:
                    divisors.add(place)
    return Operands(factors, addend, frozenset(divisors))


def _slots(value: Any) -> list[int]:
    if isinstance(value, cnn.Slot):
        return [value.index]
    if isinstance(value, tuple | list):
        return [place for item in value for place in _slots(item)]
    return []


def chooses(module: nn.Module) -> bool:
    """Whether it depends on the input which elements a copy hands on: maxima, sorting."""
    return isinstance(module, MAXIMA) or operator_of(module) in _CHOOSING


def softmax_dim(module: nn.Module) -> int | None:
    """Along which dimension a softmax, module or call, normalises."""
    if not isinstance(module, cnn.Call):
        return module.dim if isinstance(module, nn.Softmax) else None
    operation = resolve_module(module)
    dim: Any = None if operation is None else operation.bound.get("dim")
    return dim if isinstance(dim, int) else None


def described(module: nn.Module) -> str:
    """What to call a module in a message."""
    if kind_of(module) is Kind.PRODUCT:
        return "a matrix product"
    if isinstance(module, cnn.Call):
        return f"a call of {module.target}"
    return type(module).__name__
