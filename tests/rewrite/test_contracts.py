"""The contracts of the stages: each is broken once, by hand, and must say so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from canonize.capture import capture
from canonize.errors import RewriteError
from canonize.graph.network import Network
from canonize.inputs import normalise
from canonize.normalize import normalize
from canonize.rewrite.contracts import CONTRACTS, ensure
from canonize.rewrite.driver import rewrite
from canonize.rewrite.journal import Journal


def _stages() -> tuple[Network, Journal]:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)).eval()
    inputs = normalise(torch.randn(2, 3, 8, 8))
    network = normalize(capture(model, inputs), inputs, "Sequential")
    ensure("normalize", network)
    journal = rewrite(network)
    ensure("rewrite", network, journal)
    return network, journal


def _affine_waits(network: Network, journal: Journal) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    inputs = normalise(torch.randn(2, 3, 8, 8))
    network.__dict__.update(normalize(capture(model, inputs), inputs, "Sequential").__dict__)


def _forget_where(network: Network, journal: Journal) -> None:
    for history in journal.histories.values():
        history.into.clear()


def _into_a_layer_that_is_gone(network: Network, journal: Journal) -> None:
    for history in journal.histories.values():
        history.into[:] = ["nowhere"]


def _call_twice(network: Network, journal: Journal) -> None:
    first, *_ = [node for node in network.graph.nodes if node.op == "call_module"]
    with network.graph.inserting_after(first):
        first.replace_all_uses_with(network.graph.call_module(first.target, (first,)), lambda user: user is not first)


def _function(network: Network, journal: Journal) -> None:
    *_, last = [node for node in network.graph.nodes if node.op == "call_module"]
    with network.graph.inserting_after(last):
        last.replace_all_uses_with(new := network.graph.call_function(torch.relu, (last,)))
        new.args = (last,)


def _nested(network: Network, journal: Journal) -> None:
    node = next(node for node in network.graph.nodes if node.op == "call_module" and node.target == "3")
    network.modules["0.inner"] = network.modules.pop("3")
    node.target = "0.inner"


def _work_in_place(network: Network, journal: Journal) -> None:
    network.modules["2"].inplace = True


def _other_shape(network: Network, journal: Journal) -> None:
    node = next(node for node in network.graph.nodes if node.target == "0")
    network.shapes.value(node)
    network.shapes.own.meta[node] = torch.empty(2, 5, 6, 6, device="meta")


def _backwards(network: Network, journal: Journal) -> None:
    first, *_, last = [node for node in network.graph.nodes if node.op == "call_module"]
    last.append(first)


BROKEN: dict[str, Callable[[Network, Journal], None]] = {
    "every module is called, and called once": _call_twice,
    "no layer lies within another": _nested,
    "nothing works in place": _work_in_place,
    "no affine waits for a layer": _affine_waits,
    "each affine is absorbed, explicit or left": _forget_where,
    "every operation is a module": _function,
    "the graph is well formed": _backwards,
    "shapes are what the layers make": _other_shape,
}


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.holds)
def test_broken(contract):
    network, journal = _stages()
    BROKEN[contract.holds](network, journal)
    with pytest.raises(RewriteError, match=contract.holds):
        ensure("rewrite", network, journal)


def test_an_affine_in_a_layer_that_is_gone_is_lost():
    network, journal = _stages()
    _into_a_layer_that_is_gone(network, journal)
    with pytest.raises(RewriteError, match="absorbed, explicit or left"):
        ensure("rewrite", network, journal)
