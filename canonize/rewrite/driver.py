"""The driver: try every pattern around every affine until nothing changes, and write down what happened."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from canonize.errors import RewriteError
from canonize.flow import Plan, Refused
from canonize.flow.plan import label
from canonize.graph.network import FrozenAffine, Network
from canonize.patterns import MergePattern, Pattern, chosen, chosen_merges
from canonize.patterns.last_resort import ExplicitLinearLayer, keep_as_it_is
from canonize.report.data import Refusal, Rewrite
from canonize.rewrite.form import Form
from canonize.rewrite.idle import remove_idle_reshapes
from canonize.rewrite.journal import AffineCourse, Journal, Progress


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
    for node in network.affines():
        for origin in network.affine(node).origins:
            journal.courses[origin] = AffineCourse()
    for form in forms:
        form.before(network, journal)
    for node in network.affines():  # a form may have made some
        for origin in network.affine(node).origins:
            journal.courses.setdefault(origin, AffineCourse())
    patterns = chosen(strategy, skip)
    early = [p for p in patterns if not isinstance(p, ExplicitLinearLayer)]
    late = [p for p in patterns if isinstance(p, ExplicitLinearLayer)]
    merges = chosen_merges(skip)
    total = len(network.affines())
    bound = 20 * (len(network.modules) + 1)
    changed = True
    while changed:
        changed = False
        for pattern in early:
            waiting = network.affines()
            left = len(waiting)
            for node in waiting:
                if not pattern.match(network, node):
                    continue
                if not apply_pattern(network, pattern, node, journal):
                    continue
                changed = True
                left -= 1
                if progress is not None:
                    progress("rewrite", max(total - left, 0), total)
                if len(journal.rewrites) > bound:
                    raise RewriteError("the rewriting does not come to an end", label(network, node))
        for merge in merges:
            for node in list(network.graph.nodes):
                if node.op == "call_module" and str(node.target) in network.modules and merge.match(network, node):
                    changed |= _merge(network, merge, node, journal)
    for node in network.affines():
        if not any(apply_pattern(network, pattern, node, journal) for pattern in late):
            _leave(network, node, journal)
    remove_idle_reshapes(network)
    for form in forms:
        form.after(network, journal)
    return journal


def apply_pattern(network: Network, pattern: Pattern, node: fx.Node, journal: Journal) -> bool:
    """Rewrite around one affine if its pattern allows it there, and write down what happened."""
    if journal.full:
        return False
    name, origins = label(network, node), network.affine(node).origins
    plan = pattern.check(network, node)
    if isinstance(plan, Refused):
        journal.refuse(Refusal(pattern.name, name, plan.reason, plan.nodes))
        for origin in origins:
            journal.courses[origin].reasons[pattern.name] = plan.reason
        return False
    last = isinstance(pattern, ExplicitLinearLayer)
    detail = _describe(plan)
    merged = [label(network, other) for other in plan.merged]
    pattern.rewrite(network, plan)
    journal.add(Rewrite(pattern.name, name, (*plan.into, *merged), detail))
    if not last:
        journal.refused.pop(name, None)
    for origin in origins:
        course = journal.courses[origin]
        journal.take(course, plan.into)
        course.patterns.append(pattern.name)
        if last:
            course.outcome = "last resort"
    return True


def _merge(network: Network, pattern: MergePattern, node: fx.Node, journal: Journal) -> bool:
    if journal.full:
        return False
    name = label(network, node)
    merge = pattern.check(network, node)
    if isinstance(merge, Refused):
        journal.refuse(Refusal(pattern.name, name, merge.reason, merge.nodes))
        return False
    gone = network.module(merge.first)
    origins = gone.origins if isinstance(gone, FrozenAffine) else ()
    lost = label(network, merge.first)
    into = pattern.rewrite(network, node, merge)
    journal.add(Rewrite(pattern.name, lost, (into,)))
    journal.rename(lost, into)
    for origin in origins:
        journal.take(journal.courses[origin], [into])
        journal.courses[origin].patterns.append(pattern.name)
    journal.refused.pop(lost, None)
    return True


def _describe(plan: Plan) -> str:
    words = []
    if plan.passed:
        words.append("through " + ", ".join(sorted(plan.passed)))
    if plan.clones:
        words.append(f"{len(plan.clones)} layers copied")
    if plan.staying:
        words.append(f"stays on {len(plan.staying)} branches")
    return "; ".join(words)


def _leave(network: Network, node: fx.Node, journal: Journal) -> None:
    for origin in network.affine(node).origins:
        journal.courses[origin].outcome = "left"
    keep_as_it_is(network, node)
