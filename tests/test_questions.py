"""What a forward asks about its values (their kind, their attributes, their device) is answered as for tensors.

A wrong answer is silent: the trace takes a way that the model does not take. So nothing is verified here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import canonize
from tests.statistics import harden

IMAGE = torch.randn(2, 3, 8, 8)


class Model(nn.Module):
    """A BatchNorm, and then what depends on an answer."""

    def __init__(self, head: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), harden(nn.BatchNorm2d(4)), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x, self.bn(self.conv(x)))


def _looked_up(y: Tensor) -> float:
    try:
        return {4: 2.0, 5: 3.0}[y.shape[1]]
    except KeyError:
        return 1.0


@functools.lru_cache
def _remembered(size: int) -> float:
    return 2.0 if size == 4 else 3.0


def _checked(y: Tensor) -> Tensor:
    torch._check(y.shape[1] == 4)
    torch._check(y.shape[2] > 1, lambda: "too small")
    return 2 * y


QUESTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "isinstance of the input": lambda x, y: y * 2 if isinstance(x, Tensor) else y,
    "isinstance of a tuple": lambda x, y: y[0] if isinstance(y, (tuple, list)) else y * 2,
    "isinstance of pieces": lambda x, y: y.chunk(2, 1)[0] if isinstance(y.chunk(2, 1), tuple) else y,
    "isinstance of a shape": lambda x, y: y * 2 if isinstance(y.shape, torch.Size) else y,
    "isinstance of a size": lambda x, y: y * 2 if isinstance(y.shape[1], int) else y,
    "is_tensor": lambda x, y: y * 2 if torch.is_tensor(y) and not torch.is_tensor(y.shape[1]) else y,
    "an attribute that tensors have": lambda x, y: y * 2 if hasattr(y, "shape") else y,
    "an attribute that they do not have": lambda x, y: y if hasattr(x, "tensors") else y * 2,
    "a method that they do not have": lambda x, y: y if callable(getattr(x, "decode", None)) else y * 2,
    "the dtype": lambda x, y: y * 2 if y.dtype in (torch.float32, torch.float64) else y,
    "the dtype in a set": lambda x, y: y * 2 if y.dtype in {torch.float32, torch.float64} else y,
    "the dtype's name": lambda x, y: y * 2 if str(y.dtype) == "torch.float32" else y,
    "the dtype in a text": lambda x, y: y * 2 if f"of {y.dtype}" == "of torch.float32" else y,
    "the device": lambda x, y: y * 2 if y.device in (torch.device("cpu"),) else y,
    "the device's kind": lambda x, y: y * 2 if y.device.type == "cpu" else y,
    "whether it is on one": lambda x, y: y * 2 if y.is_cpu and not y.is_cuda else y,
    "a size in a table": lambda x, y: y * _looked_up(y),
    "a size in a table, or a default": lambda x, y: y * {4: 2.0}.get(y.shape[1], 3.0),
    "a size in a set": lambda x, y: y * 2 if y.shape[1] in {4, 8} else y,
    "a remembered function of a size": lambda x, y: y * _remembered(y.shape[1]),
    "limits of the dtype": lambda x, y: y.masked_fill(y > 1, torch.finfo(y.dtype).min).softmax(1),
    "a check": lambda x, y: _checked(y),
    "a rounded size": lambda x, y: y * round(y.shape[1] / 3) * round(y.shape[1] / 3, 1),
    "a size rounded up": lambda x, y: y * math.ceil(y.shape[1] / 3),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_answer_is_that_for_a_tensor(name: str) -> None:
    model = Model(QUESTIONS[name]).eval()
    found = canonize.canonize(model, IMAGE, verify=False)
    assert found.report.captured_by == "symbolic_trace"
    for batch in (2, 1, 3):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(found(x), model(x), rtol=1e-4, atol=1e-4)


def test_python_is_as_it_was_afterwards() -> None:
    asked = isinstance, torch.is_tensor, torch._check, torch.finfo

    def fails(x: Tensor, y: Tensor) -> Tensor:
        raise ValueError("no way")

    with pytest.raises(canonize.CanonizeError):
        canonize.canonize(Model(fails).eval(), IMAGE)
    assert asked == (isinstance, torch.is_tensor, torch._check, torch.finfo)


SWALLOWED: dict[str, Callable[[Tensor, Tensor], bool]] = {
    "the batch size": lambda x, y: x.shape[0] == 2,
    "unpacking": lambda x, y: len([*y]) > 1,
}


@pytest.mark.parametrize("name", SWALLOWED)
def test_a_forward_that_swallows_what_cannot_be_answered_is_not_believed(name: str) -> None:
    def head(x: Tensor, y: Tensor) -> Tensor:
        try:
            return 2 * y if SWALLOWED[name](x, y) else 3 * y
        except Exception:
            return 5 * y

    model = Model(head).eval()
    found = canonize.canonize(model, IMAGE, verify=False)
    assert found.report.captured_by == "torch.export"
    torch.testing.assert_close(found(IMAGE), model(IMAGE), rtol=1e-4, atol=1e-4)
    try:
        answer = found(IMAGE[:1])
    except AssertionError:
        return
    torch.testing.assert_close(answer, model(IMAGE[:1]), rtol=1e-4, atol=1e-4)


def test_two_threads_may_convert_at_once() -> None:
    models = [Model(QUESTIONS["isinstance of a size"]).eval() for _ in range(4)]
    asked = isinstance, nn.Module.__call__
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda model: canonize.canonize(model, IMAGE, verify=False), models))
    for model, found in zip(models, made, strict=True):
        torch.testing.assert_close(found(IMAGE), model(IMAGE), rtol=1e-4, atol=1e-4)
    assert asked == (isinstance, nn.Module.__call__)
