"""Plan where an affine goes, without changing anything; commit a plan that every end can take."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from canonize.algebra.affine import Affine
from canonize.flow.edits import Edit, HoldConstant
from canonize.graph.affine_nodes import FrozenAffine
from canonize.graph.network import Network
from canonize.nn import Concat, Rearrange, ThreshLeakyReLU, ThreshReLU

_CONSTANT = "constant channels"
ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, ThreshReLU, ThreshLeakyReLU)


class RefusedError(Exception):
    """Raised by a rule: the affine cannot pass here, and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DeadChannelError(Exception):
    """Raised by a rule that divides by the scale where the scale is zero."""


@dataclass(frozen=True)
class Refused:
    """A plan that cannot be carried out.

    Attributes
    ----------
    reason : str
    nodes : tuple of str
        Qualified names of the layers concerned.
    passed : dict
        What the walk had passed until then, as in a plan.
    """

    reason: str
    nodes: tuple[str, ...] = ()
    passed: dict[str, str] = field(default_factory=dict, compare=False, repr=False)


@dataclass
class Plan:
    """What to change so that an affine disappears.

    Attributes
    ----------
    anchor : fx.Node
        The node that holds the affine.
    forward : bool
        Whether it goes to the readers, or to the producers.
    edits : list
        Nodes and what is done to each, in the order of the walk.
    into : list of str
        Qualified names of the layers that take it.
    passed : dict
        Kinds of operations on the way (``activation``, ``concat``, ...), and the first of each kind.
    carried : dict
        The affine between a value before the rewrite and after it, for each node on the way.
    merged : list of fx.Node
        Other affines that take it.
    path : list
        Backward plans: the nodes walked over, each with its readers on the way; from the anchor to the producers.
    clones : list of fx.Node
        Nodes of the path that get a copy, because somebody else reads them.
    staying : dict
        Nodes of the path that cannot take the affine; it stays behind them.
    """

    anchor: fx.Node
    forward: bool = True
    edits: list[tuple[fx.Node, Edit]] = field(default_factory=list)
    into: list[str] = field(default_factory=list)
    passed: dict[str, str] = field(default_factory=dict)
    carried: dict[fx.Node, Affine] = field(default_factory=dict)
    merged: list[fx.Node] = field(default_factory=list)
    path: list[tuple[fx.Node, frozenset[fx.Node]]] = field(default_factory=list)
    clones: list[fx.Node] = field(default_factory=list)
    staying: dict[fx.Node, Affine] = field(default_factory=dict)


@dataclass
class Step:
    """One operation on an affine's way, as a rule sees it."""

    network: Network
    node: fx.Node
    plan: Plan

    @property
    def module(self) -> nn.Module:
        """The operation."""
        module = self.network.module(self.node)
        assert module is not None
        return module

    @property
    def dtype(self) -> torch.dtype:
        """The model's floating dtype, which thresholds and padding constants are rounded to."""
        return self.network.dtype

    def shape(self, node: fx.Node | None = None) -> tuple[int, ...]:
        """Shape of a node's value (by default: of this one's)."""
        shape = self.network.shapes.shape(node or self.node)
        if shape is None:
            raise RefusedError(f"the shape at {self.label(node)} cannot be inferred")
        return shape

    def label(self, node: fx.Node | None = None) -> str:
        """How a report calls a node."""
        return label(self.network, node or self.node)

    def require(self, condition: bool, reason: str) -> None:
        """RefusedError unless a condition holds."""
        if not condition:
            raise RefusedError(reason)

    def pass_through(self, kind: str) -> None:
        """Say what kind of operation is passed; a pattern that does not pass it has no use for the plan."""
        self.plan.passed.setdefault(kind, f"{self.label()} ({type(self.module).__name__})")

    def edit(self, change: Edit) -> None:
        """Note a change to this node."""
        self.plan.edits.append((self.node, change))

    def absorbed(self, change: Edit) -> None:
        """Note that this layer takes the affine."""
        self.edit(change)
        self.plan.into.append(str(self.node.target))

    def living_zero(self, affine: Affine) -> Tensor:
        """The value :math:`z` that the affine maps to zero."""
        zero = affine.zero(self.dtype)
        if zero is None:
            if bool(affine.dead(self.dtype).any()):
                raise DeadChannelError
            raise RefusedError(
                f"its scale is so small that the threshold -t/s overflows {self.dtype} at {self.label()}"
            )
        return zero


ForwardRule = Callable[[Step, list[Affine | None]], Affine | None]
BackwardRule = Callable[[Step, Affine], list[Affine | None]]
_FORWARD: dict[type, ForwardRule] = {}
_BACKWARD: dict[type, BackwardRule] = {}


def forward_rule(*types: type) -> Callable[[ForwardRule], ForwardRule]:
    """Register what happens to affines on the inputs of an operation: the affine on its output, or None if absorbed."""

    def register(rule: ForwardRule) -> ForwardRule:
        _FORWARD.update(dict.fromkeys(types, rule))
        return rule

    return register


def backward_rule(*types: type) -> Callable[[BackwardRule], BackwardRule]:
    """Register which affines an operation's inputs need so that its output carries the given one."""

    def register(rule: BackwardRule) -> BackwardRule:
        _BACKWARD.update(dict.fromkeys(types, rule))
        return rule

    return register


def label(network: Network, node: fx.Node) -> str:
    """How a report calls a node: the layer's qualified name where it has one."""
    if node.op == "call_module":
        return str(node.target)
    if node.op == "placeholder":
        return f"the input {node.target}"
    return "the output" if node.op == "output" else node.name


# -------------------------------------------------------------------------------------------------- forward


def plan_forward(network: Network, anchor: fx.Node, allowed: frozenset[str]) -> Plan | Refused:
    """Plan to move the affine at ``anchor`` into everything that reads it, at the far end of what it may pass.

    The way is walked once for all patterns that ask; each is told whether it passes what it may pass.
    """
    seen: set[fx.Node] = {anchor}
    found = network.remembered(("forward", anchor), lambda: (_plan_forward(network, anchor, seen), seen))
    return _within(found, allowed)


def _within(found: Plan | Refused, allowed: frozenset[str]) -> Plan | Refused:
    """A plan, or a refusal, for a pattern that passes certain kinds of operations only."""
    for kind, first in found.passed.items():
        if kind not in allowed and kind != _CONSTANT:
            return Refused(f"it would have to pass {first}", (first.rpartition(" (")[0],))
    return found


def _plan_forward(network: Network, anchor: fx.Node, seen: set[fx.Node]) -> Plan | Refused:
    affine = network.affine(anchor).affine
    try:
        return _walk_forward(network, anchor, affine, None, seen)
    except DeadChannelError:
        living, clamp = revive(affine, network.dtype)
        try:
            return _walk_forward(network, anchor, living, clamp, seen)
        except DeadChannelError:
            return Refused("a scale became zero on the way", (label(network, anchor),))


def revive(affine: Affine, dtype: torch.dtype) -> tuple[Affine, HoldConstant]:
    """Make dead channels constants before the affine: a clamp with equal bounds, then scale 1 and shift 0."""
    dead = affine.dead(dtype)
    scale, shift = torch.broadcast_tensors(affine.scale, affine.shift)
    infinite = torch.full_like(shift, float("inf"))
    clamp = HoldConstant(torch.where(dead, shift, -infinite), torch.where(dead, shift, infinite))
    living = Affine(torch.where(dead, torch.ones_like(scale), scale), torch.where(dead, torch.zeros_like(shift), shift))
    return living.compress(), clamp


def _walk_forward(
    network: Network, anchor: fx.Node, affine: Affine, clamp: HoldConstant | None, seen: set[fx.Node]
) -> Plan | Refused:
    plan = Plan(anchor)
    if clamp is not None:
        plan.edits.append((anchor, clamp))
        plan.passed[_CONSTANT] = label(network, anchor)
    pending: dict[fx.Node, Affine] = {anchor: affine.compress()}
    queue = list(network.readers(anchor))
    heapq.heapify(queue)
    waiting = set(queue)
    seen |= waiting
    while queue:
        node = heapq.heappop(queue)
        step = Step(network, node, plan)
        incoming = [pending.get(source) for source in network.data_inputs(node)]
        try:
            outgoing = _forward(step, incoming)
        except RefusedError as refusal:
            return Refused(refusal.reason, (step.label(),), plan.passed)
        if outgoing is None:
            continue
        outgoing = outgoing.compress()
        loose = _newly_varying(step, incoming, outgoing) and network.shapes.free_among(node, outgoing.varying())
        if loose:
            return Refused(
                f"behind {step.label()} it differs along dimension {min(loose)}, which has no fixed size",
                (step.label(),),
                plan.passed,
            )
        pending[node] = plan.carried[node] = outgoing
        for reader in network.readers(node):
            if reader not in waiting:
                waiting.add(reader)
                seen.add(reader)
                heapq.heappush(queue, reader)
    return plan


def _newly_varying(step: Step, incoming: list[Affine | None], outgoing: Affine) -> bool:
    """Whether an affine may differ along other dimensions than before: nothing that works element by element does that.

    It spares the inference of shapes.
    """
    first = incoming[0]
    return first is None or not isinstance(step.module, ELEMENTWISE) or not outgoing.varying() <= first.varying()


def _forward(step: Step, incoming: list[Affine | None]) -> Affine | None:
    node = step.node
    if node.op == "output":
        raise RefusedError("the model returns it as it is")
    if node.op != "call_module":
        raise RefusedError(f"{node.name} needs the value as it is")
    for cls in type(step.module).__mro__:  # the most specific rule
        if cls in _FORWARD:
            return _FORWARD[cls](step, incoming)
    raise RefusedError(f"no affine passes {step.label()} ({type(step.module).__name__})")


# ------------------------------------------------------------------------------------------------- backward


def plan_backward(
    network: Network, anchor: fx.Node, allowed: frozenset[str], *, duplicate: bool = False, stay: bool = False
) -> Plan | Refused:
    """Plan to move the affine at ``anchor`` into what produces its input.

    Parameters
    ----------
    duplicate : bool
        Copy a producer that somebody else reads too (*untangling*), instead of refusing.
    stay : bool
        Where a branch cannot take its part, leave it on that branch, instead of refusing.
    """
    question = ("backward", anchor, duplicate, stay)
    seen: set[fx.Node] = {anchor}
    found = network.remembered(question, lambda: (_walk_backward(network, anchor, duplicate, stay, seen), seen))
    return _within(found, allowed)


def _shared_branch(network: Network, source: fx.Node, affine: Affine) -> Refused | None:
    """See without a walk that a branch is read elsewhere: in a DenseNet every concatenation has dozens."""
    if not isinstance(network.module(source), Concat):
        return None
    if bool(((affine.scale == 1) & (affine.shift == 0)).any()):
        return None  # a branch whose slice is the identity may be read by anybody
    for branch in reversed(network.data_inputs(source)):
        for reader in network.readers(branch):
            if reader is not source and not isinstance(network.module(reader), Rearrange):
                name = label(network, branch)
                passed = {"concat": f"{label(network, source)} (Concat)"}
                return Refused(f"{name} is also read by {label(network, reader)}", (name,), passed)
    return None


def _walk_backward(
    network: Network, anchor: fx.Node, duplicate: bool, stay: bool, seen: set[fx.Node]
) -> Plan | Refused:
    plan = Plan(anchor, forward=False)
    source = anchor.args[0]
    assert isinstance(source, fx.Node)
    seen.add(source)
    shared = None if duplicate or stay else _shared_branch(network, source, network.affine(anchor).affine)
    if shared is not None:
        return shared
    wanted: dict[fx.Node, dict[fx.Node, list[Affine]]] = {source: {anchor: [network.affine(anchor).affine.compress()]}}
    queue = [_Latest(source)]
    while queue:
        node = heapq.heappop(queue).node
        seen.update((node, *network.readers(node)))
        step = Step(network, node, plan)
        affine = next(iter(wanted[node].values()))[0]
        edits, into, merged = len(plan.edits), len(plan.into), len(plan.merged)
        if not _agree(wanted[node]):
            return Refused(f"{step.label()} would need two different affines", (step.label(),), plan.passed)
        try:
            others = [
                reader
                for reader in network.readers(node)
                if reader in plan.clones or (reader not in wanted[node] and _notices(step, reader, affine))
            ]
            if others and not duplicate:
                raise RefusedError(f"{step.label()} is also read by {step.label(others[0])}")
            inputs = _backward(step, affine)
            _fixed_sizes(step, inputs)
            _same_twice(step, inputs)
        except RefusedError as refusal:
            if not stay or node is source:
                return Refused(refusal.reason, (step.label(),), plan.passed)
            del plan.edits[edits:], plan.into[into:], plan.merged[merged:]
            plan.staying[node] = affine
            plan.path.append((node, frozenset(wanted[node])))
            continue
        if others:
            plan.clones.append(node)
        plan.carried[node] = affine
        plan.path.append((node, frozenset(wanted[node])))
        for argument, needed in zip(network.data_inputs(node), inputs, strict=True):
            if needed is None:
                continue
            if argument not in wanted:
                wanted[argument] = {}
                heapq.heappush(queue, _Latest(argument))
            wanted[argument].setdefault(node, []).append(needed.compress())
    return plan


def _notices(step: Step, reader: fx.Node, affine: Affine) -> bool:
    """Whether a reader would see a difference: a slice of channels that the affine leaves alone does not."""
    network = step.network
    if not isinstance(network.module(reader), Rearrange) or network.data_inputs(reader) != [step.node]:
        return True
    look = Step(network, reader, Plan(step.plan.anchor))
    try:
        seen = _forward(look, [affine])
    except (RefusedError, DeadChannelError):
        return True
    return seen is None or not seen.is_identity


class _Latest:
    """Order nodes from the end of the graph to its start."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node

    def __lt__(self, other: _Latest) -> bool:
        return bool(other.node < self.node)


def _agree(wanted: dict[fx.Node, list[Affine]]) -> bool:
    """Whether everybody who reads a value wants the same affine on it."""
    first, *others = [affine for affines in wanted.values() for affine in affines]
    return all(torch.equal(first.scale, other.scale) and torch.equal(first.shift, other.shift) for other in others)


def _same_twice(step: Step, inputs: list[Affine | None]) -> None:
    """What is read twice by one node cannot be left as it is in one place and take an affine in the other."""
    pairs = list(zip(step.network.data_inputs(step.node), inputs, strict=True))
    kept = {argument for argument, needed in pairs if needed is None}
    for argument, needed in pairs:
        if needed is not None and argument in kept:
            raise RefusedError(f"{step.label(argument)} would need two different affines")


def _fixed_sizes(step: Step, inputs: list[Affine | None]) -> None:
    """What goes into weights must not differ along a dimension that has no fixed size."""
    for argument, affine in zip(step.network.data_inputs(step.node), inputs, strict=True):
        if affine is None:
            continue
        loose = step.network.shapes.free_among(argument, affine.compress().varying())
        if loose:
            raise RefusedError(
                f"before {step.label()} it differs along dimension {min(loose)}, which has no fixed size"
            )


def _backward(step: Step, affine: Affine) -> list[Affine | None]:
    if step.node.op == "placeholder":
        raise RefusedError(f"it acts on {step.label()} of the model")
    if step.node.op != "call_module":
        raise RefusedError(f"{step.node.name} is not a layer")
    for cls in type(step.module).__mro__:  # the most specific rule
        if cls in _BACKWARD:
            return _BACKWARD[cls](step, affine)
    raise RefusedError(f"no affine passes {step.label()} ({type(step.module).__name__})")


# --------------------------------------------------------------------------------------------------- commit


def commit(network: Network, plan: Plan) -> None:
    """Carry out a plan and take its anchor out of the graph."""
    copies = _copy_shared_producers(network, plan)
    for node, affine in plan.carried.items():
        network.values.move(copies.get(node, node), affine, forward=plan.forward)
    for node, edit in plan.edits:
        edit.apply(network, copies.get(node, node))
    network.bypass(plan.anchor)


def _copy_shared_producers(network: Network, plan: Plan) -> dict[fx.Node, fx.Node]:
    """Give the anchor's branch producers of its own, wherever somebody else reads them too.

    Walks from the inputs to the anchor, so that a copy reads the copies of what it needs.
    """
    copies: dict[fx.Node, fx.Node] = {}
    anchor_module = network.affine(plan.anchor)
    suffix = f"for_{str(plan.anchor.target).rpartition('.')[2]}"
    readers_of = dict(plan.path)
    for node, readers in reversed(plan.path):
        if node in plan.staying:
            module = FrozenAffine(plan.staying[node], anchor_module.origins)
            module.last_resort_only = True
            with network.graph.inserting_after(node):
                copies[node] = network.call(f"{plan.anchor.target}_branch", module, (node,), plan.anchor)
        elif node in plan.clones:
            inputs = [
                copies[argument] if argument in copies and node in readers_of[argument] else argument
                for argument in network.data_inputs(node)
            ]
            copies[node] = network.duplicate(node, inputs, suffix)
            if str(node.target) in plan.into:
                plan.into[plan.into.index(str(node.target))] = str(copies[node].target)
        if node in copies:
            for reader in readers - set(plan.clones):
                network.rewire(reader, node, copies[node])
    return copies
