"""Walk both graphs once, and prove of each value of the canonical model what it is of the original's."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.graph.affine_nodes import FrozenAffine
from canonize.graph.network import Network
from canonize.report.record import Proof, Unproven
from canonize.verify.certificate import linear, moving, pointwise
from canonize.verify.certificate.data import Certificate
from canonize.verify.certificate.relation import (
    EXACT,
    IDENTITY,
    NOISE,
    NotProvenError,
    Relation,
    channels,
    exact,
    is_rounded,
    number,
    per_channel,
    require,
    stored,
)
from canonize.vocabulary import resolve_module

_CLAMPS = (nn.ReLU, nn.Hardtanh, cnn.ThreshReLU)
_LEAKY = (nn.LeakyReLU, nn.PReLU, cnn.ThreshLeakyReLU)
_PADS = (
    nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, cnn.ChannelPad,
)  # fmt: skip
_MOVES = (
    cnn.Rearrange, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d,
    nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
)  # fmt: skip
_DRAWS = 3


def check(original: Network, canonical: fx.GraphModule, certificate: Certificate) -> Proof:
    """Whether a canonical model computes what the original's graph computes, for every input.

    Parameters
    ----------
    original : Network
        The graph of the original model, each operation a module, before any rewrite.
    canonical : fx.GraphModule
        As it is stored, in its own precision.
    certificate : Certificate
        Hints; whatever is wrong in them is noticed, or does not matter.
    """
    return _Walk(original, canonical, certificate).run()


class _Walk:
    def __init__(self, f: Network, g: fx.GraphModule, certificate: Certificate) -> None:
        self.f, self.g, self.certificate = f, g, certificate
        named = {node.name: node for node in f.graph.nodes}
        self.pairs: dict[fx.Node, fx.Node] = {}
        for node in g.graph.nodes:
            other = named.get(certificate.stands_for.get(node.name) or "")
            if other is not None:
                self.pairs[node] = other
        self.facts: dict[tuple[fx.Node, fx.Node], Relation] = {}
        self.unused = set(certificate.taken)
        self.unproven: list[Unproven] = []
        self.assumed: set[str] = set()

    def run(self) -> Proof:
        """Check node by node; what cannot be proven is written down, and taken as given behind it."""
        for node in self.g.graph.nodes:
            try:
                with torch.no_grad():
                    self._node(node)
            except NotProvenError as error:
                self._note(node, error.reason, error.broken)
            except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
                self._note(node, f"it cannot be compared ({type(error).__name__}: {str(error)[:80]})", False)
        for name in sorted(self.unused):
            self.unproven.append(Unproven(name, "the certificate claims a relation that no layer has", True))
        return Proof(not self.unproven, len(self.facts), tuple(self.unproven), tuple(sorted(self.assumed)))

    def _note(self, node: fx.Node, reason: str, broken: bool) -> None:
        where = str(node.target) if node.op == "call_module" else node.name
        self.unproven.append(Unproven(where, reason, broken))
        if node in self.pairs:
            try:
                claimed = self._claimed(node)
            except NotProvenError:
                claimed = IDENTITY
            self.facts[self.pairs[node], node] = claimed

    # ----------------------------------------------------------------------------------------------- one node

    def _node(self, m: fx.Node) -> None:
        if m.op == "output":
            (n,) = (node for node in self.f.graph.nodes if node.op == "output")
            for given, (v, u) in self._arguments(n, m):
                require(given.is_identity, f"{v.name} is not the output {u.name}, but scaled or shifted", broken=True)
            return
        n = self.pairs.get(m)
        if m.op == "placeholder":
            graphs = (self.f.graph, self.g.graph)
            inputs = [[node for node in graph.nodes if node.op == "placeholder"] for graph in graphs]
            same = n is not None and n in inputs[0] and inputs[0].index(n) == inputs[1].index(m)
            require(same and len(inputs[0]) == len(inputs[1]), "it is not the same input", broken=True)
        if n is None:
            return  # put in: looked through where it is read
        self.facts[n, m] = IDENTITY if m.op == "placeholder" else self._rule(n, m)

    def _rule(self, n: fx.Node, m: fx.Node) -> Relation:
        f, g = self.f.module(n), self._module(m)
        if g is None or f is None:
            require(n.op == m.op and n.target == m.target, "another operation", broken=True)
            for given, (v, _) in self._arguments(n, m):
                require(given.is_identity or self.f.measures(n, v), "it reads a value that was scaled or shifted")
            return IDENTITY
        if isinstance(f, FrozenAffine):
            return self._explicit(n, m, g)
        if linear.kind(g) is not None:
            return self._linear(n, m, f, g)
        return self._other(n, m, f, g)

    def _other(self, n: fx.Node, m: fx.Node, f: Any, g: Any) -> Relation:
        if isinstance(f, (*moving.AVERAGES,)) and type(f) is type(g):
            (v, u), pad = self._inputs(n, m)[0], None
            if self._is_put_in(u, cnn.ChannelPad):
                pad, u = self._module(u), u.args[0]  # type: ignore[assignment]
            return moving.same_average(f, g, self.relate(v, u), pad, moving.AVERAGES[type(f)])
        pairs = self._arguments(n, m)
        given = [relation for relation, _ in pairs]
        read = [r for r, (v, _) in pairs if not self.f.measures(n, v)]
        if isinstance(f, _CLAMPS) and isinstance(g, _CLAMPS):
            return pointwise.check_clamp(f, g, given[0], self.f.dtype)
        if isinstance(f, _LEAKY) and isinstance(g, _LEAKY):
            return pointwise.check_leaky(f, g, given[0], self.f.dtype)
        if self._pads(f) is not None and self._pads(g) is not None:
            return self._padding(n, f, g, given[0])
        if isinstance(f, nn.MultiheadAttention) and isinstance(g, nn.MultiheadAttention):
            return self._attention(f, g, given)
        if type(f) in moving.PLAIN and type(g) is moving.PLAIN[type(f)]:
            (v, u) = pairs[0][1]
            self._sizes_hold(v, u, moving.same_windows(f, g, self._shape(v)))
            dims, maximum = moving.ADAPTIVE | moving.MAXIMA, type(f) in moving.MAXIMA
            return moving.pooled(given[0], dims[type(f)], maximum=maximum)
        same_module(f, g)
        if all(relation is IDENTITY for relation in read):
            return IDENTITY
        shapes = [self._shape(v) for _, (v, _) in pairs if not self.f.shapes.is_bookkeeping(v)]
        ndim = len(self._shape(n))
        if isinstance(f, cnn.Concat):
            return moving.concatenated(given, shapes, f.dim - ndim if f.dim >= 0 else f.dim)
        if isinstance(f, cnn.Sum):
            return moving.summed(given, f.weights)
        if isinstance(f, cnn.Gate):
            return moving.multiplied(given, one_number=False)
        if isinstance(f, cnn.Mean | cnn.SumOver):
            return self._reduced(f, given[0], pairs[0][1][0])
        if isinstance(f, _MOVES):
            return self._moved(n, f, given, pairs)
        if type(f) in moving.MAXIMA:
            require(not f.return_indices, "it also returns where its maxima are")
            return moving.pooled(given[0], moving.MAXIMA[type(f)], maximum=True)
        if type(f) in moving.ADAPTIVE or isinstance(f, nn.Upsample):
            return moving.pooled(given[0], moving.ADAPTIVE.get(type(f)), maximum=False)
        operation = resolve_module(f)
        if operation is not None and operation.row.averages and all(r is IDENTITY for r in given[1:]):
            return moving.pooled(given[0], None, maximum=False)
        if operation is not None and operation.name in ("matmul", "bmm"):
            return moving.multiplied(given, one_number=True)
        require(all(r.is_identity for r in read), "no rule says what it makes of a value that was scaled or shifted")
        return IDENTITY

    # ------------------------------------------------------------------------------------------ linear layers

    def _claimed(self, m: fx.Node) -> Relation:
        """What the certificate claims of a layer's output: w = A y + B."""
        if m.name not in self.certificate.taken:
            return IDENTITY
        self.unused.discard(m.name)
        scale, shift = (stored(torch.tensor(part, dtype=EXACT)) for part in self.certificate.taken[m.name])
        finite = bool(torch.isfinite(scale).all() and torch.isfinite(shift).all())
        require(finite, "the claimed relation is not finite", broken=True)
        constant = torch.where(scale == 0, shift, torch.nan) if bool((scale == 0).any()) else None
        return Relation(scale, torch.ones_like(scale), -shift, constant)

    def _explicit(self, n: fx.Node, m: fx.Node, g: Any) -> Relation:
        (v, u) = self._inputs(n, m)[0]
        taken = self._claimed(m)
        scale, shift = self._affine(n)
        linear.check_explicit(scale, shift, self.relate(v, u), taken, g, len(self._shape(n)))
        return taken

    def _linear(self, n: fx.Node, m: fx.Node, f: Any, g: Any) -> Relation:
        taken = self._claimed(m)
        u, pad = m.args[0], None
        assert isinstance(u, fx.Node)
        if self._is_put_in(u, cnn.ChannelPad):
            pad, u = self._module(u), u.args[0]
        assert isinstance(u, fx.Node)
        if linear.kind(f) is not None and linear.same_geometry(f, g):
            try:
                given = self.relate(n.args[0], u)
            except NotProvenError as error:
                if error.broken:
                    raise
            else:
                linear.check_linear(f, g, given, taken, pad)
                return taken
        self._merged(n, u, g, taken, pad)
        return taken

    def _merged(self, n: fx.Node, u: fx.Node, g: Any, taken: Relation, pad: cnn.ChannelPad | None) -> None:
        r"""Several linear layers that became one: two affine maps of one value agree on random points, or differ.

        A map that is affine and not zero is zero on a set of measure zero: that a difference beyond rounding stays
        unseen in a draw has probability zero in exact numbers. What is allowed is what rounded weights can explain.
        """
        generator = torch.Generator().manual_seed(0)
        shape = linear.sample_size(g, (*self._shape(n)[:-1], getattr(g, "in_features", 0)))
        for draw in range(_DRAWS + 1):
            # The last draw sees the bias alone.
            x = torch.randn(shape, generator=generator, dtype=EXACT) * (draw < _DRAWS)
            known: dict[fx.Node, Tensor] = {}
            want = taken.left * self._evaluated(n, u, x, known) - taken.shift
            around = x if pad is None else linear.pad_explicitly(pad, x)
            made = linear.apply_exactly(g, [around])
            require(want.shape == made.shape, "the two give values of other sizes", broken=True)
            allowed = linear.rounding_of_output(g, around, pad) + NOISE * (1 + want.abs().max())
            require(bool(((want - made).abs() <= allowed).all()), "merged layers compute something else", broken=True)

    def _evaluated(self, n: fx.Node, u: fx.Node, x: Tensor, known: dict[fx.Node, Tensor]) -> Tensor:
        """The original's value at a node, where the canonical model has x at u, through linear layers alone."""
        if n not in known:
            try:
                scale, shift = self.relate(n, u).solved()
                known[n] = scale * x + shift
            except NotProvenError:
                module = self.f.module(n)
                linear_way = isinstance(module, FrozenAffine | cnn.Sum) or linear.kind(module) is not None
                require(linear_way, f"{n.name} is not linear in what the merged layer reads")
                parts = [self._evaluated(v, u, x, known) for v in self.f.data_inputs(n)]
                if isinstance(module, FrozenAffine):
                    scale, shift = self._affine(n)
                    known[n] = scale * parts[0] + shift
                else:
                    known[n] = linear.apply_exactly(module, parts)
        return known[n]

    # --------------------------------------------------------------------------------------- other operations

    def _padding(self, n: fx.Node, f: Any, g: Any, given: Relation) -> Relation:
        (amounts, old), (theirs, new) = self._pads(f), self._pads(g)  # type: ignore[misc]
        require(amounts == theirs, "the two pad by different amounts", broken=True)
        new = new if isinstance(g, cnn.ChannelPad) else new.to(self.f.dtype)
        fixed = [a if isinstance(a, int) else 1 for a in amounts]
        (v, *_) = self.f.data_inputs(n)
        return moving.padded(given, fixed, old.to(EXACT), new, self._shape(v))

    def _pads(self, module: Any) -> tuple[tuple[Any, ...], Tensor] | None:
        """By how much a module pads, and with what; ``None`` where it pads with no constant."""
        if isinstance(module, _PADS):
            return tuple(module.padding), moving.constant_of(module)
        operation = resolve_module(module)
        if operation is None or operation.name not in ("pad", "constant_pad_nd"):
            return None
        bound = operation.bound
        padding, value = bound.get("pad"), bound.get("value") or 0.0
        if bound.get("mode", "constant") != "constant" or not isinstance(value, int | float) or not padding:
            return None
        return tuple(padding), number(value)

    def _sizes_hold(self, v: fx.Node, u: fx.Node, sizes: dict[int, int]) -> None:
        """Require that a value has these sizes, by dimension: fixed ones, or others refused by the canonical graph."""
        free = self.f.shapes.free_among(v, set(sizes))
        held = {guarded for node in self.g.graph.nodes if (guarded := _guarded(node, u)) is not None}
        open_ = [dim for dim in sizes if dim in free and (dim, sizes[dim]) not in held]
        require(not open_, "it holds for one size, and no other is refused", broken=True)

    def _attention(self, f: Any, g: Any, given: list[Relation]) -> Relation:
        r"""Query, key and value each by its rows: :math:`W_g = W_f S`, :math:`b_g = b_f + W_f T`."""
        require(not any(r is not IDENTITY for r in given[3:]), "a mask was scaled or shifted", broken=True)
        same_module(f, g, but=("in_proj_weight", "in_proj_bias"))
        require(f.in_proj_weight is not None or all(r is IDENTITY for r in given), "projections of their own")
        if f.in_proj_weight is None:
            same_module(f, g)
            return IDENTITY
        width = f.embed_dim
        for i, relation in enumerate(given[:3]):
            scale, shift = (channels(part, -1, width) for part in relation.solved())
            rows = slice(i * width, (i + 1) * width)
            weight = exact(f.in_proj_weight)[rows]
            bias = torch.zeros(width, dtype=EXACT)
            if f.in_proj_bias is not None:
                bias = exact(f.in_proj_bias)[rows]
            held = torch.zeros(width) if g.in_proj_bias is None else g.in_proj_bias[rows]
            good = is_rounded(g.in_proj_weight[rows], weight * scale)
            size = bias.abs() + weight.abs() @ shift.abs()
            require(good and is_rounded(held, bias + weight @ shift, size), "a projection differs", broken=True)
        return IDENTITY

    def _reduced(self, f: Any, given: Relation, v: fx.Node) -> Relation:
        shape = self._shape(v)
        count = None
        if isinstance(f, cnn.SumOver):
            free = self.f.shapes.free_among(v, {d % len(shape) for d in f.dim})
            count = 0 if free else int(torch.Size([shape[d] for d in f.dim]).numel())
        return moving.reduced(given, f.dim, len(shape), f.keepdim, count)

    def _moved(self, n: fx.Node, f: Any, given: list[Relation], pairs: list[Any]) -> Relation:
        shapes = self.f.shapes
        v = pairs[0][1][0]
        before, after = shapes.value(v), shapes.value(n)
        widens = torch.finfo(before.dtype).eps >= torch.finfo(after.dtype).eps if after.is_floating_point() else False
        require(widens, "a value that was scaled or shifted is rounded")
        others = [shapes.value(other) for _, (other, _) in pairs[1:]]
        others = [torch.empty(o.shape, dtype=o.dtype) if isinstance(o, Tensor) else o for o in others]
        self.assumed.add("movements act on every size as on the example's")
        return moving.moved(given[0], tuple(before.shape), tuple(after.shape), lambda part: f(part, *others).to(EXACT))

    # ---------------------------------------------------------------------------------------------- relations

    def relate(self, v: Any, u: Any) -> Relation:
        """What is known between a value of the original and one of the canonical model.

        Raises
        ------
        NotProvenError
            If nothing is.
        """
        if (v, u) in self.facts:
            return self.facts[v, u]
        refusal = NotProvenError(f"nothing relates {v} of the original and {u}")
        for way in (self._through, self._behind):
            try:
                found = way(v, u)
            except NotProvenError as error:
                refusal = error if error.broken or not refusal.broken else refusal
            else:
                if found is not None:
                    self.facts[v, u] = found
                    return found
        raise refusal

    def _behind(self, v: fx.Node, u: fx.Node) -> Relation | None:
        """Behind an affine of the original alone, or reshapes that undo each other."""
        if isinstance(self.f.module(v), FrozenAffine):
            scale, shift = self._affine(v)
            return self.relate(v.args[0], u).behind(scale, shift)
        same = self._reshaped_back(v)
        return None if same is None else self.relate(same, u)

    def _through(self, v: fx.Node, u: fx.Node) -> Relation | None:
        """Behind a layer that was put in: an explicit affine, or a clamp that holds constant channels."""
        module = self._module(u) if u not in self.pairs else None
        if module is None or not u.args:
            return None
        given = self.relate(v, u.args[0])
        if isinstance(module, cnn.ThreshReLU):
            held = pointwise.held_constant(module, given, self._claimed(u), self.f.dtype)
            require(held is not None, f"{u.target} changes what it clamps", broken=True)
            assert held is not None
            scale, _ = given.solved()
            if bool(((scale != 0) & pointwise.negligible(*given.solved(), self.f.dtype)).any()):
                self.assumed.add(f"activations are below {pointwise.LARGEST:g}")
            return held
        ndim = len(self._shape(v))
        require(linear.explicit(module, ndim) is not None, f"{u.target} was put in, and is no affine of each channel")
        claimed = self._claimed(u)
        linear.check_explicit(claimed.left, -claimed.shift, IDENTITY, IDENTITY, module, ndim)
        return given.before(claimed.left, -claimed.shift)

    def _reshaped_back(self, v: fx.Node) -> fx.Node | None:
        """Of ``x.flatten(0, 1).reshape_as(x)``: x. All of these keep the order of the elements."""
        operation = resolve_module(self.f.module(v))
        if operation is None or not operation.row.like or len(v.args) != 2:
            return None
        source, like = v.args
        while isinstance(source, fx.Node) and source is not like:
            module = self.f.module(source)
            other = resolve_module(module)
            if not isinstance(module, nn.Flatten | nn.Unflatten) and not (other is not None and other.row.orderly):
                return None
            source = source.args[0]
        return source if isinstance(source, fx.Node) else None

    def _affine(self, n: fx.Node) -> tuple[Tensor, Tensor]:
        r"""Scale and shift of a frozen affine; of a BatchNorm by :math:`s = \gamma / \sqrt{\sigma^2 + \epsilon}`."""
        held = self.f.affine(n)
        read = held.statistics
        if read is None:
            return stored(held.affine.scale), stored(held.affine.shift)
        scale = 1 / torch.sqrt(exact(read.running_var) + read.eps)
        if read.weight is not None:
            scale = exact(read.weight) * scale
        shift = -exact(read.running_mean) * scale
        if read.bias is not None:
            shift = exact(read.bias) + shift
        where = 1 - held.affine.ndim
        return per_channel(scale, where), per_channel(shift, where)

    # ------------------------------------------------------------------------------------------------- graphs

    def _module(self, m: Any) -> Any:
        return self.g.get_submodule(str(m.target)) if isinstance(m, fx.Node) and m.op == "call_module" else None

    def _is_put_in(self, u: Any, kind: type) -> bool:
        return u not in self.pairs and isinstance(self._module(u), kind)

    def _shape(self, n: fx.Node) -> tuple[int, ...]:
        shape = self.f.shapes.shape(n)
        require(shape is not None, f"the shape of {n.name} is not known")
        assert shape is not None
        return shape

    def _inputs(self, n: fx.Node, m: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
        """The values that two nodes read, pair by pair; everything else in their arguments is the same."""
        return [*_walk(n.args, m.args), *_walk(dict(n.kwargs), dict(m.kwargs))]

    def _arguments(self, n: fx.Node, m: fx.Node) -> list[tuple[Relation, tuple[fx.Node, fx.Node]]]:
        return [(self.relate(v, u), (v, u)) for v, u in self._inputs(n, m)]


def _guarded(node: fx.Node, u: fx.Node) -> tuple[int, int] | None:
    """The dimension and the size that ``_assert(u.size(dim) == size, ...)`` demands of a value."""
    if node.target is not torch._assert or not isinstance(node.args[0], fx.Node):
        return None
    equal = node.args[0]
    asked = equal.args[0] if equal.target is operator.eq else None
    if not isinstance(asked, fx.Node) or asked.op != "call_method" or asked.target != "size" or asked.args[0] is not u:
        return None
    dim, size = asked.args[1], equal.args[1]
    return (dim, size) if isinstance(dim, int) and isinstance(size, int) else None


def _walk(first: Any, second: Any) -> Iterator[tuple[fx.Node, fx.Node]]:
    if isinstance(first, fx.Node) and isinstance(second, fx.Node):
        yield first, second
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
        require(len(first) == len(second), "another number of arguments", broken=True)
        for a, b in zip(first, second, strict=True):
            yield from _walk(a, b)
    elif isinstance(first, dict) and isinstance(second, dict):
        require(first.keys() == second.keys(), "other arguments", broken=True)
        for key in first:
            yield from _walk(first[key], second[key])
    elif isinstance(first, slice) and isinstance(second, slice):
        yield from _walk((first.start, first.stop, first.step), (second.start, second.stop, second.step))
    else:
        require(_equal(first, second), "other arguments", broken=True)


def same_module(f: Any, g: Any, but: tuple[str, ...] = ()) -> None:
    """Require that two modules are of one class, have the same settings, and the same numbers, rounded once."""
    require(type(f) is type(g), f"a {type(f).__name__} became a {type(g).__name__}", broken=True)
    for name, value in vars(f).items():
        if not name.startswith("_") and name != "training":
            require(_equal(value, vars(g).get(name)), f"its {name} differs", broken=True)
    for table in ("_parameters", "_buffers"):
        ours, theirs = getattr(f, table), getattr(g, table)
        require(ours.keys() == theirs.keys(), "it holds other tensors", broken=True)
        for name in ours.keys() - set(but):
            a, b = ours[name], theirs[name]
            if a is not b:
                alike = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape
                require(alike and _same_numbers(a, b), f"its {name} differs", broken=True)
    require(f._modules.keys() == g._modules.keys(), "it has other parts", broken=True)
    for name, part in f._modules.items():
        if part is not None or g._modules[name] is not None:
            same_module(part, g._modules[name])


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    if not b.is_floating_point():
        return torch.equal(a, b)
    return is_rounded(b, exact(a))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and _same_numbers(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a is b or a == b)
