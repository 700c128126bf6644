"""The driver: try every pattern around every affine until nothing changes, and write down what happened."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import fx

from canonize.errors import RewriteError
from canonize.flow import Plan, Refused
from canonize.flow.plan import label
from canonize.network import FrozenAffine, Network, Origin
from canonize.patterns import MergePattern, Pattern, chosen, chosen_merges
from canonize.patterns.last_resort import ExplicitLinearLayer, keep_as_it_is
from canonize.report import AffineFate, Outcome, Refusal, Rewrite
from canonize.tidy import remove_idle_reshapes

if TYPE_CHECKING:
    from canonize.forms.form import Form

Progress = Callable[[str, int, int], None]


@dataclass
class _Course:
    """What has happened to one frozen affine of the original model so far."""

    into: list[str] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    outcome: Outcome = "absorbed"
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass
class Journal:
    """Every rewrite and refusal, and the fate of each affine."""

    rewrites: list[Rewrite] = field(default_factory=list)
    refused: dict[str, dict[str, Refusal]] = field(default_factory=dict)
    courses: dict[Origin, _Course] = field(default_factory=dict)
    limit: int | None = None
    watch: Callable[[Rewrite], None] | None = None
    takers: dict[str, list[_Course]] = field(default_factory=dict)

    def take(self, course: _Course, layers: Iterable[str]) -> None:
        """Write down which layers an affine went into."""
        for layer in layers:
            course.into.append(layer)
            self.takers.setdefault(layer, []).append(course)

    def rename(self, lost: str, into: str) -> None:
        """What an earlier fold has put into a layer that is gone now lies in the merged one."""
        courses = self.takers.pop(lost, [])
        for course in courses:
            course.into[:] = [into if layer == lost else layer for layer in course.into]
        self.takers.setdefault(into, []).extend(courses)

    def add(self, rewrite: Rewrite) -> None:
        """Write a rewrite down."""
        self.rewrites.append(rewrite)
        if self.watch is not None:
            self.watch(rewrite)

    @property
    def refusals(self) -> list[Refusal]:
        """The refusals that still stand, layer by layer."""
        return [refusal for patterns in self.refused.values() for refusal in patterns.values()]

    def refuse(self, refusal: Refusal) -> None:
        """Write a refusal down; a newer one of the same pattern at the same layer takes its place."""
        self.refused.setdefault(refusal.anchor, {})[refusal.pattern] = refusal

    @property
    def full(self) -> bool:
        """Whether no further rewrite is wanted."""
        return self.limit is not None and len(self.rewrites) >= self.limit

    def fates(self) -> list[AffineFate]:
        """What became of each frozen affine, in the order of the original model."""
        return [
            AffineFate(
                origin.name,
                origin.kind,
                course.outcome,
                course.patterns[-1] if course.patterns else None,
                tuple(dict.fromkeys(course.into)),
                "" if course.outcome == "absorbed" else _told(course.reasons),
            )
            for origin, course in self.courses.items()
        ]


def _told(reasons: dict[str, str]) -> str:
    """Reasons by pattern; patterns that stumble over the same share it."""
    patterns: dict[str, list[str]] = {}
    for pattern, reason in reasons.items():
        patterns.setdefault(reason, []).append(pattern)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in patterns.items())


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
            journal.courses[origin] = _Course()
    for form in forms:
        form.before(network, journal)
    for node in network.affines():  # a form may have made some
        for origin in network.affine(node).origins:
            journal.courses.setdefault(origin, _Course())
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
