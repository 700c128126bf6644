"""Random programs: valid models on feature maps, printable, and rebuilt from what was printed.

A program is plain data. ``build(eval(text))`` with the text that a failing test printed is the failing model::

    from tests.random_models import Program, Step, build
    model = build(Program(seed=3, steps=(Step("conv", (0,), outputs=4, padding=1), Step("norm", (1,)))))
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.statistics import harden
from tests.zoo.case import conv, norm

CHANNELS, HEIGHT, WIDTH = 4, 6, 7
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes
    ----------
    operation : str
        Key of ``OPERATIONS``.
    sources : tuple of int
        Values it reads: 0 is the input, ``i`` the result of step ``i - 1``.
    module_of : int or None
        Index of an earlier step whose module this one calls again.
    outputs, kernel, stride, padding, dilation, groups, mode, bias, eps
        Options of the operation; it ignores those it does not know. For ``relu``, `bias` means in place.
    """

    operation: str
    sources: tuple[int, ...]
    module_of: int | None = None
    outputs: int = 0
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    mode: str = "zeros"
    bias: bool = True
    eps: float = 1e-3

    def __repr__(self) -> str:
        changed = [
            f"{option.name}={value!r}"
            for option in dataclasses.fields(self)[2:]
            if (value := getattr(self, option.name)) != option.default
        ]
        return f"Step({', '.join([repr(self.operation), repr(self.sources), *changed])})"


@dataclass(frozen=True)
class Program:
    """A model as data: the seed of its parameters and its steps; the last value is the output."""

    seed: int
    steps: tuple[Step, ...]


def _conv(step: Step, shape: Shape) -> nn.Module:
    return conv(
        shape[0],
        step.outputs,
        step.kernel,
        stride=step.stride,
        padding=step.padding,
        dilation=step.dilation,
        groups=step.groups,
        bias=step.bias,
        padding_mode=step.mode,
    )


def _transposed(step: Step, shape: Shape) -> nn.Module:
    options: dict[str, Any] = {"stride": step.stride, "padding": step.padding, "groups": step.groups, "bias": step.bias}
    return conv(shape[0], step.outputs, step.kernel, transposed=True, **options)


# Operations that own a module: step and shape (without the batch) to module.
MODULES: dict[str, Any] = {
    "conv": _conv,
    "transposed": _transposed,
    "norm": lambda step, shape: norm(shape[0], 2, step.eps),
    "relu": lambda step, shape: nn.ReLU(inplace=step.bias),
    "relu6": lambda step, shape: nn.ReLU6(),
    "leaky": lambda step, shape: nn.LeakyReLU(0.2),
    "prelu": lambda step, shape: nn.PReLU(shape[0]),
    "silu": lambda step, shape: nn.SiLU(),
    "tanh": lambda step, shape: nn.Tanh(),
    "average": lambda step, shape: nn.AvgPool2d(step.kernel, step.stride, min(step.padding, step.kernel // 2)),
    "maximum": lambda step, shape: nn.MaxPool2d(step.kernel, step.stride, min(step.padding, step.kernel // 2)),
    "dropout": lambda step, shape: nn.Dropout(0.3),
    "identity": lambda step, shape: nn.Identity(),
    "linear": lambda step, shape: nn.Linear(_size(shape), step.outputs, bias=step.bias),
    "norm1d": lambda step, shape: norm(shape[0], 1, step.eps),
}

# Operations without one.
FUNCTIONS: dict[str, Any] = {
    "functional relu": lambda x: F.relu(x),
    "method relu": lambda x: x.relu(),
    "pad": lambda x: F.pad(x, (1, 0, 0, 2)),
    "upsample": lambda x: F.interpolate(x, scale_factor=2),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "flatten": lambda x: x.flatten(1),
    "half": lambda x: x.chunk(2, 1)[1],
    "scale": lambda x: x * 0.5 + 1.0,
    "sum": lambda x, y: x + y,
    "product": lambda x, y: x * torch.sigmoid(y),
    "concat": lambda *parts: torch.cat(parts, 1),
}


def _size(shape: Shape) -> int:
    return math.prod(shape)


class RandomModel(nn.Module):
    """The model that a program describes."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.layers = nn.ModuleDict()
        shapes = [(CHANNELS, HEIGHT, WIDTH)]
        for index, step in enumerate(program.steps):
            if step.operation in MODULES and step.module_of is None:
                self.layers[f"layer{index}"] = MODULES[step.operation](step, shapes[step.sources[0]])
            shape = result_shape(step, [shapes[source] for source in step.sources])
            if shape is None:
                raise ValueError(f"step {index} does not fit its operands: {step}")
            shapes.append(shape)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for index, step in enumerate(self.program.steps):
            arguments = [values[source] for source in step.sources]
            if step.operation in MODULES:
                owner = index if step.module_of is None else step.module_of
                values.append(self.layers[f"layer{owner}"](*arguments))
            else:
                values.append(FUNCTIONS[step.operation](*arguments))
        return values[-1]


def build(program: Program) -> nn.Module:
    """The model of `program` with hard statistics, in float64 and evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(program.seed)
        return harden(RandomModel(program), program.seed).double().eval()


def inputs(batch: int) -> tuple[Tensor]:
    """Feature maps that every program accepts."""
    return (torch.randn(batch, CHANNELS, HEIGHT, WIDTH),)


def result_shape(step: Step, shapes: list[Shape]) -> Shape | None:
    """Shape of a step's result without the batch, None where torch would refuse the step."""
    shape = shapes[0]
    channels, positions = shape[0], shape[1:]
    if step.operation == "linear":
        return (step.outputs,)
    if step.operation == "flatten":
        return (_size(shape),)
    if step.operation in ("sum", "product"):
        return shape if shape == shapes[1] else None
    if step.operation == "concat":
        return (sum(part[0] for part in shapes), *positions) if len({part[1:] for part in shapes}) == 1 else None
    if step.operation == "half":
        return (channels // 2, *positions) if channels % 2 == 0 else None
    if step.operation == "mean":
        return (channels, 1, 1)
    if step.operation == "pad":
        return (channels, positions[0] + 2, positions[1] + 1)
    if step.operation == "upsample":
        return (channels, 2 * positions[0], 2 * positions[1])
    if step.operation in ("conv", "transposed", "average", "maximum"):
        return _windowed(step, channels, positions)
    return shape


def _windowed(step: Step, channels: int, positions: Shape) -> Shape | None:
    """Shape behind a sliding window."""
    if step.operation == "transposed":
        sizes = [(size - 1) * step.stride - 2 * step.padding + step.kernel for size in positions]
    elif step.operation == "conv":
        if step.mode != "zeros" and step.padding >= min(positions):
            return None
        reach = step.dilation * (step.kernel - 1) + 1
        sizes = [(size + 2 * step.padding - reach) // step.stride + 1 for size in positions]
    else:
        padding = min(step.padding, step.kernel // 2)
        sizes = [(size + 2 * padding - step.kernel) // step.stride + 1 for size in positions]
    if min(sizes) < 1:
        return None
    return (channels if step.operation in ("average", "maximum") else step.outputs, *sizes)


def is_valid(step: Step, shapes: list[Shape]) -> bool:
    """Whether torch accepts the step on operands of these shapes, with a result that is not large."""
    shape = result_shape(step, shapes)
    return shape is not None and _size(shape) <= 1500


@st.composite
def programs(draw: st.DrawFn, longest: int = 10) -> Program:
    """Hypothesis strategy: programs of up to `longest` steps and a linear tail, mostly of what canonizing is about."""
    shapes: list[Shape] = [(CHANNELS, HEIGHT, WIDTH)]
    steps: list[Step] = []

    def append(step: Step) -> None:
        steps.append(step)
        shape = result_shape(step, [shapes[source] for source in step.sources])
        assert shape is not None
        shapes.append(shape)

    for _ in range(draw(st.integers(2, longest))):
        step = draw(_steps(steps, shapes))
        if is_valid(step, [shapes[source] for source in step.sources]):
            append(step)
    if draw(st.booleans()):
        append(Step("flatten", (len(steps),)))
        append(Step("linear", (len(steps),), outputs=draw(st.integers(2, 4)), bias=draw(st.booleans())))
        if draw(st.booleans()):
            append(Step("norm1d", (len(steps),)))
    if not any(step.operation in ("norm", "norm1d") for step in steps):
        append(Step("norm" if len(shapes[-1]) == 3 else "norm1d", (len(steps),)))
    return Program(draw(st.integers(0, 2**16)), tuple(steps))


_FREQUENT = ("norm", "norm", "norm", "conv", "conv", "relu", "functional relu")
_UNARY = (
    *_FREQUENT,
    *("transposed", "relu6", "leaky", "prelu", "silu", "tanh", "average", "maximum", "dropout", "identity"),
    *("method relu", "pad", "upsample", "mean", "half", "scale"),
)


@st.composite
def _steps(draw: st.DrawFn, steps: list[Step], shapes: list[Shape]) -> Step:
    # Mostly a chain; sometimes an earlier value is read a second time.
    source = len(shapes) - 1 if draw(st.integers(0, 4)) else draw(st.integers(0, len(shapes) - 1))
    channels = shapes[source][0]
    kind = draw(st.sampled_from(("unary", "unary", "unary", "binary", "again")))
    if kind == "binary":
        other = draw(st.sampled_from([i for i, shape in enumerate(shapes) if shape[1:] == shapes[source][1:]]))
        operation = draw(st.sampled_from(("sum", "concat", "product")))
        return Step(operation, (source, other))
    if kind == "again" and (owners := [i for i, step in enumerate(steps) if _reusable(step)]):
        owner = draw(st.sampled_from(owners))
        if shapes[steps[owner].sources[0]][0] == channels:
            return dataclasses.replace(steps[owner], sources=(source,), module_of=owner)
    operation = draw(st.sampled_from(_UNARY))
    if operation not in ("conv", "transposed", "average", "maximum"):
        flag = draw(st.booleans()) and (operation != "relu" or _may_be_overwritten(source, steps))
        return Step(operation, (source,), bias=flag, eps=draw(st.sampled_from((1e-5, 1e-3, 0.5))))
    groups = draw(st.sampled_from([g for g in (1, 1, 2, channels) if channels % g == 0]))
    return Step(
        operation,
        (source,),
        outputs=groups * draw(st.integers(1, max(1, 6 // groups))),
        kernel=draw(st.integers(1, 3)),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 2)),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        mode=draw(st.sampled_from(("zeros", "zeros", "reflect", "replicate", "circular"))),
        bias=draw(st.booleans()),
    )


def _reusable(step: Step) -> bool:
    in_place = step.operation == "relu" and step.bias
    return step.operation in MODULES and step.module_of is None and not in_place


def _may_be_overwritten(source: int, steps: list[Step]) -> bool:
    """Whether a rectifier may work in place on a value: torch refuses the backward pass where it was saved before."""
    kept = ("conv", "transposed", "norm", "sum", "concat")
    return source == len(steps) > 0 and steps[-1].operation in kept
