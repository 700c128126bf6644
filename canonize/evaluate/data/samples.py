"""What every data set hands out: inputs, labels, and where in the image the truth lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Some samples of a data set, as a batch.

    Attributes
    ----------
    inputs : tuple of Tensor
        What the model is called with: images (N, C, H, W) first, questions (N, Q) behind them where there are any.
    labels : Tensor, shape (N,), int64
        Right answers.
    masks : dict of str to Tensor, shape (N, H, W), bool
        Ground truths by name. ``"object"`` is what the label is about; a mask without a true pixel says that
        nothing is known, and the metrics give NaN for it.
    boxes : Tensor, shape (N, H, W), bool, or None
        The bounding boxes of the same objects, filled.
    names : tuple of str
        What to call the samples: file names, question numbers, indices.
    present : Tensor, shape (N,), int64, or None
        How many classes are in the picture, where that may be more than the one of the label: the answer is right if
        the label is among as many largest outputs.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor
    masks: dict[str, Tensor] = field(default_factory=dict)
    boxes: Tensor | None = None
    names: tuple[str, ...] = ()
    present: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """The first input, (N, C, H, W)."""
        return self.inputs[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> Samples:
        """The same samples elsewhere; masks stay boolean, labels integers."""
        return Samples(
            tuple(x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in self.inputs),
            self.labels.to(device),
            {name: mask.to(device) for name, mask in self.masks.items()},
            None if self.boxes is None else self.boxes.to(device),
            self.names,
            None if self.present is None else self.present.to(device),
        )

    def right(self, outputs: Tensor) -> Tensor:
        """Whether each row of outputs (N, K) answers rightly, (N,) bool."""
        if self.present is None:
            return outputs.argmax(1) == self.labels
        own = outputs.gather(1, self.labels[:, None])
        return (outputs > own).sum(1) < self.present


@runtime_checkable
class DataSet(Protocol):
    """A data set with ground truth. Samples are made or read only when they are taken.

    Attributes
    ----------
    name : str
    classes : tuple of str
        Names of the labels, in order.
    low, high : Tensor, shape (C, 1, 1)
        The smallest and largest value a pixel can have, as the model sees it.
    """

    name: str
    classes: tuple[str, ...]
    low: Tensor
    high: Tensor

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int]) -> Samples:
        """The samples with these indices, as a batch."""
        ...


def collate(parts: Sequence[Samples]) -> Samples:
    """One batch out of several; every part must know the same masks."""
    first = parts[0]
    boxes = [part.boxes for part in parts if part.boxes is not None]
    present = [part.present for part in parts if part.present is not None]
    return Samples(
        tuple(torch.cat([part.inputs[i] for part in parts]) for i in range(len(first.inputs))),
        torch.cat([part.labels for part in parts]),
        {name: torch.cat([part.masks[name] for part in parts]) for name in first.masks},
        torch.cat(boxes) if len(boxes) == len(parts) else None,
        tuple(name for part in parts for name in part.names),
        torch.cat(present) if len(present) == len(parts) else None,
    )


def box_of(mask: Tensor) -> Tensor:
    """The filled bounding box of each mask, (N, H, W) bool; empty for an empty mask."""
    rows, columns = mask.any(2), mask.any(1)
    return _between(rows)[:, :, None] & _between(columns)[:, None, :]


def _between(line: Tensor) -> Tensor:
    """True from the first to the last true entry of each row of (N, L)."""
    ahead = line.int().cumsum(1) > 0
    behind = line.flip(1).int().cumsum(1).flip(1) > 0
    return ahead & behind
