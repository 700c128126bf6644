"""The certificate: what each value of a canonical model stands for, as data that nobody trusts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

FORMAT = 1


@dataclass(frozen=True)
class Certificate:
    """Hints for the checker.

    Attributes
    ----------
    stands_for : dict
        Name of a node of the canonical graph to the node of the original's graph whose value it corresponds to; None
        for what was put in.
    taken : dict
        Linear layers of the canonical model that have taken an affine, :math:`w = A y + B` of the original's output y:
        A and B, nested lists of float64 numbers in a shape that broadcasts with the value.
    settings : dict
        How the canonical model was made: tracer, strategy, patterns skipped, forms, sizes of the example.
    hashes : dict
        SHA-256 of the weights of both models.
    """

    stands_for: dict[str, str | None]
    taken: dict[str, tuple[Any, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """As text; numbers are written so that they come back bit by bit."""
        return json.dumps({"format": FORMAT, **vars(self)})

    @staticmethod
    def from_json(text: str) -> Certificate:
        """Read what ``to_json`` wrote.

        Raises
        ------
        ValueError
            If it is no certificate.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ValueError("it is not a certificate of this format")
        try:
            made = Certificate(**data)
            for part in (made.stands_for, made.taken, made.settings, made.hashes):
                if not isinstance(part, dict):
                    raise TypeError("a part of it is missing")
            taken = {str(name): (pair[0], pair[1]) for name, pair in made.taken.items()}
        except (TypeError, KeyError, IndexError) as error:
            raise ValueError(f"it is damaged ({error})") from error
        return Certificate(made.stands_for, taken, made.settings, made.hashes)


def hash_of(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers: names, precisions, shapes and bits."""
    found = hashlib.sha256()
    for name, tensor in sorted((*model.named_parameters(), *model.named_buffers()), key=lambda item: item[0]):
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        if values.numel():
            found.update(memoryview(_bytes(values)))
    return found.hexdigest()


def _bytes(values: Tensor) -> Any:
    return values.reshape(-1).view(torch.uint8).numpy()
