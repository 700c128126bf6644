"""What the rewriting writes down: every rewrite, every refusal, and what became of each frozen affine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from canonize.graph.network import Origin
from canonize.report.data import AffineFate, Outcome, Refusal, Rewrite

Progress = Callable[[str, int, int], None]


@dataclass
class AffineCourse:
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
    courses: dict[Origin, AffineCourse] = field(default_factory=dict)
    limit: int | None = None
    watch: Callable[[Rewrite], None] | None = None
    takers: dict[str, list[AffineCourse]] = field(default_factory=dict)

    def take(self, course: AffineCourse, layers: Iterable[str]) -> None:
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
