"""What canonizing does to the trained DenseNet beside this file: layers, accuracy, outputs.

python examples/digits/compare.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from data import digits
from torch import nn

import canonize

HERE = Path(__file__).parent


def describe(name: str, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Print one line about ``model`` on images (N, 1, 32, 32); return its outputs (N, 10)."""
    norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    with torch.no_grad():
        outputs: torch.Tensor = model(x)
    accuracy = (outputs.argmax(1) == y).float().mean()
    print(f"{name:10} {norms:3} BatchNorms   accuracy {accuracy:.4f}")
    return outputs


def main() -> None:
    """Compare the model with its canonical form on the held-out digits."""
    x, y = digits("test")
    model = canonize.load(HERE / "densenet.pt").eval()
    before = describe("trained", model, x, y)
    after = describe("canonical", canonize.canonize(model, x[:2]), x, y)
    print(f"largest difference of any output: {(before - after).abs().max() / before.abs().max():.1e} of the largest")


if __name__ == "__main__":
    main()
