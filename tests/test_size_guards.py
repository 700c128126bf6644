"""A graph by torch.export holds for some sizes and flags: others are refused, and those that it takes are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import canonize
from canonize.capture import capture
from canonize.capture.captured import GUARD
from canonize.capture.size_guards import _Condition, _telling, _UnreadableError
from canonize.compat import guards_of
from canonize.inputs import Inputs, normalise
from tests.statistics import harden

IMAGE = torch.randn(2, 3, 32, 32)


class Stem(nn.Module):
    """A BatchNorm and a convolution, then whatever is made of it."""

    def __init__(self, head: Callable[..., Tensor], channels: int = 3) -> None:
        super().__init__()
        self.bn = harden(nn.BatchNorm2d(channels))
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.head = head

    def forward(self, x: Tensor, flag: bool = True) -> Tensor:
        return self.head(x, self.conv(self.bn(x)), flag)


class Waves(nn.Module):
    """Two dimensions, the second a length."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x[:, None])
        return y.mean(-1) * x.shape[1] + y[..., : x.shape[1] // 2].sum(-1)


class Words(nn.Module):
    """Integers, nested in a list, beside a table of a fixed length."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)
        self.dense = nn.Linear(4, 4)
        self.register_buffer("weights", torch.randn(6, 1))

    def forward(self, batch: list[Tensor], options: dict[str, Any]) -> Tensor:
        x = self.dense(self.table(batch[0])).sum(1) / batch[0].shape[1]
        return x + (self.weights * options["mask"][..., None]).sum(1)


def exported(model: nn.Module, inputs: Any) -> Callable[..., Tensor]:
    captured = capture(model.eval(), normalise(inputs), tracer="torch.export")
    return torch.fx.GraphModule(captured.root, captured.graph)


def right_or_refused(model: nn.Module, graph: Callable[..., Tensor], *args: Any) -> bool:
    """Whether it is computed, and then as the model does."""
    try:
        found = graph(*args)
    except AssertionError as error:
        if GUARD not in str(error):
            raise
        return False
    torch.testing.assert_close(found, model(*args), rtol=1e-4, atol=1e-4)
    return True


HEADS: dict[str, tuple[Callable[..., Tensor], dict[tuple[int, ...], bool]]] = {
    "a branch on the image size": (
        lambda x, y, flag: (2 * y if x.shape[-1] > 20 else y).mean((-1, -2)),
        {(1, 3, 16, 16): False, (5, 3, 9, 21): True},
    ),
    "a branch on one row": (
        lambda x, y, flag: (3 * y if x.shape[0] == 1 else y).mean((-1, -2)),
        {(1, 3, 32, 32): False, (3, 3, 16, 16): True},
    ),
    "a squeeze of everything": (
        lambda x, y, flag: y.squeeze().sum(0) if y.squeeze().ndim == 4 else y,
        {(1, 3, 32, 32): False, (3, 3, 16, 16): True},
    ),
    "a divisor": (
        lambda x, y, flag: y.unflatten(2, (4, -1)).sum(2) if x.shape[2] % 4 == 0 else y.sum(2, keepdim=True),
        {(1, 3, 30, 32): False, (2, 3, 8, 8): True},
    ),
    "two sizes compared": (
        lambda x, y, flag: y.sum(2) if x.shape[2] > x.shape[3] + 3 else y.sum(3),
        {(2, 3, 40, 8): False, (2, 3, 8, 40): True},
    ),
    "nothing": (lambda x, y, flag: y, {(1, 3, 8, 8): True, (7, 3, 5, 64): True, (2, 3, 33, 2): True}),
}


@pytest.mark.parametrize("name", HEADS)
def test_what_takes_another_way_is_refused(name: str) -> None:
    head, others = HEADS[name]
    model = Stem(head).eval()
    graph = exported(model, IMAGE)
    assert right_or_refused(model, graph, IMAGE)
    for shape, taken in others.items():
        assert right_or_refused(model, graph, torch.randn(shape)) is taken, shape


def test_a_length_in_the_second_dimension_is_free() -> None:
    model = Waves().eval()
    graph = exported(model, torch.randn(2, 16))
    for shape in ((2, 16), (1, 16), (3, 32), (2, 7)):
        assert right_or_refused(model, graph, torch.randn(shape)), shape


def test_nested_inputs_are_checked_too() -> None:
    model = Words().eval()
    words, mask = torch.randint(0, 50, (2, 5)), torch.randn(2, 6)
    graph = exported(model, Inputs(([words], {"mask": mask, "kind": "sum"})))
    assert right_or_refused(model, graph, [torch.randint(0, 50, (3, 9))], {"mask": torch.randn(3, 6), "kind": "sum"})
    assert not right_or_refused(model, graph, [words], {"mask": mask, "kind": "mean"})
    assert not right_or_refused(model, graph, [words], {"mask": mask[:, :1], "kind": "sum"})


def test_a_flag_is_checked_and_may_be_left_out_where_the_model_lets_it() -> None:
    model = Stem(lambda x, y, flag: y if flag else 2 * y).eval()
    graph = exported(model, (IMAGE, True))
    assert right_or_refused(model, graph, IMAGE)
    assert right_or_refused(model, graph, IMAGE, True)
    assert not right_or_refused(model, graph, IMAGE, False)
    other = exported(model, (IMAGE, False))
    assert right_or_refused(model, other, IMAGE, False)
    with pytest.raises(TypeError):  # the model's own default is another one
        other(IMAGE)


@pytest.mark.parametrize("flag", [True, False])
def test_flags_of_a_traced_model_may_be_left_out_likewise(flag: bool) -> None:
    model = Stem(lambda x, y, flag: y if flag else 2 * y).eval()
    made = canonize.canonize(model, (IMAGE, flag))
    assert made.report.captured_by == "symbolic_trace"
    assert right_or_refused(model, made, IMAGE, flag)
    assert not right_or_refused(model, made, IMAGE, not flag)
    if flag:
        assert right_or_refused(model, made, IMAGE)
    else:
        with pytest.raises(TypeError):
            made(IMAGE)


def test_an_input_of_another_kind_is_refused() -> None:
    with pytest.raises(canonize.CanonizeError, match="cannot be captured"):
        exported(Stem(lambda x, y, flag: y), (IMAGE, object()))


# --------------------------------------------------------------------------------------------------- conditions

STRUCTURE = {"x": 0, "more": [1, {"y": 2}]}
FREE = {(0, 0): 2, (0, 2): 32, (1, 0): 2, (2, 1): 8}
BATCH = {(0, 0), (1, 0)}
FIXED = {(0, 1): 3}


@pytest.mark.parametrize(
    ("source", "sizes", "holds"),
    [
        ("L['x'].size()[2] > 20", {(0, 2): 21}, True),
        ("L['x'].size()[2] > 20", {(0, 2): 20}, False),
        ("20 < L['x'].size()[2] <= 2*L['more'][1]['y'].size()[1] + 1", {(0, 2): 21, (2, 1): 10}, True),
        ("(L['x'].size()[2] % (L['more'][0].size()[0] - 2)) == 0", {(0, 2): 21, (1, 0): 2}, False),
        ("not (L['x'].size()[2] == 3 or -L['x'].size()[2] // 2 == -2)", {(0, 2): 5}, True),
        ("max(1, L['x'].size()[2]) != 1", {(0, 2): 1}, False),
        ("L['x'].size()[2] // 2 == 2", {(0, 2): 5}, True),
        ("torch.sym_max(1, (-2) + L['x'].size()[2]) > 1", {(0, 2): 3}, False),
        ("torch.sym_min(4, math.floor(L['x'].size()[2] / 2)) == 2", {(0, 2): 5}, True),
        ("math.trunc(torch.sym_float(L['x'].size()[2])) == 5", {(0, 2): 5}, True),
        ("20 < L['x'].size()[2] <= 30", {(0, 2): 31}, False),
    ],
)
def test_a_condition_is_worked_out(source: str, sizes: dict[tuple[int, int], int], holds: bool) -> None:
    condition = _Condition(source, STRUCTURE)
    assert condition.places == sizes.keys()
    assert condition.holds(sizes) is holds


@pytest.mark.parametrize(
    "source",
    [
        "L['z'].size()[0] > 1",
        "L['x'].stride()[0] == 4",
        "f(L['x'].size()[0], L['x'])",
        "L['more'][5].size()[0] == 1",
        "x =",
    ],
)
def test_a_condition_that_cannot_be_read_fixes_every_size(source: str) -> None:
    with pytest.raises(_UnreadableError):
        _Condition(source, STRUCTURE)
    assert _telling([source], STRUCTURE, FREE, BATCH, FIXED) == ([], set(FREE))


def test_a_condition_that_cannot_be_read_fixes_the_sizes_that_it_is_about() -> None:
    unread, telling = "f(L['x'].size()[0] + L['x'].size()[2]) > 1", "L['more'][1]['y'].size()[1] == 8"
    kept, released = _telling([unread, telling], STRUCTURE, FREE, BATCH, FIXED)
    assert released == {(0, 0), (0, 2)} and [condition.source for condition in kept] == [telling]


def test_without_any_conditions_told_every_size_is_fixed() -> None:
    assert _telling(None, STRUCTURE, FREE, BATCH, FIXED) == ([], set(FREE))
    assert guards_of(object()) is None


def test_conditions_that_hold_for_all_sizes_are_left_out() -> None:
    always = "L['x'].size()[0]*L['x'].size()[2] >= L['x'].size()[1] - 1"
    telling = "L['x'].size()[0] == L['more'][0].size()[0]"
    kept, released = _telling([always, telling], STRUCTURE, FREE, BATCH, FIXED)
    assert [condition.source for condition in kept] == [telling]
    assert kept[0].told() == "x.shape[0] == more[0].shape[0]"
    assert not released


def test_of_many_conditions_those_on_the_batch_are_kept() -> None:
    many = [f"L['x'].size()[2] != {n}" for n in (3, 4, 5, 6, 7, 8, 9, 12, 16, 31)]
    many += [f"L['x'].size()[2] < {n}" for n in (1000, 4096, *range(5000, 5020))]
    same = "L['x'].size()[0] == L['more'][0].size()[0]"
    kept, released = _telling([*many, same], STRUCTURE, FREE, BATCH, FIXED)
    assert [condition.source for condition in kept] == [same]
    assert released == set(FREE) - BATCH


def test_one_row_that_was_tried_is_taken() -> None:
    """Conditions between sizes of at least 2 may be false of 1, and say nothing about it."""
    kept, released = _telling(["L['x'].size()[0]*4 != 4"], STRUCTURE, {**FREE, (0, 0): 1}, BATCH, FIXED)
    assert (kept, released) == ([], set())
