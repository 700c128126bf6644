"""LRP heatmaps (epsilon-plus rules, zennit) of the trained DenseNet beside this file, before and after canonizing.

    python examples/digits/heatmap.py [OUT.png]

paints the pixels black that each heatmap calls most relevant and prints how accurate the model still is: the lower, the
better the heatmap. Draws the heatmaps where a file is named.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from data import digits
from torch import nn

import canonize
from canonize.compat import import_torchvision

HERE = Path(__file__).parent
SHOWN = 6
BLACKENED = (20, 50, 100, 200)


def relevance(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Relevance (N, 1, 32, 32) of every pixel of images ``x`` for their labels ``y`` (N,)."""
    composites = import_torchvision("zennit.composites")
    attribution = import_torchvision("zennit.attribution")
    with attribution.Gradient(model=model, composite=composites.EpsilonPlus()) as attributor:
        heatmap: torch.Tensor = attributor(x, torch.eye(10)[y])[1]
    return heatmap.detach()


def accuracy_without(model: nn.Module, heatmap: torch.Tensor, x: torch.Tensor, y: torch.Tensor, pixels: int) -> float:
    """Accuracy of ``model`` on images ``x`` (N, 1, 32, 32) after their most relevant pixels are painted black.

    The sooner it drops, the better the heatmap found what the model looks at (pixel flipping).
    """
    flat = x.flatten(1).clone()
    flat.scatter_(1, heatmap.flatten(1).topk(pixels).indices, 0.0)
    with torch.no_grad():
        return float((model(flat.view_as(x)).argmax(1) == y).float().mean())


def draw(file: Path, rows: dict[str, torch.Tensor]) -> None:
    """Write rows of images (N, 1, 32, 32) to a picture; relevance is red where positive, blue where negative."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(rows), SHOWN, figsize=(SHOWN * 1.1, len(rows) * 1.15), layout="constrained")
    for (name, images), line in zip(rows.items(), axes, strict=True):
        line[0].set_ylabel(name)
        for image, axis in zip(images[:SHOWN, 0], line, strict=True):
            top = float(image.abs().max())
            limits = {"cmap": "gray", "vmin": 0} if name == "input" else {"cmap": "seismic", "vmin": -top}
            axis.imshow(image, vmax=top, **limits)
            axis.set(xticks=[], yticks=[])
    figure.savefig(file, dpi=110)


def main() -> None:
    """Compare the heatmaps of the model and of its canonical form on the held-out digits."""
    torch.manual_seed(0)
    x, y = digits("test")
    model = canonize.load(HERE / "densenet.pt").eval()
    before = relevance(model, x, y)
    after = relevance(canonize.canonize(model, x[:2]), x, y)
    print("pixels painted black   accuracy left: trained  canonical  at random")
    for pixels in BLACKENED:
        left = [accuracy_without(model, heatmap, x, y, pixels) for heatmap in (before, after, torch.rand_like(x))]
        print(f"{pixels:20}                  {left[0]:7.3f}  {left[1]:9.3f}  {left[2]:9.3f}")
    if len(sys.argv) > 1:
        draw(Path(sys.argv[1]), {"input": x, "trained": before, "canonical": after})


if __name__ == "__main__":
    main()
