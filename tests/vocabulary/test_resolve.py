"""A call is the same operation with the same arguments, whichever way it is spelt."""

from __future__ import annotations

import functools
import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from canonize import nn as cnn
from canonize.vocabulary import ROWS, Operation, operator_name, resolve, resolve_call, resolve_module

aten = torch.ops.aten
X, W, B = torch.randn(2, 4), torch.randn(4, 4), torch.randn(4)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def call(target: Any, *args: Any, method: bool = False, **kwargs: Any) -> Operation:
    found = resolve_call(target, args, kwargs, method, _is_tensor)
    assert found is not None
    return found


m = functools.partial(call, method=True)
SAME: dict[str, list[Operation]] = {
    "mean": [
        call(torch.mean, X, 1),
        call(torch.mean, X, dim=1),
        call(torch.mean, X, axis=1),
        m("mean", X, axis=1),
        m("mean", X, 1),
        call(aten.mean, X, 1),
        call(aten.mean.dim, X, 1),
        call(torch.mean, input=X, dim=1),
        call(torch.Tensor.mean, X, 1),
    ],
    "relu": [
        call(torch.relu, X),
        call(F.relu, X),
        call(F.relu, X, inplace=True),
        call(F.relu, X, True),
        m("relu", X),
        m("relu_", X),
        call(torch.relu_, X),
        call(aten.relu, X),
        call(aten.relu_, X),
        call(aten.relu.default, X),
        call(aten.relu_.default, X),
    ],
    "add": [
        call(operator.add, X, W),
        call(operator.iadd, X, W),
        call(torch.add, X, W),
        call(torch.add, X, other=W),
        m("add", X, W),
        m("add_", X, W),
        m("__add__", X, W),
        m("__radd__", W, X),
        m("__radd__", W, other=X),
        m("__iadd__", X, W),
        call(aten.add, X, W),
        call(aten.add.Tensor, X, W),
    ],
    "sub": [call(operator.sub, X, W), m("__rsub__", W, X), m("__rsub__", W, other=X), m("subtract", X, other=W)],
    "div": [call(operator.truediv, X, W), call(torch.div, X, W), call(torch.true_divide, X, W), m("divide", X, W)],
    "softmax": [
        call(F.softmax, X, 1, dtype=torch.float64),
        call(torch.softmax, X, 1, torch.float64),
        m("softmax", X, dim=1, dtype=torch.float64),
        call(torch.special.softmax, X, 1, torch.float64),
        call(aten.softmax.int, X, 1, torch.float64),
    ],
    "batch_norm": [
        call(F.batch_norm, X, B, B, W, B, False, 0.1, 1e-3),
        call(torch.batch_norm, X, W, B, B, B, False, 0.1, 1e-3, True),
        call(aten.batch_norm.default, X, W, B, B, B, False, 0.1, 1e-3, True),
    ],
    "numel": [m("numel", X), m("nelement", X), call(torch.numel, X)],
    "to": [
        m("float", X),
        m("to", X, torch.float32),
        m("to", X, dtype=torch.float32),
        call(aten.to.dtype, X, torch.float32),
    ],
    "permute": [
        m("permute", X, 1, 0),
        m("permute", X, (1, 0)),
        m("permute", X, dims=(1, 0)),
        call(torch.permute, X, (1, 0)),
    ],
    "reshape": [m("reshape", X, 4, -1), m("reshape", X, (4, -1)), call(torch.reshape, X, (4, -1))],
    "transpose": [
        m("transpose", X, 0, 1),
        m("swapaxes", X, 0, 1),
        call(torch.swapdims, X, 0, 1),
        call(aten.transpose.int, X, 0, 1),
    ],
    "split": [m("split", X, 2, 1), call(torch.split, X, 2, dim=1), call(aten.split.Tensor, X, 2, 1)],
    "getitem": [call(operator.getitem, X, 0), m("__getitem__", X, 0)],
    "mm": [call(torch.mm, X, W), m("mm", X, W), call(torch.mm, X, mat2=W), call(aten.mm.default, X, W)],
    "max_pool2d": [call(F.max_pool2d, X, 2), call(torch.max_pool2d, X, 2), call(F.max_pool2d, X, kernel_size=2)],
    "detach": [m("detach", X), call(torch.detach, X), call(getattr, X, "data")],
}  # fmt: skip


def _shown(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value)
    return [_shown(item) for item in value] if isinstance(value, tuple | list) else value


@pytest.mark.parametrize("name", SAME)
def test_spellings_do_not_matter(name: str) -> None:
    first, *others = SAME[name]
    defaults = {"cudnn_enabled": True}
    for other in others:
        assert other.name == first.name == name
        bound = {key: _shown(v) for key, v in other.bound.items() if key not in defaults}
        assert bound == {key: _shown(v) for key, v in first.bound.items()}


def test_what_is_written_is_named() -> None:
    assert call(torch.add, X, W).writes == ()
    assert call(torch.add, X, W, out=B).writes == ("out",)
    assert m("add_", X, W).writes == call(operator.iadd, X, W).writes == ("input",)
    assert call(F.relu, X, inplace=True).writes == call(aten.relu_.default, X).writes == ("input",)
    assert call(F.embedding, X, W, max_norm=1.0).writes == ("weight",)
    assert call(F.embedding, X, W).writes == ()
    assert call(operator.setitem, X, 0, W).writes == ("input",)


def test_views_come_from_the_schema() -> None:
    for view in (m("view", X, -1), m("t", X), call(aten.select.int, X, 0, 1), m("chunk", X, 2), m("to", X, torch.half)):
        assert view.is_view
    for other in (m("add", X, 1), call(F.linear, X, W), m("cumsum", X, 1)):
        assert not other.is_view
    assert call(F.dropout, X, 0.5, False).is_view  # its schema does not say it, but in evaluation it is its argument


def test_tags_tell_pointwise_reducing_and_random_operators_apart() -> None:
    assert m("exp", X).pointwise and not m("sum", X).pointwise
    assert m("sum", X, 1).reduction and not m("exp", X).reduction
    assert call(torch.rand_like, X).random and call(F.dropout, X).random and not m("normal_", X).asks_size
    assert not call(F.batch_norm, X, B, B).random


def test_questions_about_sizes() -> None:
    for question in (m("size", X, 0), m("nelement", X), m("dim", X), call(getattr, X, "shape"), m("element_size", X)):
        assert question.asks_size
    assert not m("item", X).asks_size and not m("sum", X).asks_size


def test_a_view_of_another_dtype_moves_nothing() -> None:
    assert m("view", X, 2, 2).moves
    assert not m("view", X, torch.int32).moves


def test_what_torch_does_not_know_is_nothing() -> None:
    assert resolve_call(lambda x: x, (X,)) is None
    assert resolve_call("no_such_method", (X,), is_method=True) is None


def test_nodes_and_calls_are_resolved_alike() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_method("mean", (x,), {"axis": 1})
    found = resolve(node)
    assert found is not None and found.name == operator_name(node) == "mean" and found.bound["dim"] == 1
    made = resolve_module(cnn.Call(".mean", (cnn.Slot(0),), {"axis": 1}))
    assert made is not None and made.name == "mean" and made.bound == {"input": cnn.Slot(0), "dim": 1}
    assert resolve(x) is None and resolve_module(torch.nn.ReLU()) is None


def test_every_row_is_an_operator_of_torch() -> None:
    """A row under a name that nothing is resolved to would never be asked for."""
    known = dir(torch.ops.aten), dir(torch), dir(F), dir(torch.Tensor)
    spelt = {"getitem", "len", "stochastic_depth", "drop_path"}
    for name in ROWS:
        is_aten = isinstance(getattr(torch.ops.aten, name, None), torch._ops.OpOverloadPacket)
        assert is_aten or name in spelt or any(name in names for names in known), name
