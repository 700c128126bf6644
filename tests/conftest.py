"""What every test starts from: one thread a worker, importable torchvision, a fixed seed, failures that reproduce."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import torch

from canonize.compat import import_torchvision
from canonize.rewrite.contracts import thorough

# Two workers on two cores: more threads than that only wait for each other.
torch.set_num_threads(1)
# timm and zennit import torchvision by themselves; after this call that works beside a CPU-only torch, too.
import_torchvision()

# No deadline: the first example pays for tracing. The blob in a failure's output reproduces it with @reproduce_failure.
hypothesis.settings.register_profile(
    "canonize", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("canonize")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _every_contract() -> Iterator[None]:
    with thorough():
        yield
