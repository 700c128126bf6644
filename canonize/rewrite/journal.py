"""What the rewriting writes down: every rewrite, every refusal, and what became of each frozen affine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from canonize.graph.affine_nodes import Origin
from canonize.report.record import AffineFate, Outcome, Refusal, Rewrite

Progress = Callable[[str, int, int], None]


@dataclass
class AffineHistory:
    """What has happened to one frozen affine of the original model so far."""

    into: list[str] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    outcome: Outcome = "absorbed"
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass
class Journal:
    """Every rewrite and refusal, and the history of each affine.

    Attributes
    ----------
    rewrites : list of Rewrite
    refused : dict
        Refusals that stand, by layer and pattern.
    histories : dict
        What has happened to each frozen affine.
    limit : int, optional
        Number of rewrites after which no other is wanted.
    watch : callable, optional
        Called with each rewrite when it has been carried out.
    """

    rewrites: list[Rewrite] = field(default_factory=list)
    refused: dict[str, dict[str, Refusal]] = field(default_factory=dict)
    histories: dict[Origin, AffineHistory] = field(default_factory=dict)
    limit: int | None = None
    watch: Callable[[Rewrite], None] | None = None
    _held: dict[str, list[AffineHistory]] = field(default_factory=dict)

    def follow(self, origins: Iterable[Origin]) -> None:
        """Begin the histories of affines that have none yet."""
        for origin in origins:
            self.histories.setdefault(origin, AffineHistory())

    def absorbed(self, origins: Iterable[Origin], pattern: str, layers: Sequence[str], outcome: Outcome) -> None:
        """Write down which layers affines went into."""
        for origin in origins:
            history = self.histories[origin]
            if pattern:
                history.patterns.append(pattern)
            if outcome != "absorbed":
                history.outcome = outcome
            for layer in layers:
                history.into.append(layer)
                self._held.setdefault(layer, []).append(history)

    def merged(self, lost: str, into: str) -> None:
        """What an earlier fold has put into a layer that is gone now lies in the merged one."""
        histories = self._held.pop(lost, [])
        for history in histories:
            history.into[:] = [into if layer == lost else layer for layer in history.into]
        self._held.setdefault(into, []).extend(histories)

    def add(self, rewrite: Rewrite) -> None:
        """Write a rewrite down that has been carried out."""
        self.rewrites.append(rewrite)
        if self.watch is not None:
            self.watch(rewrite)

    def refuse(self, refusal: Refusal, origins: Iterable[Origin] = ()) -> None:
        """Write a refusal down; a newer one of the same pattern at the same layer takes its place."""
        self.refused.setdefault(refusal.anchor, {})[refusal.pattern] = refusal
        for origin in origins:
            self.histories[origin].reasons[refusal.pattern] = refusal.reason

    @property
    def refusals(self) -> list[Refusal]:
        """The refusals that still stand, layer by layer."""
        return [refusal for patterns in self.refused.values() for refusal in patterns.values()]

    @property
    def full(self) -> bool:
        """Whether no further rewrite is wanted."""
        return self.limit is not None and len(self.rewrites) >= self.limit

    def affines(self) -> list[AffineFate]:
        """What became of each frozen affine, in the order of the original model."""
        return [
            AffineFate(
                origin.name,
                origin.kind,
                history.outcome,
                history.patterns[-1] if history.patterns else None,
                tuple(dict.fromkeys(history.into)),
                "" if history.outcome == "absorbed" else _summary(history.reasons),
            )
            for origin, history in self.histories.items()
        ]


def _summary(reasons: dict[str, str]) -> str:
    """Reasons by pattern; patterns that stumble over the same share it."""
    patterns: dict[str, list[str]] = {}
    for pattern, reason in reasons.items():
        patterns.setdefault(reason, []).append(pattern)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in patterns.items())
