"""A Relation Network written as published ones are: NumPy's coordinates, shape asserts, ``len``, a packed question."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import canonize
from tests.statistics import harden

WORDS, CODE, GRID = 12, 6, 4


class Published(nn.Module):
    """Answers a question about an image; 4 x 4 objects of 8 channels."""

    def __init__(self, sorted_first: bool = False) -> None:
        super().__init__()
        self.sorted_first = sorted_first
        layers: list[nn.Module] = []
        for channels in (3, 8, 8):
            layers += [nn.Conv2d(channels, 8, 3, stride=2, padding=1), nn.ReLU(), harden(nn.BatchNorm2d(8, eps=1e-3))]
        self.cnn = nn.Sequential(*layers)
        self.embed = nn.Embedding(WORDS, 5, padding_idx=0)
        self.lstm = nn.LSTM(5, CODE, batch_first=True)
        self.g = nn.Sequential(nn.Linear(2 * 10 + CODE, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.f = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 5))

    def forward(self, image: Tensor, question: Tensor, lengths: Tensor) -> Tensor:
        assert len(lengths) == image.size(0), "one length for each image"
        assert len(image) == len(question)
        batch = image.size(0)
        _, (hidden, _) = self.lstm(self.packed(question, lengths))
        code = hidden[-1]
        assert code.shape == (batch, CODE)
        features = self.cnn(image)
        n, c, h, w = features.shape
        assert (h, w) == (GRID, GRID) and list(features.shape) == [n, 8, GRID, GRID]
        xs = np.linspace(-(h - 1) / 2, (h - 1) / 2, GRID) / 2.0
        place = np.array(np.meshgrid(xs, xs)).reshape(1, 2, GRID * GRID)
        coordinates = torch.from_numpy(place).to(features)
        objects = torch.cat([features.view(batch, c, h * w), coordinates.repeat(len(features), 1, 1)], 1).permute(
            0, 2, 1
        )
        assert len(objects) == batch and objects.size(2) == c + 2
        count = objects.size(1)
        one = objects.unsqueeze(1).expand(batch, count, count, c + 2)
        two = objects.unsqueeze(2).expand(batch, count, count, c + 2)
        asked = code.view(batch, 1, 1, CODE).expand(batch, count, count, CODE)
        pairs = torch.cat([one, two, asked], 3).reshape(batch * count**2, -1)
        related = self.g(pairs).view(len(image), count * count, 16).sum(1)
        answer: Tensor = self.f(related)
        return answer

    def packed(self, question: Tensor, lengths: Tensor) -> object:
        words = self.embed(question)
        if self.sorted_first:
            return pack_padded_sequence(words, lengths.to("cpu"), batch_first=True)
        return pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)


def drawn(batch: int, length: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.randint(2, length + 1, (batch,)).sort(descending=True)[0]
    lengths[0] = length
    return torch.rand(batch, 3, 32, 32, dtype=torch.float64), torch.randint(1, WORDS, (batch, length)), lengths


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("sorted_first", [False, True])
def test_it_is_exact_at_any_batch_size_and_free_of_batch_norms(rows: int, sorted_first: bool) -> None:
    torch.manual_seed(rows)
    model = Published(sorted_first).double().eval()
    built = canonize.canonize(model, drawn(rows))
    assert built.report.verdict.passed
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in built.modules())
    for batch, length in ((1, 7), (2, 5), (3, 9), (5, 7)):
        given = drawn(batch, length)
        wanted = model(*given)
        assert (built(*given) - wanted).abs().max() <= 1e-10 * wanted.abs().max()
