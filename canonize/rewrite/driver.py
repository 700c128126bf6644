"""The driver: stage by stage, try every pattern wherever it could apply, and write down what happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from canonize.errors import RewriteError
from canonize.flow import Refused
from canonize.flow.edits import told
from canonize.flow.plan import Plan, label
from canonize.graph.affine_nodes import FrozenAffine, Origin
from canonize.graph.correspondence import Correspondence
from canonize.graph.network import Network
from canonize.patterns import Pattern, Stage, chosen
from canonize.patterns.last_resort import keep_as_it_is
from canonize.report.record import Refusal, Rewrite
from canonize.rewrite.form import Form
from canonize.rewrite.idle import remove_idle_reshapes
from canonize.rewrite.journal import Journal, Progress


def rewrite(
    network: Network,
    strategy: str = "threshold",
    skip: tuple[str, ...] = (),
    progress: Progress | None = None,
    forms: tuple[Form, ...] = (),
    limit: int | None = None,
    watch: Callable[[Rewrite], None] | None = None,
) -> Journal:
    """Absorb every frozen affine of a network, or say why not.

    Every rewrite takes one affine out of the graph, or turns it into parts that are final, so that the number of
    rewrites is bounded by the number of affines and their branches; going beyond that is an error.

    Parameters
    ----------
    network : Network
        Rewritten in place.
    strategy, skip
        As for `canonize.canonize`.
    progress : callable, optional
        Called as ``progress("rewrite", done, total)``.
    limit : int, optional
        Stop after so many rewrites: whoever looks for the one that went wrong halves the list.
    watch : callable, optional
        Called after each rewrite, with it.

    Raises
    ------
    RewriteError
        If the rewriting does not come to an end.
    """
    journal = Journal(limit=limit, watch=watch)
    network.values = Correspondence()  # with the network as it is now
    _follow_affines(network, journal)
    for form in forms:
        form.before(network, journal)
    _follow_affines(network, journal)  # a form may have made some
    patterns = chosen(strategy, skip)
    _repeat(network, [pattern for pattern in patterns if pattern.stage.by_turns], journal, progress)
    for pattern in (pattern for pattern in patterns if pattern.stage is Stage.LAST_RESORT):
        for node in network.affines():
            apply_pattern(network, pattern, node, journal)
    for node in network.affines():
        journal.absorbed(network.affine(node).origins, "", (), "left")
        keep_as_it_is(network, node)
    remove_idle_reshapes(network)
    for form in forms:
        form.after(network, journal)
    return journal


def _follow_affines(network: Network, journal: Journal) -> None:
    for node in network.affines():
        journal.follow(network.affine(node).origins)


def _repeat(network: Network, patterns: Sequence[Pattern[Any]], journal: Journal, progress: Progress | None) -> None:
    """Try patterns in their order, again and again, until none applies anywhere."""
    total = len(network.affines())
    bound = 20 * (len(network.modules) + 1)
    changed = True
    while changed:
        changed = False
        for pattern in patterns:
            waiting = _candidates(network, pattern)
            left = len(waiting)
            for node in waiting:
                if str(node.target) not in network.modules or not pattern.match(network, node):
                    continue
                if not apply_pattern(network, pattern, node, journal):
                    continue
                changed = True
                left -= 1
                if progress is not None and pattern.stage is not Stage.MERGE:
                    progress("rewrite", max(total - left, 0), total)
                if len(journal.rewrites) > bound:
                    raise RewriteError("the rewriting does not come to an end", label(network, node))


def _candidates(network: Network, pattern: Pattern[Any]) -> list[fx.Node]:
    """Nodes at which a pattern may be tried."""
    if pattern.stage is Stage.MERGE:
        return [node for node in network.graph.nodes if node.op == "call_module"]
    return network.affines()


def apply_pattern(network: Network, pattern: Pattern[Any], node: fx.Node, journal: Journal) -> bool:
    """Rewrite around one node if the pattern allows it there, and write down what happened."""
    if journal.full:
        return False
    plan = pattern.check(network, node)
    if isinstance(plan, Refused):
        refusal = Refusal(pattern.name, label(network, node), plan.reason, plan.nodes)
        journal.refuse(refusal, _origins(network, node))
        return False
    gone, origins = label(network, plan.anchor), _origins(network, plan.anchor)
    detail, merged = _describe(plan), [label(network, other) for other in plan.merged]
    pattern.rewrite(network, plan)
    edits = told([(label(network, edited), edit) for edited, edit in plan.edits])
    journal.add(Rewrite(pattern.name, gone, (*plan.into, *merged), detail, edits))
    last = pattern.stage is Stage.LAST_RESORT
    if not last:
        journal.refused.pop(gone, None)
    if gone not in network.modules:
        for layer in plan.into if pattern.stage is Stage.MERGE else ():
            journal.merged(gone, layer)
    journal.absorbed(origins, pattern.name, plan.into, "last resort" if last else "absorbed")
    return True


def _origins(network: Network, node: fx.Node) -> tuple[Origin, ...]:
    module = network.module(node)
    return module.origins if isinstance(module, FrozenAffine) else ()


def _describe(plan: Plan) -> str:
    words = []
    if plan.passed:
        words.append("through " + ", ".join(sorted(plan.passed)))
    if plan.clones:
        words.append(f"{len(plan.clones)} layers copied")
    if plan.staying:
        words.append(f"stays on {len(plan.staying)} branches")
    return "; ".join(words)
