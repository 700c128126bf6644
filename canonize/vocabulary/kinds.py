"""What an operation is to a rule of relevance: kinds of modules, named once.

Explainers map rules to kinds; the kind of every module of a canonical model is asked for here and nowhere else. What is
of kind :attr:`Kind.UNKNOWN` has no rule: an explainer that took the plain gradient there would give relevances that
mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from canonize import nn as cnn
from canonize.vocabulary.resolve import resolve_module
from canonize.vocabulary.table import ALIASES, AUTOGRAD_COPIES, ROWS, Kind

__all__ = ["Kind"]


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


def _copying() -> frozenset[str]:
    """Names of operators that hand on what they get, as autograd's graph has them: without underscores."""
    names = [name for name, row in ROWS.items() if row.kind is Kind.COPY]
    names += [other for other, name in ALIASES.items() if name in names]
    return frozenset(name.strip("_").replace("_", "") for name in (*names, *AUTOGRAD_COPIES))


_COPIES = _copying()


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
    return operation.row.kind or Kind.UNKNOWN


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
    if isinstance(module, MAXIMA):
        return True
    operation = resolve_module(module)
    return operation is not None and operation.row.chooses


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
