"""What a captured graph does is compared with what the model does, operator by operator."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import canonize
from canonize.capture import capture
from canonize.capture.conformance import check_conformance, check_values
from canonize.errors import ConformanceError
from canonize.inputs import normalise
from tests.statistics import harden


class Net(nn.Module):
    """A convolution, a batch norm, a branch that is added in place, three pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b, self.d = nn.Conv2d(3, 6, 3), harden(nn.BatchNorm2d(6)), nn.Conv2d(3, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.c(x))
        y += self.d(x) * 0.5
        one, two, _ = y.chunk(3, 1)
        return torch.cat([one, F.relu(two)], 1).flatten(1) / x.shape[-1]


X = torch.randn(2, 3, 8, 8)


def _without_the_write(graph: fx.Graph) -> None:
    (node,) = (n for n in graph.nodes if n.name == "iadd")
    node.replace_all_uses_with(node.args[0])
    graph.erase_node(node)


def _a_number_baked(graph: fx.Graph) -> None:
    (node,) = (n for n in graph.nodes if n.name == "truediv")
    node.args = (node.args[0], 8)


def _another_number(graph: fx.Graph) -> None:
    (node,) = (n for n in graph.nodes if n.name == "mul")
    node.args = (node.args[0], 0.25)


def _another_piece(graph: fx.Graph) -> None:
    relu = next(n for n in graph.nodes if n.target is F.relu)
    relu.args = (relu.args[0].prev,)


def _another_layer(graph: fx.Graph) -> None:
    node = next(n for n in graph.nodes if n.target == "d")
    node.target = "c"


def _one_more(graph: fx.Graph) -> None:
    output = next(n for n in graph.nodes if n.op == "output")
    with graph.inserting_before(output):
        output.args = (graph.call_function(torch.tanh, (output.args[0],)),)


@pytest.mark.parametrize(
    "slip", [_without_the_write, _a_number_baked, _another_number, _another_piece, _another_layer, _one_more]
)
def test_a_slip_of_the_tracer_shows(slip: Callable[[fx.Graph], None]) -> None:
    inputs = normalise(X)
    captured = capture(Net().eval(), inputs, "symbolic_trace")
    check_conformance(Net().eval(), captured, inputs)
    slip(captured.graph)
    with pytest.raises(ConformanceError):
        check_conformance(Net().eval(), captured, inputs)


def test_the_difference_names_the_line() -> None:
    inputs = normalise(X)
    captured = capture(Net().eval(), inputs, "symbolic_trace")
    _without_the_write(captured.graph)
    with pytest.raises(ConformanceError, match=r"test_conformance\.py:\d+: the model calls add_"):
        check_conformance(Net().eval(), captured, inputs)


def test_nothing_of_the_model_is_changed_and_nothing_random_is_drawn() -> None:
    model, inputs = Net().train(), normalise(X)
    captured = capture(model, inputs, "symbolic_trace")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    check_conformance(model, captured, inputs)
    check_values(model, captured, inputs)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


class Modes(nn.Module):
    """Asks for the mode that it is run in."""

    def __init__(self, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), harden(nn.BatchNorm2d(4)), nn.ReLU(), nn.Conv2d(4, 2, 1))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.net, x)


def _autocast(net: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net(x)


def _no_grad(net: nn.Module, x: Tensor) -> Tensor:
    y = net(x)
    with torch.no_grad():
        q = y.mean(1, keepdim=True)
    return y * q


@pytest.mark.parametrize(
    "how",
    [
        lambda net, x: net(x) if torch.is_grad_enabled() else net(x) * 1.0,
        lambda net, x: net(x) + 0 if x.requires_grad else net(x),
        lambda net, x: net(x) if net[0].weight.requires_grad else net(x) + 1,
        lambda net, x: (
            torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False)
            if torch.is_grad_enabled() and x.requires_grad
            else net(x)
        ),
        _no_grad,
    ],
)
@pytest.mark.parametrize("verify", [False, True])
def test_a_forward_may_ask_for_gradients(how: Callable[[nn.Module, Tensor], Tensor], verify: bool) -> None:
    model = Modes(how).double().eval()
    built = canonize.canonize(model, X.double(), verify=verify)
    given = torch.randn(3, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(built(given), model(given), rtol=1e-10, atol=1e-10)
    wanted, found = (torch.autograd.grad(m(given).sum(), given)[0] for m in (model, built))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "how",
    [
        lambda net, x: net(x) if torch.is_grad_enabled() else net(x) + 1,
        lambda net, x: net(x) if x.requires_grad else net(x) + 1,
    ],
)
@pytest.mark.parametrize("verify", [False, True])
def test_what_depends_on_gradients_is_refused_and_said(
    how: Callable[[nn.Module, Tensor], Tensor], verify: bool
) -> None:
    with pytest.raises(ConformanceError, match="gradients"):
        canonize.canonize(Modes(how).eval(), X, verify=verify)


@pytest.mark.parametrize("verify", [False, True])
def test_autocast_inside_is_kept(verify: bool) -> None:
    model = Modes(_autocast).eval()
    built = canonize.canonize(model, X, verify=verify)
    given = torch.randn(3, 3, 8, 8)
    wanted, found = model(given), built(given)
    assert found.dtype == wanted.dtype == torch.bfloat16
    assert (found.float() - wanted.float()).abs().max() <= 0.05 * wanted.float().abs().max()
