"""Train the small DenseNet beside this file, with BatchNorm, on real handwritten digits (under a minute on one core).

    python examples/digits/train.py

writes ``densenet.pt``: the whole module, made of nothing but classes of torch and torchvision.
"""

from __future__ import annotations

from pathlib import Path

import torch
from data import digits
from torch import nn

from canonize.compat import import_torchvision

EPOCHS = 12
BATCH = 64
HERE = Path(__file__).parent


def densenet() -> nn.Module:
    """A torchvision DenseNet with two small blocks and one input channel."""
    models = import_torchvision("torchvision.models")
    model: nn.Module = models.DenseNet(
        growth_rate=8, block_config=(3, 3), num_init_features=16, bn_size=2, num_classes=10
    )
    model.get_submodule("features").conv0 = nn.Conv2d(1, 16, kernel_size=7, stride=2, padding=3, bias=False)
    return model


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Fit ``model`` in place to images (N, 1, 32, 32) and labels (N,); every batch is shifted by up to 2 pixels."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-2)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    model.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            shift = torch.randint(-2, 3, (2,)).tolist()
            loss = nn.functional.cross_entropy(model(x[batch].roll(shift, (2, 3))), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1:2d}  loss {total / (len(x) // BATCH):.4f}")


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of images (N, 1, 32, 32) that ``model`` gives their label."""
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train, say how well it went on the held-out images, save."""
    torch.manual_seed(0)
    model = densenet()
    train(model, *digits("train"))
    print(f"accuracy on held-out digits: {accuracy(model, *digits('test')):.4f}")
    model.zero_grad(set_to_none=True)
    torch.save(model, HERE / "densenet.pt")


if __name__ == "__main__":
    main()
