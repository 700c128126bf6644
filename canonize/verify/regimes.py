"""What two models are fed to tell them apart: several kinds of values, batch sizes and image sizes.

A fault may show only for some inputs: a slipped bias drowns in large inputs, a threshold that is off by a little is
crossed only by small ones, a wrong border shows where the input is not zero. So each kind of value is a regime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from canonize.inputs import Inputs

Fill = Callable[[Tensor, torch.Generator], Tensor]


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
        ``normal``, ..., ``examples`` or ``larger``.
    required : bool
        Whether the reference is expected to run on it; a case it refuses is then worth a note.
    """

    name: str
    inputs: Inputs
    regime: str
    required: bool = True


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


def enlarge(inputs: Inputs) -> Inputs | None:
    """The same inputs with one and a half times the spatial size (dimensions behind the second, floating tensors).

    Returns
    -------
    Inputs or None
        None where no floating tensor has a spatial dimension.
    """
    grown = False

    def one(tensor: Tensor) -> Tensor:
        nonlocal grown
        if not tensor.is_floating_point() or tensor.dim() < 3:
            return tensor
        grown = True
        spatial = [size + max(1, size // 2) for size in tensor.shape[2:]]
        return tensor.new_zeros(*tensor.shape[:2], *spatial)

    larger = inputs.map(one)
    return larger if grown else None


def cases(
    inputs: Inputs, batch_sizes: Sequence[int], seed: int, thorough: bool = True, single: Inputs | None = None
) -> Iterator[Case]:
    """Every input that both models are to be fed, the most telling first.

    Parameters
    ----------
    inputs : Inputs
        The example inputs.
    batch_sizes : sequence of int
        Beside the examples' own; without `thorough` only the first that differs from it.
    seed : int
    thorough : bool
        Whether to feed all regimes and a larger image too.
    single : Inputs, optional
        The example inputs with one row, where the reference takes that: enough for the other regimes and for the
        larger image, and cheaper.

    Yields
    ------
    Case
    """
    generator = torch.Generator().manual_seed(seed)
    own = inputs.batch_size
    base = "" if own is None else f", batch {own}"
    yield Case(f"normal{base}", fill(NORMAL, inputs, generator), "normal")
    yield Case(f"examples{base}", inputs.to(dtype=torch.float64), "examples")
    others = [size for size in dict.fromkeys(batch_sizes) if size != own]
    for size in others if thorough else others[:1]:
        resized = inputs.with_batch(size)
        if resized is not None:
            yield Case(f"normal, batch {size}", fill(NORMAL, resized, generator), "normal")
    if not thorough:
        return
    rows = single or inputs
    size_name = "" if rows.batch_size is None else f", batch {rows.batch_size}"
    for regime in REGIMES[1:]:
        yield Case(f"{regime.name}{size_name}", fill(regime, rows, generator), regime.name)
    larger = enlarge(rows)
    if larger is not None:
        shape = next(t for t in larger.tensors() if t.is_floating_point() and t.dim() >= 3).shape
        name = f"normal, size {'x'.join(map(str, shape[2:]))}"
        yield Case(name, fill(NORMAL, larger, generator), "larger", required=False)


def normal(inputs: Inputs, seed: int, name: str) -> Case:
    """One more draw of standard normal values for the given shapes."""
    return Case(name, fill(NORMAL, inputs, torch.Generator().manual_seed(seed)), "normal")
