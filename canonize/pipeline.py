"""capture -> normalize -> rewrite: from a model to its canonical graph, without proof."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from canonize._version import __version__
from canonize.capture import capture
from canonize.graph.containers import containers
from canonize.graph.network import Network
from canonize.inputs import Inputs
from canonize.normalize import normalize
from canonize.report import Report
from canonize.report.record import AffineFate, Rewrite
from canonize.rewrite.contracts import ensure
from canonize.rewrite.driver import rewrite
from canonize.rewrite.form import Form
from canonize.rewrite.journal import Progress
from canonize.twins.module_tree import class_name, named_modules


class RewriteWatch(Protocol):
    """Looks at a network after each of its rewrites."""

    def check(self, rewrite: Rewrite) -> None:
        """Raise if the rewrite has changed what the network computes."""

    def note(self) -> str:
        """What has been checked, in a line."""


@dataclass(frozen=True)
class Options:
    """How the canonical form is to look, where there is a choice."""

    strategy: str = "threshold"
    skip: tuple[str, ...] = ()
    forms: tuple[Form, ...] = ()


def normalized(model: nn.Module, inputs: Inputs, tracer: str) -> Network:
    """The graph of a model, each operation a module; nothing is rewritten."""
    network = normalize(capture(model, inputs, tracer), inputs, class_name(model))
    ensure("normalize", network)
    return network


def rewritten(
    model: nn.Module,
    inputs: Inputs,
    tracer: str,
    options: Options,
    tell: Progress | None = None,
    limit: int | None = None,
    watcher: Callable[[Network], RewriteWatch] | None = None,
) -> tuple[Network, Report]:
    """Capture, normalize and rewrite, with one tracer and without proof; at most ``limit`` rewrites."""
    tell = tell or (lambda stage, done, total: None)
    captured = capture(model, inputs, tracer)
    network = normalize(captured, inputs, class_name(model))
    ensure("normalize", network)
    before = network.snapshot()
    tell("capture", 1, 1)
    watch = watcher(network) if watcher is not None else None
    watching = watch.check if watch is not None else None
    journal = rewrite(network, options.strategy, options.skip, tell, options.forms, limit, watching)
    ensure("rewrite", network, journal)
    network.before = before
    if watch is not None:
        network.notes.append(watch.note())
    report = Report(
        model=class_name(model),
        strategy=options.strategy,
        skip=list(options.skip),
        forms=[form.name for form in options.forms],
        captured_by=captured.tracer,
        inputs=inputs.describe(),
        affines=[
            *journal.affines(),
            *(AffineFate(o.name, o.kind, "left", reason=why) for o, why in network.unread.items()),
        ],
        rewrites=journal.rewrites,
        refusals=journal.refusals,
        notes=list(network.notes),
        versions=versions(),
    )
    report.names = _name_map(model, network)
    holders = [name for name, module in named_modules(model) if any(True for _ in module.children())]
    report.containers = containers(holders, before, network)
    return network, report


def versions() -> dict[str, str]:
    """What a report says it was made with."""
    return {"canonize": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def _name_map(model: nn.Module, network: Network) -> dict[str, str | None]:
    """Old qualified name to new one; None where the layer is gone."""
    leaves = [name for name, module in named_modules(model) if name and not any(True for _ in module.children())]
    return {name: name if name in network.modules else None for name in leaves}
