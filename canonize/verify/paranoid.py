"""Each rewrite checked alone, on the part of the graph that it changed, before against after."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.algebra.weights import PendingWeights
from canonize.errors import RewriteError
from canonize.graph.network import Network, shell
from canonize.graph.shapes import Unknown
from canonize.nn import ThreshLeakyReLU, ThreshReLU
from canonize.report.record import Rewrite
from canonize.verify import measure

TOLERANCE = 1e-10
# Each draw is ten times wider than the one before, until every linear region of every channel has been seen.
_SCALES = (1.0, 10.0, 100.0, 1e3, 0.1, 1e4)
_ENDS: dict[type[nn.Module], Callable[[Any], list[Any]]] = {
    ThreshReLU: lambda m: [b for b in (m.lower, m.upper) if b is not None],
    ThreshLeakyReLU: lambda m: [m.threshold],
    nn.ReLU: lambda m: [0.0],
    nn.ReLU6: lambda m: [0.0, 6.0],
    nn.Hardtanh: lambda m: [m.min_val, m.max_val],
    nn.LeakyReLU: lambda m: [0.0],
    nn.PReLU: lambda m: [0.0],
    nn.Hardswish: lambda m: [-3.0, 3.0],
    nn.Hardsigmoid: lambda m: [-3.0, 3.0],
}


@dataclass(frozen=True)
class _NodeState:
    """A node as far as a rewrite can change it."""

    node: fx.Node
    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    module: nn.Module | None
    kept: nn.Module | None
    weights: PendingWeights | None

    def same(self, other: _NodeState) -> bool:
        mine, theirs = (vars(entry.weights) if entry.weights is not None else {} for entry in (self, other))
        call = (self.op, str(self.target), self.args, self.kwargs)
        return (
            call == (other.op, str(other.target), other.args, other.kwargs)
            and self.module is other.module
            and _settings(self.kept) == _settings(other.kept)
            and getattr(self.kept, "affine", None) is getattr(other.kept, "affine", None)
            and (not theirs or all(theirs[key] is value for key, value in mine.items()))
            and (bool(mine) or not theirs or not other.weights.touched)  # type: ignore[union-attr]
        )


def _settings(module: nn.Module | None) -> dict[str, Any]:
    """Plain attributes: padding, stride and the like."""
    held = vars(module).items() if module is not None else ()
    return {key: value for key, value in held if isinstance(value, (bool, int, float, str, tuple, list))}


State = dict[str, _NodeState]
# Activation and number of the threshold: whether each channel has been seen below, and above.
Regions = dict[tuple[str, int], list[Tensor]]


class RewriteCheck:
    """Looks at a network before and after each rewrite.

    Parameters
    ----------
    network : Network

    Attributes
    ----------
    checked : int
        Rewrites that were found to change nothing.
    unknown : int
        Rewrites of parts that read a value of unknown shape; they were not checked.
    regions, reached : int
        Linear regions of the activations involved, channel by channel; and those that an input lay in.
    worst : float
        Largest relative difference of any rewrite.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.checked = self.unknown = self.regions = self.reached = 0
        self.worst = 0.0
        self._state = self._look()

    def note(self) -> str:
        """What was checked, as one sentence."""
        left = f", {self.unknown} could not be (a shape is unknown)" if self.unknown else ""
        return (
            f"paranoid: {self.checked} rewrites checked alone in float64{left}, largest difference {self.worst:.1e}; "
            f"{self.reached} of {self.regions} linear regions of their activations reached"
        )

    def check(self, rewrite: Rewrite) -> None:
        """Compare the part that the latest rewrite changed with what it was.

        Raises
        ------
        RewriteError
            If it computes something else.
        """
        before, after = self._state, self._look()
        self._state = after
        part = _part(before, after)
        if not part:
            return
        outputs = _read_from_outside(before, part) & _read_from_outside(after, part)
        seen: Regions = {}
        for draw, scale in enumerate(_SCALES):
            fed = self._draw(before, after, part, draw, scale)
            if any(value is Unknown for value in fed.values()):
                self.unknown += 1
                return
            first = _run(self.network, before, part, fed, seen)
            second = _run(self.network, after, part, fed, None)
            for name in outputs:
                self._compare(name, first[name], second[name], rewrite)
            if all(bool(region.all()) for regions in seen.values() for region in regions):
                break
        self.checked += 1
        self.regions += sum(region.numel() for regions in seen.values() for region in regions)
        self.reached += sum(int(region.sum()) for regions in seen.values() for region in regions)

    def _compare(self, name: str, before: Any, after: Any, rewrite: Rewrite) -> None:
        if measure.first_nonfinite(before):
            return
        found = measure.compare(before, after, name)
        self.worst = max(self.worst, found.error)
        if not found.error <= TOLERANCE:
            how = found.mismatch or f"by {found.error:.2g} of its scale, {found.where}"
            hint = f"Please report this model; --skip {rewrite.pattern} goes without it"
            raise RewriteError(f"{rewrite.pattern} changed what {name} gives ({how})", rewrite.anchor, hint)

    def _look(self) -> State:
        state: State = {}
        for node in self.network.graph.nodes:
            module = self.network.module(node)
            pending = self.network.pending.get(str(node.target)) if module is not None else None
            args, kwargs = _by_name((node.args, node.kwargs))
            # A rewrite may set a padding in place: what is kept is a copy that shares the tensors.
            kept = shell(module) if module is not None else None
            state[node.name] = _NodeState(node, node.op, node.target, args, kwargs, module, kept, copy.copy(pending))
        return state

    def _draw(self, before: State, after: State, part: set[str], draw: int, scale: float) -> dict[str, Any]:
        """Values for what the part reads from outside: wide, and shifted channel by channel."""
        generator = torch.Generator().manual_seed(draw)
        names = {n for state in (before, after) for name in part & state.keys() for n in _read(state[name])} - part
        fed: dict[str, Any] = {}
        for name in sorted(names):
            value = self.network.shapes.value((after if name in after else before)[name].node)
            fed[name] = fx.node.map_aggregate(value, lambda v: _random(v, scale, generator, self.network.device))
        return fed


@dataclass(frozen=True)
class _NodeName:
    """Stands for a node in the arguments of another."""

    name: str


def _by_name(arguments: Any) -> Any:
    """The same nested arguments with names in the place of nodes."""
    swap: Any = lambda a: _NodeName(a.name) if isinstance(a, fx.Node) else a  # noqa: E731
    return fx.node.map_aggregate(arguments, swap)


def _random(value: Any, scale: float, generator: torch.Generator, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    if not value.is_floating_point():
        return torch.zeros(value.shape, dtype=value.dtype, device=device)
    drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    if value.dim() > 1:
        drawn += (
            2 * torch.randn((value.shape[0], value.shape[1], *[1] * (value.dim() - 2)), generator=generator).double()
        )
    return (scale * drawn).to(device)


def _read(entry: _NodeState) -> set[str]:
    found: set[str] = set()
    fx.node.map_aggregate((entry.args, entry.kwargs), lambda a: found.add(a.name) if isinstance(a, _NodeName) else None)
    return found


def _part(before: State, after: State) -> set[str]:
    """What changed, and everything between.

    Where only one of the two reads a value that is computed from what only the other reads (a layer that now has a
    copy), that computation belongs to the part: drawn on its own the value would be another one.
    """
    part = before.keys() ^ after.keys()
    part |= {name for name in before.keys() & after.keys() if not before[name].same(after[name])}
    size = -1
    while part and len(part) != size:
        size = len(part)
        for state in (before, after):
            part |= _between(state, part & state.keys(), part & state.keys())
        first, second = ({n for name in part & s.keys() for n in _read(s[name])} - part for s in (before, after))
        for state, ends, starts in ((before, first - second, second), (after, second - first, first)):
            computed = _between(state, starts & state.keys(), ends & state.keys()) - (starts - ends)
            part |= computed if len(computed - ends) or ends & _behind(state, starts - ends) else set()
    return part


def _between(state: State, starts: set[str], ends: set[str]) -> set[str]:
    return _behind(state, starts) & _closure(ends, lambda name: _read(state[name]))


def _behind(state: State, starts: set[str]) -> set[str]:
    readers: dict[str, set[str]] = {}
    for name, entry in state.items():
        for read in _read(entry):
            readers.setdefault(read, set()).add(name)
    return _closure(starts & state.keys(), lambda name: readers.get(name, ()))


def _closure(start: set[str], step: Callable[[str], Iterable[str]]) -> set[str]:
    found, stack = set[str](), list(start)
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack.extend(step(name))
    return found


def _read_from_outside(state: State, part: set[str]) -> set[str]:
    """Nodes of a part that somebody else reads; the output itself where it belongs to the part."""
    outside = {n for name, entry in state.items() if name not in part for n in _read(entry)}
    return (outside & part) | {name for name in part & state.keys() if state[name].op == "output"}


def _run(
    network: Network,
    state: State,
    part: set[str],
    fed: dict[str, Any],
    seen: dict[tuple[str, int], list[Tensor]] | None,
) -> dict[str, Any]:
    values = dict(fed)
    with torch.no_grad():
        for name, entry in state.items():
            if name not in part:
                continue
            args, kwargs = fx.node.map_aggregate(
                (entry.args, entry.kwargs), lambda a: values[a.name] if isinstance(a, _NodeName) else a
            )
            if entry.op == "output":
                values[name] = args[0]
            elif entry.op == "call_module":
                assert entry.kept is not None
                if seen is not None:
                    _note_regions(name, entry.kept, args, seen)
                values[name] = network.finished(entry.kept, entry.weights, torch.float64)(*args, **kwargs)
            elif entry.op == "call_method":
                values[name] = getattr(args[0], str(entry.target))(*args[1:], **kwargs)
            elif entry.op == "call_function":
                values[name] = entry.target(*args, **kwargs)
    return values


def _note_regions(name: str, module: nn.Module, args: Any, seen: Regions) -> None:
    ends = _ENDS.get(type(module))
    if ends is None or not args or not isinstance(args[0], Tensor):
        return
    x = args[0] if args[0].dim() > 1 else args[0].reshape(1, -1)
    dims = [d for d in range(x.dim()) if d != 1]
    for number, end in enumerate(ends(module)):
        bound = torch.as_tensor(end).to(x)
        # An infinite bound is no threshold.
        finite = torch.isfinite(bound.expand_as(x)).amax(dims)
        now = [(x < bound).amax(dims)[finite], (x > bound).amax(dims)[finite]]
        before = seen.get((name, number), [torch.zeros_like(part) for part in now])
        seen[name, number] = [a | b for a, b in zip(before, now, strict=True)]
