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


@dataclass(frozen=True)
class Regime:
    """One kind of input values.

    Attributes
    ----------
    name : str
        ``normal``, ``zeros``, ...
    fill : callable
        From a floating example tensor and a generator to a float64 tensor of the same shape on the CPU.
    """

    name: str
    fill: Fill


@dataclass(frozen=True)
class Case:
    """One input to feed to both models.

    Attributes
    ----------
    name : str
        ``normal, batch 2``.
    inputs : Inputs
        Floating tensors in float64.
    regime : str
        ``normal``, ..., ``examples``, ``mixed`` or ``larger``.
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


NORMAL = Regime("normal", _normal)
REGIMES: tuple[Regime, ...] = (
    NORMAL,
    Regime("uniform", _image),
    Regime("large", lambda example, generator: 100 * _normal(example, generator)),
    Regime("small", lambda example, generator: 1e-3 * _normal(example, generator)),
    Regime("zeros", lambda example, generator: torch.zeros(example.shape, dtype=torch.float64)),
)
# Enough for a quick verdict: the middle of the road, all that saturates, and biases alone.
QUICK = tuple(regime for regime in REGIMES if regime.name in ("normal", "large", "zeros"))


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


def enlarge(inputs: Inputs) -> Inputs | None:
    """The same inputs with one and a half times the spatial size (dimensions behind the second, floating tensors).

    Returns
    -------
    Inputs or None
        None where no floating tensor has a spatial dimension.
    """
    return _resized(inputs, lambda size: size + max(1, size // 2))


def shrink(inputs: Inputs) -> Inputs | None:
    """The same inputs with large spatial sides (more than 96) cut to about two sevenths, a multiple of 32.

    Returns
    -------
    Inputs or None
        None where no floating tensor has a large side.
    """
    return _resized(
        inputs,
        lambda size: max(_SMALLEST_SIDE, round(size * _SHRINK / _STRIDE) * _STRIDE) if size > _LARGE_SIDE else size,
    )


def _resized(inputs: Inputs, change: Callable[[int], int]) -> Inputs | None:
    changed = False

    def one(tensor: Tensor) -> Tensor:
        nonlocal changed
        if not tensor.is_floating_point() or tensor.dim() < 3:
            return tensor
        spatial = [change(size) for size in tensor.shape[2:]]
        changed |= spatial != list(tensor.shape[2:])
        return tensor.new_zeros(*tensor.shape[:2], *spatial)

    other = inputs.map(one)
    return other if changed else None


@dataclass
class Feed:
    """What the cases of one verdict are made from.

    Attributes
    ----------
    inputs : Inputs
        The example inputs.
    rows : Inputs
        As few and as small rows of the same shape as the reference takes: most cases need no more.
    small : bool
        Whether `rows` have smaller spatial sides than the examples.
    seed : int
    dtype : torch.dtype
        Values are what this precision can hold, so that both models are fed the same.
    """

    inputs: Inputs
    rows: Inputs
    small: bool
    seed: int
    dtype: torch.dtype
    _drawn: dict[int, Case] = field(default_factory=dict)

    def case(
        self, name: str, inputs: Inputs, regime: str, *, required: bool = True, rows: tuple[str, ...] = ()
    ) -> Case:
        """A case whose values can be held, and whose name says their shape."""
        return Case(f"{name}{self._shape(inputs)}", representable(inputs, self.dtype), regime, required, rows)

    def _shape(self, inputs: Inputs) -> str:
        batch = "" if inputs.batch_size is None else f", batch {inputs.batch_size}"
        spatial, own = _spatial(inputs), _spatial(self.inputs)
        return f"{batch}, size {'x'.join(map(str, spatial))}" if spatial != own else batch

    def normal(self, draw: int) -> Case:
        """Standard normal values in the rows; the same case for the same draw, so that answers are remembered."""
        if draw not in self._drawn:
            generator = torch.Generator().manual_seed(self.seed + 1 + draw)
            self._drawn[draw] = self.case("normal", fill(NORMAL, self.rows, generator), "normal")
        return self._drawn[draw]

    def examples(self) -> Case:
        """The example inputs themselves."""
        return self.case("examples", self.inputs, "examples")


def _spatial(inputs: Inputs) -> tuple[int, ...]:
    return next((tuple(t.shape[2:]) for t in inputs.tensors() if t.is_floating_point() and t.dim() >= 3), ())


def cases(feed: Feed, batch_sizes: Sequence[int]) -> Iterator[Case]:
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
        yield feed.case(regime.name, fill(regime, feed.rows, generator), regime.name)
    larger = enlarge(feed.rows)
    if larger is not None:
        yield feed.case("normal", fill(NORMAL, larger, generator), "larger", required=False)


def quick_cases(feed: Feed, batch_sizes: Sequence[int]) -> Iterator[Case]:
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
