"""A Relation Network (Santoro et al. 2017, arXiv 1706.01427) as the work on CLEVR-XAI uses it (arXiv 2003.07258).

What makes it hard to canonize: the batch norms come *after* the rectifiers; the last one's output is concatenated with
coordinates, paired with itself and with the question's code before a fully connected layer reads it; the question runs
through a packed LSTM; and the forward asserts shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from tests.zoo.case import Case


@dataclass(frozen=True)
class Sizes:
    """Widths of a Relation Network; the defaults are the published ones."""

    image: int = 128
    channels: int = 24
    layers: int = 4
    vocabulary: int = 82
    embedding: int = 32
    question: int = 128
    relation: int = 256
    answers: int = 28

    @property
    def grid(self) -> int:
        """Rows (and columns) of the map of objects."""
        return -(-self.image // 2**self.layers)


SMALL = Sizes(image=32, channels=8, vocabulary=12, embedding=5, question=6, relation=16, answers=5)


class ImageEncoder(nn.Module):
    """Convolution of stride 2, rectifier, batch norm, four times."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        inputs = [3] + [sizes.channels] * (sizes.layers - 1)
        self.convs = nn.ModuleList(nn.Conv2d(n, sizes.channels, 3, stride=2, padding=1) for n in inputs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(sizes.channels, eps=1e-3) for _ in inputs)

    def forward(self, image: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            image = norm(F.relu(conv(image)))
        return image


class QuestionEncoder(nn.Module):
    """The last hidden state of an LSTM over a question of any length."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.embedding)
        self.lstm = nn.LSTM(sizes.embedding, sizes.question, batch_first=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        words = self.embedding(tokens)
        packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        code: Tensor = hidden.squeeze(0)
        return code


class RelationNetwork(nn.Module):
    """Answers a question about an image by looking at all pairs of objects.

    Parameters
    ----------
    sizes : Sizes
        Widths of the layers.
    """

    coordinates: Tensor

    def __init__(self, sizes: Sizes = SMALL) -> None:
        super().__init__()
        self.sizes = sizes
        self.image_encoder = ImageEncoder(sizes)
        self.question_encoder = QuestionEncoder(sizes)
        width = sizes.relation
        objects = sizes.channels + 2
        self.g = nn.Sequential(
            nn.Linear(2 * objects + sizes.question, width), nn.ReLU(inplace=True),
            nn.Linear(width, width), nn.ReLU(inplace=True),
            nn.Linear(width, width), nn.ReLU(inplace=True),
            nn.Linear(width, width), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.f = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(inplace=True),
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Linear(width, sizes.answers),
        )  # fmt: skip
        line = torch.linspace(-1.0, 1.0, sizes.grid)
        rows, columns = torch.meshgrid(line, line, indexing="ij")
        self.register_buffer("coordinates", torch.stack((rows, columns))[None])

    def forward(self, image: Tensor, question: Tensor, lengths: Tensor) -> Tensor:
        """Logits of the answers.

        Parameters
        ----------
        image : Tensor
            (N, 3, H, W), floating.
        question : Tensor
            (N, L), int64 tokens, padded.
        lengths : Tensor
            (N,), int64, number of tokens in each question.

        Returns
        -------
        logits : Tensor
            (N, answers).
        """
        assert image.shape[-1] == self.sizes.image and image.shape[-2] == self.sizes.image
        code = self.image_encoder(image)
        batch, channels, height, width = code.shape
        assert (height, width) == (self.sizes.grid, self.sizes.grid)
        count = height * width

        objects = torch.cat((code, self.coordinates.expand(batch, -1, -1, -1)), dim=1)
        objects = objects.view(batch, channels + 2, count).permute(0, 2, 1)
        asked = self.question_encoder(question, lengths)[:, None, None, :].expand(-1, count, count, -1)
        first = objects.unsqueeze(1).expand(-1, count, -1, -1)
        second = objects.unsqueeze(2).expand(-1, -1, count, -1)
        pairs = torch.cat((first, second, asked), dim=-1)

        relations = self.g(pairs.view(batch * count * count, -1)).view(batch, count * count, -1).sum(1)
        logits: Tensor = self.f(relations)
        return logits


def inputs(batch: int, sizes: Sizes = SMALL, length: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Random images, questions and their lengths."""
    return (
        torch.rand(batch, 3, sizes.image, sizes.image),
        torch.randint(0, sizes.vocabulary, (batch, length)),
        torch.randint(1, length + 1, (batch,)),
    )


CASES: list[Case] = [
    Case("relation-network", RelationNetwork, inputs, themes=("papers", "relation", "concat", "recurrent", "shape"))
]
