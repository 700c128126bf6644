"""Functions that torch.fx keeps whole: what lies in them is found, and what they write is never lost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import canonize
from canonize.capture import capture
from canonize.errors import CanonizeError
from canonize.inputs import normalise
from canonize.normalize.functionalize import functionalize
from tests import checks
from tests.statistics import harden
from tests.zoo.case import image

SHAPES = image(3, 6, 6)


def add_into(x: Tensor, shortcut: Tensor) -> Tensor:
    x.add_(shortcut)
    return x


def add_into_a_slice(x: Tensor, shortcut: Tensor) -> Tensor:
    x[:, 1:] += shortcut[:, 1:]
    return x


def norm_and_scale(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, 1e-3) * 0.5


def write_by_value(x: Tensor, shortcut: Tensor) -> Tensor:
    """No tracer follows a choice by value, so it stays whole."""
    if float(shortcut.detach().sum()) != 0.125:
        x.add_(shortcut)
    return x


def read_by_value(x: Tensor, shortcut: Tensor) -> Tensor:
    return x + shortcut if float(shortcut.detach().sum()) != 0.125 else x


for function in ("add_into", "add_into_a_slice", "norm_and_scale", "write_by_value", "read_by_value"):
    fx.wrap(function)


class Shortcut(nn.Module):
    """As torchvision's MViT: the result of the call is dropped."""

    def __init__(self, how: str, drop: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.side, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.how, self.drop = how, drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        # By name: torch.fx finds wrapped functions among a module's globals.
        if self.how == "add_into":
            z = add_into(y, self.side(x))
        elif self.how == "add_into_a_slice":
            z = add_into_a_slice(y, self.side(x))
        elif self.how == "write_by_value":
            z = write_by_value(y, self.side(x))
        else:
            z = read_by_value(y, self.side(x))
        return self.head(y if self.drop else z)


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return norm_and_scale(self.conv(x), norm.weight, norm.bias, norm.running_mean, norm.running_var)


@pytest.mark.parametrize("drop", [False, True], ids=["result read", "result dropped"])
@pytest.mark.parametrize("how", ["add_into", "add_into_a_slice"])
def test_what_they_write_is_read(how: str, drop: bool) -> None:
    model = harden(Shortcut(how, drop).double().eval(), 3)
    canonical = canonize.canonize(model, checks.draw(SHAPES, 2), verify=False)
    checks.assert_same_function(model, canonical, SHAPES, tolerance=1e-10)
    assert canonical.report.captured_by == "symbolic_trace"


def test_layers_in_them_fold() -> None:
    model = harden(Inside().double().eval(), 4)
    canonical = canonize.canonize(model, checks.draw(SHAPES, 2), verify=False)
    checks.assert_same_function(model, canonical, SHAPES, tolerance=1e-10)
    assert checks.count_batch_norms(canonical, checks.draw(SHAPES, 2)) == 0
    assert [fate.outcome for fate in canonical.report.affines] == ["absorbed", "absorbed"]


@pytest.mark.parametrize("drop", [False, True], ids=["result read", "result dropped"])
def test_refuses_because_what_stays_whole_writes(drop: bool) -> None:
    model = harden(Shortcut("write_by_value", drop).double().eval(), 5)
    with pytest.raises(CanonizeError, match="values of a tensor"):
        canonize.canonize(model, checks.draw(SHAPES, 2), verify=False)
    with pytest.raises(CanonizeError, match="write_by_value, which is kept whole, writes into its arguments"):
        capture(model, normalise(checks.draw(SHAPES, 2)), "symbolic_trace")


def test_leaves_alone_what_stays_whole_and_only_reads() -> None:
    model = harden(Shortcut("read_by_value", drop=False).double().eval(), 6)
    canonical = canonize.canonize(model, checks.draw(SHAPES, 2), verify=False)
    checks.assert_same_function(model, canonical, SHAPES, tolerance=1e-10)
    assert checks.count_batch_norms(canonical, checks.draw(SHAPES, 2)) == 0


def test_the_inputs_handed_over_are_not_written() -> None:
    model = harden(Shortcut("read_by_value", drop=False).double().eval(), 7)
    (image,) = checks.draw(SHAPES, 2)
    before = image.clone()
    canonize.canonize(model, (image,))
    assert torch.equal(image, before)


@torch.jit.script
def scripted_add_into(x: Tensor, shortcut: Tensor) -> Tensor:
    x.add_(shortcut)
    return x


@torch.library.custom_op("canonize_tests::add_into", mutates_args={"x"})
def own_operator(x: Tensor, shortcut: Tensor) -> None:
    x.add_(shortcut)


fx.wrap("scripted_add_into")


class Hidden(nn.Module):
    """Writes that do not look like writes, and reads that look like them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.side, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.norm(self.conv(x)), self.side(x)
        if self.how == "scripted":
            scripted_add_into(y, z)
        elif self.how == "own operator":
            torch.ops.canonize_tests.add_into(y, z)
        elif self.how == "list":
            torch._foreach_add_([y], [z])
        elif self.how == "method":
            y.__iadd__(z)
        else:
            positive, small = y > 0, y < 0.5
            both = {"and": positive & small, "or": positive | small}[self.how]
            y = y * positive + 3 * both * z + small * z
        return self.head(y)


@pytest.mark.parametrize("how", ["scripted", "own operator", "list", "method", "and", "or"])
def test_exact_or_refused_however_a_write_is_spelt(how: str) -> None:
    model = harden(Hidden(how).double().eval(), 8)
    before = checks.snapshot(model)
    try:
        canonical = canonize.canonize(model, checks.draw(SHAPES, 2), verify=False)
    except CanonizeError:
        assert how not in ("and", "or", "method")
    else:
        checks.assert_same_function(model, canonical, SHAPES, tolerance=1e-10)
    checks.assert_untouched(model, before)


def test_a_write_into_a_list_of_tensors_is_refused_in_a_graph() -> None:
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    graph.call_function(torch._foreach_add_, ([x], [y]))
    graph.output(x)
    with pytest.raises(CanonizeError, match="writes into several tensors"):
        functionalize(graph, nn.Module())


class Renamed(nn.Module):
    """``+=`` and its kin write into a tensor that goes by another name as well; sizes are numbers and do not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        z = y
        if self.how == "sum":
            y += x[:, :1]
        elif self.how == "product":
            y *= 2
        elif self.how == "list":
            held = [y]
            held[0] -= 1
        elif self.how == "mask":
            mask = y > 0
            same = mask
            mask &= y < 1
            mask ^= y > 0.5
            z = y * same
        else:
            size = whole = y.shape[2]
            size *= 2
            z = y * (whole + size / 10)
        return self.head(z)


@pytest.mark.parametrize("how", ["sum", "product", "list", "mask", "size"])
def test_what_is_written_under_another_name_is_read(how: str) -> None:
    model = harden(Renamed(how).double().eval(), 9)
    canonical = canonize.canonize(model, checks.draw(SHAPES, 2), verify=False)
    checks.assert_same_function(model, canonical, SHAPES, tolerance=1e-10)
    assert canonical.report.captured_by == "symbolic_trace"
    larger = checks.draw(image(3, 9, 6), 1)
    assert checks.relative_error(canonical(*larger), model(*larger)) <= 1e-10


class Keeping(nn.Module):
    """As timm's ConViT: a table that is made anew where its size does not fit, and kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.register_buffer("places", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.places.shape[0] != x.shape[3]:
            self.places = torch.arange(x.shape[3], dtype=x.dtype)
        return self.norm(self.conv(x)) + self.places * torch.tensor([0.5], dtype=x.dtype)


def test_what_a_forward_keeps_is_no_obstacle() -> None:
    model = harden(Keeping().double().eval(), 10)
    canonical = canonize.canonize(model, checks.draw(SHAPES, 2), verify=False)
    checks.assert_same_function(model, canonical, SHAPES, tolerance=1e-10)
    assert canonical.report.captured_by == "symbolic_trace"
