"""Train the five small networks that are shipped with canonize (one to three minutes each, on one core).

    python examples/evaluation/train.py [NAME ...] [-o FOLDER]

VGG, ResNet, EfficientNet and DenseNet learn digits pasted on photographs, the Relation Network learns Sort-of-CLEVR;
all that is drawn has the seed 0. Writes ``NAME.safetensors`` and prints the accuracy on samples that training did not
see.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from canonize.evaluate.data.digits import PastedDigits
from canonize.evaluate.data.sort_of_clevr import COLOURS, SHAPES, SIZE, SortOfClevr, ask
from canonize.evaluate.networks import NETWORKS, SHIPPED, RelationNetwork

BATCH = 64
DIGITS = {"samples": 12000, "epochs": 6}
SCENES = 12000
CELLS = 4


class Progress:
    """Optimizer and schedule of one training."""

    def __init__(self, parameters: list[nn.Parameter], steps: int, rate: float) -> None:
        self.optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=rate, total_steps=steps)

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of ``loss``."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()


def train_on_digits(model: nn.Module) -> None:
    """Fit ``model`` in place to digits on photographs; every batch is shifted by up to 2 pixels."""
    samples = PastedDigits(DIGITS["samples"], part="train").take(range(DIGITS["samples"]))
    steps = len(samples) // BATCH
    progress = Progress(list(model.parameters()), steps * DIGITS["epochs"], 8e-3)
    for epoch in range(DIGITS["epochs"]):
        total = 0.0
        for batch in torch.randperm(len(samples)).split(BATCH)[:steps]:
            shift = torch.randint(-2, 3, (2,)).tolist()
            loss = cross_entropy(model(samples.images[batch].roll(shift, (2, 3))), samples.labels[batch])
            progress.step(loss)
            total += loss.item()
        print(f"  epoch {epoch + 1}  loss {total / steps:.4f}", flush=True)


def cell_contents(data: SortOfClevr, indices: range) -> Tensor:
    """Which colour and shape has its centre in which cell of the image code, (N, 12, 4, 4) in {0, 1}."""
    contents = torch.zeros(len(indices), len(COLOURS), len(SHAPES), CELLS, CELLS)
    for position, index in enumerate(indices):
        centres, shapes = data.scene(index)
        for colour, ((row, column), shape) in enumerate(zip(centres * CELLS // SIZE, shapes, strict=True)):
            contents[position, colour, shape, row, column] = 1
    return contents.flatten(1, 2)


class Scenes:
    """Scenes of Sort-of-CLEVR with what stands in each cell, and new questions about them whenever asked."""

    def __init__(self, count: int) -> None:
        data = SortOfClevr(count, part="train")
        self.images = torch.cat([data.take(part).images for part in torch.arange(count).split(1000)])
        self.contents = cell_contents(data, range(count))
        self.scenes = [data.scene(index) for index in range(count)]

    def questions(self, batch: Tensor, complex_too: bool) -> tuple[Tensor, Tensor]:
        """Questions (N, 11) about some scenes, and their answers (N,)."""
        drawn = torch.stack([torch.randint(n, (len(batch),)) for n in (len(COLOURS), 2, 3)], 1).tolist()
        asked = [
            ask(self.scenes[index][0], self.scenes[index][1], colour, bool(kind) and complex_too, what)[:2]
            for index, (colour, kind, what) in zip(batch.tolist(), drawn, strict=True)
        ]
        answers = torch.tensor([answer for _, answer in asked])
        return torch.tensor(np.stack([question for question, _ in asked])), answers


def train_on_scenes(model: RelationNetwork) -> None:
    """Fit ``model`` in place to Sort-of-CLEVR, in stages.

    First the encoder alone learns what stands in each cell, by a layer that is thrown away afterwards: from the answers
    it would learn to see late or never. Then the relations learn on a few pairs of cells, drawn anew for each batch:
    quick, and right on average; first simple questions, then both kinds. Last comes all of it on all pairs.
    """
    scenes = Scenes(SCENES)
    head = nn.Conv2d(24, len(COLOURS) * len(SHAPES), 1)
    weight = torch.tensor(8.0)

    def seen(code: Tensor, batch: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(head(code), scenes.contents[batch], pos_weight=weight)

    def seeing(batch: Tensor) -> Tensor:
        return seen(model.encoder(scenes.images[batch]), batch)

    def relating(batch: Tensor, complex_too: bool = True) -> Tensor:
        objects = model.objects(codes[batch])
        asked, answers = scenes.questions(batch, complex_too)
        questions = asked[:, None].expand(-1, objects.shape[1], -1)
        pairs = [torch.cat([objects, objects.roll(int(k), 1), questions], 2) for k in torch.randint(0, CELLS**2, (2,))]
        related = torch.stack([model.relation(pair).sum(1) for pair in pairs]).mean(0)
        return cross_entropy(model.answer(related), answers)

    def relating_simply(batch: Tensor) -> Tensor:
        return relating(batch, False)

    def answering(batch: Tensor) -> Tensor:
        code = model.encoder(scenes.images[batch])
        questions, answers = scenes.questions(batch, True)
        return cross_entropy(model.answered(code, questions), answers) + seen(code, batch)

    def stage(loss: Callable[[Tensor], Tensor], parameters: Iterable[nn.Parameter], steps: int, rate: float) -> None:
        progress = Progress(list(parameters), steps, rate)
        total = 0.0
        for step in range(1, steps + 1):
            found = loss(torch.randint(SCENES, (BATCH,)))
            progress.step(found)
            total += found.item()
            if step % 250 == 0:
                print(f"  {loss.__name__}, step {step}  loss {total / 250:.4f}", flush=True)
                total = 0.0

    stage(seeing, [*model.encoder.parameters(), *head.parameters()], 500, 8e-3)
    with torch.no_grad():
        model.eval()
        codes = torch.cat([model.encoder(part) for part in scenes.images.split(500)])
        model.train()
    related = [*model.relation.parameters(), *model.answer.parameters()]
    stage(relating_simply, related, 2500, 3e-3)
    stage(relating, related, 4000, 2e-3)
    stage(answering, [*model.parameters(), *head.parameters()], 750, 1e-3)


def accuracy(model: nn.Module, data: PastedDigits | SortOfClevr) -> float:
    """Share of the samples of ``data`` that ``model`` answers rightly."""
    samples = data.take(range(len(data)))
    with torch.no_grad():
        right = [
            model(*(part[batch] for part in samples.inputs)).argmax(1) == samples.labels[batch]
            for batch in torch.arange(len(samples)).split(250)
        ]
    return float(torch.cat(right).float().mean())


def main() -> None:
    """Train what is named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *NETWORKS], help="networks to train; all by default")
    parser.add_argument("-o", "--output", type=Path, default=SHIPPED, help="folder for the weights")
    wanted = parser.parse_args()
    wanted.output.mkdir(parents=True, exist_ok=True)
    for name in wanted.names or NETWORKS:
        print(name, flush=True)
        torch.manual_seed(0)
        model, start = NETWORKS[name](), time.process_time()
        held_out: dict[str, PastedDigits | SortOfClevr] = {}
        if isinstance(model, RelationNetwork):
            train_on_scenes(model)
            held_out = {kind: SortOfClevr(1000, questions=kind) for kind in ("simple", "complex")}
        else:
            train_on_digits(model)
            held_out = {"digits": PastedDigits(1000)}
        model.eval()
        print(f"  trained in {time.process_time() - start:.0f} s of one core's time")
        for kind, data in held_out.items():
            print(f"  accuracy on held-out {kind}: {accuracy(model, data):.3f}", flush=True)
        save_file(
            {key: value.contiguous() for key, value in model.state_dict().items()},
            wanted.output / f"{name}.safetensors",
        )


if __name__ == "__main__":
    main()
