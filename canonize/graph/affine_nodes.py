"""The node of a network that holds a frozen affine, until a layer takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from canonize.algebra.affine import Affine, Statistics


@dataclass(frozen=True)
class Origin:
    """A frozen affine of the original model: its qualified name and what it was."""

    name: str
    kind: str


class FrozenAffine(nn.Module):
    """An affine that still waits for a layer to absorb it; none is left in a finished model.

    Attributes
    ----------
    affine : Affine
    origins : tuple of Origin
        What it was in the original model; several where affines have been composed.
    statistics : Statistics or None
        For an evaluated BatchNorm, what it was read from.
    last_resort_only : bool
        Whether it is what a rewrite has left, to become an explicit layer.
    """

    def __init__(self, affine: Affine, origins: Sequence[Origin], statistics: Statistics | None = None) -> None:
        super().__init__()
        self.affine = affine
        self.origins = tuple(origins)
        self.statistics = statistics
        self.last_resort_only = False

    def forward(self, input: Tensor) -> Tensor:
        """Apply the affine in the input's own dtype."""
        return input * self.affine.scale.to(input) + self.affine.shift.to(input)
