"""What holds of a network after each stage of the pipeline: one table, checked by code.

Cheap contracts are checked in every conversion; the others, which cost as much as the stage itself, where `thorough`
asks for them: the tests do.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from canonize.errors import RewriteError
from canonize.graph.network import FrozenAffine, Network
from canonize.graph.shapes import Shapes
from canonize.rewrite.journal import Journal

Stage = Literal["normalize", "rewrite"]
STAGES: tuple[Stage, ...] = ("normalize", "rewrite")

_thorough: ContextVar[bool] = ContextVar("canonize_thorough_contracts", default=False)


@dataclass(frozen=True)
class Contract:
    """One thing that holds after a stage.

    Attributes
    ----------
    holds : str
        What, in words.
    after : tuple of str
        Stages that ensure it.
    cheap : bool
        Whether it is always checked.
    broken : callable
        Says where it does not hold: the first place, or None.
    """

    holds: str
    after: tuple[Stage, ...]
    cheap: bool
    broken: Callable[[Network, Journal | None], str | None]


@contextlib.contextmanager
def thorough() -> Iterator[None]:
    """Inside, this thread checks every contract, whatever it costs."""
    token = _thorough.set(True)
    try:
        yield
    finally:
        _thorough.reset(token)


def ensure(stage: Stage, network: Network, journal: Journal | None = None) -> None:
    """Check what a stage promises.

    Raises
    ------
    RewriteError
        If something does not hold: a fault of canonize, said before it can become a wrong model.
    """
    for contract in CONTRACTS:
        if stage in contract.after and (contract.cheap or _thorough.get()):
            where = contract.broken(network, journal)
            if where is not None:
                raise RewriteError(
                    f"after the stage {stage!r} it does not hold that {contract.holds}",
                    where,
                    "Please report this model; nothing was changed.",
                )


def _called_other_than_once(network: Network, journal: Journal | None) -> str | None:
    calls = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    wrong = (name for name in {**network.modules, **calls} if calls[name] != 1 or name not in network.modules)
    return next(wrong, None)


def _layer_within_a_layer(network: Network, journal: Journal | None) -> str | None:
    for name in network.modules:
        cut = name.rfind(".")
        while cut > 0:
            if name[:cut] in network.modules:
                return name
            cut = name.rfind(".", 0, cut)
    return None


def _in_place(network: Network, journal: Journal | None) -> str | None:
    return next((name for name, module in network.modules.items() if getattr(module, "inplace", False) is True), None)


def _no_module(network: Network, journal: Journal | None) -> str | None:
    for node in network.graph.nodes:
        if node.op == "get_attr":
            return str(node.name)
        if node.op in ("call_function", "call_method") and not _needs_no_rule(network, node):
            return f"{node.name} ({node.target})"
    return None


def _needs_no_rule(network: Network, node: torch.fx.Node) -> bool:
    # An item of a tuple that a layer returns is no operation of its own.
    item = getattr(node.target, "__name__", "") == "getitem" and not isinstance(
        network.shapes.value(node.args[0]),  # type: ignore[arg-type]
        Tensor,
    )
    return item or network.shapes.is_bookkeeping(node)


def _ill_formed(network: Network, journal: Journal | None) -> str | None:
    try:
        network.graph.lint()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def _stale_shape(network: Network, journal: Journal | None) -> str | None:
    """A value whose remembered shape or precision is not what its layer makes now."""
    anew = Shapes(network.graph, network.shapes.own.inputs, network.shapes.lookup)
    for node in network.graph.nodes:
        known = network.shapes.own.meta.get(node)
        found = anew.value(node) if isinstance(known, Tensor) else None
        if isinstance(known, Tensor) and isinstance(found, Tensor) and known.shape != found.shape:
            return f"{node.target}: {tuple(known.shape)} is remembered, it makes {tuple(found.shape)}"
    return None


def _waiting_affine(network: Network, journal: Journal | None) -> str | None:
    return next((name for name, module in network.modules.items() if isinstance(module, FrozenAffine)), None)


def _lost_affine(network: Network, journal: Journal | None) -> str | None:
    if journal is None:
        return None
    for fate in journal.affines():
        if fate.outcome == "absorbed" and not fate.into:
            return fate.name
        gone = [layer for layer in fate.into if layer not in network.modules]
        if gone and fate.outcome != "left":
            return f"{fate.name}, said to be in {gone[0]}"
    return None


CONTRACTS: tuple[Contract, ...] = (
    Contract("every module is called, and called once", STAGES, True, _called_other_than_once),
    Contract("no layer lies within another", STAGES, True, _layer_within_a_layer),
    Contract("nothing works in place", STAGES, True, _in_place),
    Contract("no affine waits for a layer", ("rewrite",), True, _waiting_affine),
    Contract("each affine is absorbed, explicit or left", ("rewrite",), True, _lost_affine),
    Contract("every operation is a module", STAGES, False, _no_module),
    Contract("the graph is well formed", STAGES, False, _ill_formed),
    Contract("shapes are what the layers make", STAGES, False, _stale_shape),
)
