"""Handwritten digits from scikit-learn, as images a DenseNet can read, in two fixed halves: training and held out."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import interpolate

SIZE = 32


def digits(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, 32, 32) in [0, 1] and labels (N,) of one part of the data.

    Parameters
    ----------
    part : {"train", "test"}
        Three quarters of the 1797 images are for training; the rest is held out.
    """
    images, labels = load_digits(return_X_y=True)
    chosen = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    x, y = (chosen[0], chosen[2]) if part == "train" else (chosen[1], chosen[3])
    small = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return interpolate(small, size=SIZE, mode="bilinear"), torch.tensor(y)
