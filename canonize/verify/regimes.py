"""What two models are fed to tell them apart: several kinds of values, batch sizes and image sizes.

A fault may show only for some inputs: a slipped bias drowns in large inputs, a threshold that is off by a little is
crossed only by small ones, a wrong border shows where the input is not zero. So each kind of value is a regime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from canonize.inputs import Inputs
from canonize.verify.oracle import representable

Fill = Callable[[Tensor, torch.Generator], Tensor]

# Sides up to this are cheap enough as they are; larger ones shrink to about two sevenths, 224 to 64.
_LARGE_SIDE, _SMALLEST_SIDE, _STRIDE, _SHRINK = 96, 64, 32, 2 / 7
# What is fed in many rows at once shrinks further.
_HALVED_SIDE, _LEAST_SIDE = 32, 16


@dataclass(frozen=True)
class Regime:
    """One kind of input values.

    Attributes
    ----------
    name : str
        ``normal``, ``zeros``, ...
    fill : callable
        From a floating example tensor and a generator to a float64 tensor of the same shape on the CPU.
    alone : bool
        Whether it is also fed by itself: what holds of all elements at once (none negative, say) shows in no batch with
        other rows; what holds of one (it is large) does.
    """

    name: str
    fill: Fill
    alone: bool = True


@dataclass(frozen=True)
class CheckedCase:
    """One input to feed to both models.

    Attributes
    ----------
    name : str
        ``normal, batch 2``.
    inputs : Inputs
        Floating tensors in float64.
    regime : str
        ``normal``, ..., ``examples``, ``mixed``, ``layout``, ``resized`` or ``not finite``.
    required : bool
        Whether the reference is expected to run on it; a case it refuses is then worth a note.
    rows : tuple of str
        Regimes of the rows, where each is to be judged by its own scale.
    """

    name: str
    inputs: Inputs
    regime: str
    required: bool = True
    rows: tuple[str, ...] = ()


def _normal(example: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(example.shape, generator=generator, dtype=torch.float64)


def _image(example: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(example.shape, generator=generator, dtype=torch.float64)


def _impulse(example: Tensor, generator: torch.Generator) -> Tensor:
    """A single element that is not zero."""
    filled = torch.zeros(example.shape, dtype=torch.float64)
    filled.view(-1)[int(torch.randint(max(filled.numel(), 1), (), generator=generator))] = 1.0
    return filled


NORMAL = Regime("normal", _normal)
REGIMES: tuple[Regime, ...] = (
    NORMAL,
    Regime("uniform", _image),
    Regime("large", lambda example, generator: 100 * _normal(example, generator), False),
    Regime("small", lambda example, generator: 1e-3 * _normal(example, generator)),
    Regime("zeros", lambda example, generator: torch.zeros(example.shape, dtype=torch.float64)),
    # What people feed and no normal draw resembles.
    Regime("pixels", lambda example, generator: (256 * _image(example, generator)).floor()),
    Regime("ones", lambda example, generator: torch.ones(example.shape, dtype=torch.float64)),
    Regime("one pixel", _impulse),
    Regime("negative", lambda example, generator: -_normal(example, generator).abs() - 0.1),
    # What saturates late.
    Regime("huge", lambda example, generator: 1e4 * _normal(example, generator), False),
)
# Enough for a quick verdict: the middle of the road, all that saturates, and biases alone.
QUICK = tuple(regime for regime in REGIMES if regime.name in ("normal", "large", "zeros"))


# Rows that are no numbers, between rows that are: each row is answered alone, and no NaN silently repaired. What an
# infinity becomes is left open: behind a scale of 0 it is NaN, where a canonical model has the constant.
NONFINITE: tuple[Regime, ...] = (
    NORMAL,
    Regime("NaN", lambda example, generator: torch.full(example.shape, torch.nan, dtype=torch.float64)),
    NORMAL,
    Regime("infinite", lambda example, generator: torch.inf * _normal(example, generator).sign()),
)


def fill(regime: Regime, inputs: Inputs, generator: torch.Generator) -> Inputs:
    """Replace floating tensors by values of a regime, in float64; integers, booleans and scalars stay as given.

    Parameters
    ----------
    regime : Regime
    inputs : Inputs
        Say shapes and devices.
    generator : torch.Generator
        On the CPU, so that every device sees the same values.
    """

    def one(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.dim():
            return regime.fill(tensor, generator).to(tensor.device)
        return tensor

    return inputs.to(dtype=torch.float64).map(one)


def fill_rows(regimes: Sequence[Regime], inputs: Inputs, generator: torch.Generator) -> Inputs:
    """Fill the i-th row of every floating tensor with values of the i-th regime."""

    def mixed(tensor: Tensor, generator: torch.Generator) -> Tensor:
        if tensor.shape[0] != len(regimes):
            return NORMAL.fill(tensor, generator)
        return torch.cat([r.fill(tensor[i : i + 1], generator) for i, r in enumerate(regimes)])

    return fill(Regime("mixed", mixed), inputs, generator)


def other_sizes(inputs: Inputs) -> Iterator[Inputs]:
    """The same inputs with other spatial sizes (dimensions behind the second, floating tensors), where there are any.

    One and a half times the size; about three quarters of it; and sides one below and one above it, which differ and
    stay odd through poolings and strides (63, 31, 15, ... and 65, 33, 17, ...), where rounding up or down shows.
    """
    changes: tuple[Callable[[int, int], int], ...] = (
        lambda size, axis: size + max(1, size // 2),
        lambda size, axis: max(1, size * 3 // 8 * 2),
        lambda size, axis: max(1, size + (1 if axis % 2 else -1)),
    )
    for change in changes:
        other = _resized(inputs, change)
        if other is not None:
            yield other


def shorten(inputs: Inputs) -> Inputs | None:
    """The same inputs with half the length (dimension 1 of sequences: floating (N, L, D), integers (N, L)).

    Returns
    -------
    Inputs or None
        None where not every tensor of more than one dimension has the same length.
    """
    sequences = [t for t in inputs.tensors() if t.dim() > 1]
    lengths = {t.shape[1] for t in sequences}
    if len(lengths) != 1 or not all(t.dim() == (3 if t.is_floating_point() else 2) for t in sequences):
        return None
    half = (lengths.pop() + 1) // 2
    return inputs.map(lambda tensor: tensor[:, :half] if tensor.dim() > 1 else tensor) if half > 1 else None


def channels_last(inputs: Inputs) -> Inputs | None:
    """The same values with channels last in memory; None where no floating tensor is an image."""
    images = [t for t in inputs.tensors() if t.dim() == 4 and t.is_floating_point()]
    if not images:
        return None
    last = torch.channels_last
    return inputs.map(lambda t: t.contiguous(memory_format=last) if t.dim() == 4 and t.is_floating_point() else t)


def shrink(inputs: Inputs) -> Inputs | None:
    """The same inputs with large spatial sides (more than 96) cut to about two sevenths, a multiple of 32.

    Returns
    -------
    Inputs or None
        None where no floating tensor has a large side.
    """
    return _resized(
        inputs,
        lambda size, _: max(_SMALLEST_SIDE, round(size * _SHRINK / _STRIDE) * _STRIDE) if size > _LARGE_SIDE else size,
    )


def halve(inputs: Inputs) -> Inputs | None:
    """The same inputs with sides of 32 and more cut to half, a multiple of 16; None where there are none."""
    return _resized(inputs, lambda size, _: max(_LEAST_SIDE, size // 32 * 16) if size >= _HALVED_SIDE else size)


def _resized(inputs: Inputs, change: Callable[[int, int], int]) -> Inputs | None:
    changed = False

    def one(tensor: Tensor) -> Tensor:
        nonlocal changed
        if not tensor.is_floating_point() or tensor.dim() < 3:
            return tensor
        spatial = [change(size, axis) for axis, size in enumerate(tensor.shape[2:])]
        changed |= spatial != list(tensor.shape[2:])
        return tensor.new_zeros(*tensor.shape[:2], *spatial)

    other = inputs.map(one)
    return other if changed else None


@dataclass
class Draw:
    """What the cases of one verdict are made from.

    Attributes
    ----------
    inputs : Inputs
        The example inputs.
    rows : Inputs
        As few and as small rows of the same shape as the reference takes: most cases need no more.
    least : Inputs
        One row, with smaller sides still where both models take them: for what is fed many rows.
    small : bool
        Whether `rows` have smaller spatial sides than the examples.
    seed : int
    dtype : torch.dtype
        Values are what this precision can hold, so that both models are fed the same.
    """

    inputs: Inputs
    rows: Inputs
    least: Inputs
    small: bool
    seed: int
    dtype: torch.dtype
    _drawn: dict[int, CheckedCase] = field(default_factory=dict)

    def case(
        self, name: str, inputs: Inputs, regime: str, *, required: bool = True, rows: tuple[str, ...] = ()
    ) -> CheckedCase:
        """A case whose values can be held, and whose name says their shape."""
        return CheckedCase(f"{name}{self._shape(inputs)}", representable(inputs, self.dtype), regime, required, rows)

    def _shape(self, inputs: Inputs) -> str:
        batch = "" if inputs.batch_size is None else f", batch {inputs.batch_size}"
        spatial, own = _spatial(inputs), _spatial(self.inputs)
        return f"{batch}, size {'x'.join(map(str, spatial))}" if spatial != own else batch

    def normal(self, draw: int) -> CheckedCase:
        """Standard normal values in the rows; the same case for the same draw, so that answers are remembered."""
        if draw not in self._drawn:
            generator = torch.Generator().manual_seed(self.seed + 1 + draw)
            self._drawn[draw] = self.case("normal", fill(NORMAL, self.rows, generator), "normal")
        return self._drawn[draw]

    def examples(self) -> CheckedCase:
        """The example inputs themselves."""
        return self.case("examples", self.inputs, "examples")


def _spatial(inputs: Inputs) -> tuple[int, ...]:
    return next((tuple(t.shape[2:]) for t in inputs.tensors() if t.is_floating_point() and t.dim() >= 3), ())


def cases(feed: Draw, batch_sizes: Sequence[int]) -> Iterator[CheckedCase]:
    """Every input of a thorough verdict, the most telling first.

    Parameters
    ----------
    feed : Feed
    batch_sizes : sequence of int
        Beside the examples' own.

    Yields
    ------
    Case
    """
    generator = torch.Generator().manual_seed(feed.seed)
    inputs = feed.inputs
    yield feed.case("normal", fill(NORMAL, inputs, generator), "normal")
    yield feed.examples()
    shape = feed.rows if feed.small else inputs
    for size in (size for size in dict.fromkeys(batch_sizes) if size != inputs.batch_size):
        resized = shape.with_batch(size)
        if resized is not None:
            yield feed.case("normal", fill(NORMAL, resized, generator), "normal")
    for regime in REGIMES[1:]:
        if regime.alone:
            yield feed.case(regime.name, fill(regime, feed.rows, generator), regime.name)
    many = feed.least.with_batch(len(REGIMES))
    if many is not None and batch_sizes:
        names = tuple(regime.name for regime in REGIMES)
        yield feed.case("all kinds", fill_rows(REGIMES, many, generator), "mixed", rows=names)
    last = channels_last(feed.normal(0).inputs)
    if last is not None:
        yield CheckedCase(f"channels last, {feed.normal(0).name}", last, "layout", required=False)
    for resized in (*other_sizes(feed.rows), shorten(feed.rows)):
        if resized is not None:
            yield feed.case("normal", fill(NORMAL, resized, generator), "resized", required=False)
    broken = feed.least.with_batch(len(NONFINITE))
    if broken is not None and batch_sizes:
        names = tuple(regime.name for regime in NONFINITE)
        yield feed.case("not finite", fill_rows(NONFINITE, broken, generator), "not finite", required=False, rows=names)


def quick_cases(feed: Draw, batch_sizes: Sequence[int]) -> Iterator[CheckedCase]:
    """The inputs of a quick verdict: the examples, a small row, and the most telling regimes as rows of one batch.

    Parameters
    ----------
    feed : Feed
    batch_sizes : sequence of int
        Where the examples' own is the only one, nothing else is tried.

    Yields
    ------
    Case
    """
    generator = torch.Generator().manual_seed(feed.seed)
    yield feed.examples()
    yield feed.normal(0)
    mixed = feed.rows.with_batch(len(QUICK))
    if mixed is not None and any(size != feed.inputs.batch_size for size in batch_sizes):
        names = tuple(regime.name for regime in QUICK)
        yield feed.case("mixed", fill_rows(QUICK, mixed, generator), "mixed", rows=names)
