"""Faults of the kinds that folding code, exporters and runtimes really have, each planted in one layer."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

import canonize
from canonize.nn import ChannelPad, ThreshReLU
from tests.verify.campaign.architectures import make

# A fault counts as planted where it moves an output by this share of its scale on some probe, and by ten times what
# rounding its weights to float32 has cost the sound candidate. What moves less is, for a float32 model, no fault.
VISIBLE, BEYOND_ROUNDING = 1e-5, 10.0
LINEAR = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes
    ----------
    kind, architecture, form : str
        What was done, to which network, in its ``plain`` or ``canonical`` form.
    model, candidate : nn.Module
        The reference, and the faulty candidate.
    inputs : tuple
    layers : frozenset of str
        Names of the layers that are the right answer; an empty name is the output itself.
    """

    kind: str
    architecture: str
    form: str
    model: nn.Module
    candidate: nn.Module
    inputs: tuple[Tensor, ...]
    layers: frozenset[str]


class Faulty(nn.Module):
    """A layer whose output goes through a fault."""

    def __init__(self, inner: nn.Module, fault: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.fault = inner, fault

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.fault(self.inner(*args, **kwargs))


Plant = Callable[[nn.Module, nn.Module, random.Random, tuple[Tensor, ...]], "frozenset[str] | None"]


def _layers(model: nn.Module, kinds: Any) -> list[tuple[str, Any]]:
    # The attention of torch reads its output projection's weight and never calls it.
    called = {name for name, _ in _outputs(model)} if isinstance(model, fx.GraphModule) else None
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, kinds) and (called is None or n in called)]
    return [(n, m) for n, m in found if not n.endswith("out_proj")]


def _outputs(model: fx.GraphModule) -> list[tuple[str, fx.Node]]:
    return [(str(node.target), node) for node in model.graph.nodes if node.op == "call_module"]


def _weight(model: nn.Module, candidate: nn.Module, chance: random.Random, inputs: Any) -> frozenset[str] | None:
    name, layer = chance.choice(_layers(candidate, LINEAR))
    layer.weight.view(-1)[chance.randrange(layer.weight.numel())] += 1e-3
    return frozenset([name])


def _bias(model: nn.Module, candidate: nn.Module, chance: random.Random, inputs: Any) -> frozenset[str] | None:
    biased = [(n, m) for n, m in _layers(candidate, (*LINEAR, nn.BatchNorm2d, nn.LayerNorm)) if m.bias is not None]
    name, layer = chance.choice(biased)
    layer.bias[chance.randrange(layer.bias.numel())] += 1e-3
    return frozenset([name])


def _sign(model: nn.Module, candidate: nn.Module, chance: random.Random, inputs: Any) -> frozenset[str] | None:
    name, layer = chance.choice(_layers(candidate, LINEAR))
    layer.weight[chance.randrange(layer.weight.shape[0])] *= -1
    return frozenset([name])


def _eps(model: nn.Module, candidate: nn.Module, chance: random.Random, inputs: Any) -> frozenset[str] | None:
    """The candidate is replaced by one that was made from a model without the eps of one layer."""
    layers = _layers(model, (nn.BatchNorm2d, nn.LayerNorm))
    name, _ = chance.choice(layers)
    without = copy.deepcopy(model)
    without.get_submodule(name).eps = 0.0  # type: ignore[assignment]
    if not isinstance(candidate, fx.GraphModule):
        candidate.get_submodule(name).eps = 0.0  # type: ignore[assignment]
        return frozenset([name])
    try:
        wrong = canonize.canonize(without, inputs, copy=True, verify=False)
    except canonize.CanonizeError:  # a channel without variance: no number is left
        return None
    right = canonize.canonize(model, inputs, copy=True, verify=False)
    candidate.load_state_dict(wrong.state_dict())
    changed = [n.rpartition(".")[0] for n, t in wrong.state_dict().items() if not _same(t, right.state_dict()[n])]
    for n, module in wrong.named_modules():  # an eps that no rewrite took away
        if isinstance(module, nn.LayerNorm) and n == name:
            candidate.get_submodule(n).eps = 0.0  # type: ignore[assignment]
            changed.append(n)
    # The first layer in which it shows, and the ones that share the folded affine with it.
    order = [n for n, _ in _outputs(candidate) if n in changed]
    return frozenset(order) or None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _border(model: nn.Module, candidate: nn.Module, chance: random.Random, inputs: Any) -> frozenset[str] | None:
    padded = [(n, m) for n, m in _layers(candidate, nn.Conv2d) if any(m.padding) and m.padding_mode == "zeros"]
    pads = _layers(candidate, ChannelPad)
    if not padded and not pads:
        return None
    name, layer = chance.choice(padded + pads)
    if isinstance(layer, ChannelPad):
        layer.value.zero_()
    else:
        layer.padding_mode = "replicate"
        layer._reversed_padding_repeated_twice = [p for p in reversed(layer.padding) for _ in range(2)]
    return frozenset([name])


def _negative(model: nn.Module, candidate: nn.Module, chance: random.Random, inputs: Any) -> frozenset[str] | None:
    """A scale's sign is forgotten: the bounds of a threshold stand the wrong way round, or a weight is its absolute."""
    thresholds = [(n, m) for n, m in _layers(candidate, ThreshReLU) if m.upper is not None and m.lower is not None]
    norms = [(n, m) for n, m in _layers(candidate, nn.BatchNorm2d) if bool((m.weight < 0).any())]
    if not thresholds and not norms:
        return None
    name, layer = chance.choice(thresholds + norms)
    if isinstance(layer, ThreshReLU):
        negative = torch.isinf(layer.lower) & torch.isfinite(layer.upper)
        if not bool(negative.any()):
            return None
        lower = torch.where(negative, layer.upper, layer.lower)
        layer.upper.copy_(torch.where(negative, torch.full_like(layer.upper, float("inf")), layer.upper))
        layer.lower.copy_(lower)
    else:
        layer.weight.abs_()
    return frozenset([name])


def _wrap(candidate: nn.Module, chance: random.Random, fault: Callable[[Tensor], Tensor]) -> frozenset[str]:
    kinds = (*LINEAR, nn.ReLU, nn.SiLU, nn.GELU, nn.BatchNorm2d)
    name, layer = chance.choice(_layers(candidate, kinds))
    candidate.set_submodule(name, Faulty(layer, fault))
    return frozenset([name, f"{name}.inner"])


def _beyond(model: nn.Module, candidate: nn.Module, chance: random.Random, inputs: Any) -> frozenset[str] | None:
    limit = chance.choice((3.0, 30.0))
    return _wrap(candidate, chance, lambda y: y + 1e-2 * (y - limit).clamp(min=0))


def _batch(model: nn.Module, candidate: nn.Module, chance: random.Random, inputs: Any) -> frozenset[str] | None:
    return _wrap(candidate, chance, lambda y: torch.cat([y[:1], y[1:] * 1.01]) if y.shape[0] > 1 else y)


def _nan(model: nn.Module, candidate: nn.Module, chance: random.Random, inputs: Any) -> frozenset[str] | None:
    def fault(y: Tensor) -> Tensor:
        y = y.clone()
        y.view(-1)[0] = float("nan")
        return y

    return _wrap(candidate, chance, fault)


def _swapped(model: nn.Module, candidate: nn.Module, chance: random.Random, inputs: Any) -> frozenset[str] | None:
    """Two classes change places."""
    name, layer = _layers(candidate, nn.Linear)[-1]
    order = list(range(layer.out_features))
    first, second = chance.sample(order, 2)
    order[first], order[second] = second, first
    layer.weight.copy_(layer.weight[order].clone())
    layer.bias.copy_(layer.bias[order].clone())
    return frozenset([name])


KINDS: dict[str, Plant] = {
    "one weight off by 1e-3": _weight,
    "one bias off by 1e-3": _bias,
    "one channel's sign": _sign,
    "eps dropped": _eps,
    "border only": _border,
    "negative scale only": _negative,
    "beyond a threshold only": _beyond,
    "batch above one only": _batch,
    "outputs swapped": _swapped,
    "NaN in one element": _nan,
}


def plant(kind: str, architecture: str, form: str, seed: int, tries: int = 20) -> Fault | None:
    """One fault that can be seen, or None where the network has no place for it.

    Parameters
    ----------
    kind : str
        A key of `KINDS`.
    architecture : str
    form : {"plain", "canonical"}
        What the candidate is otherwise: a copy of the network, or its canonical form.
    seed : int
    tries : int
        Places to try: many a weight feeds a dead unit.
    """
    model, inputs = make(architecture, seed)
    sound = canonize.canonize(model, inputs, copy=True, verify=False) if form == "canonical" else model
    chance = random.Random(f"{kind} {architecture} {form} {seed}")
    for _ in range(tries):
        candidate = copy.deepcopy(sound)
        with torch.no_grad():
            layers = KINDS[kind](model, candidate, chance, inputs)
            if layers is not None and _shows(model, sound, candidate, inputs):
                return Fault(kind, architecture, form, model, candidate, inputs, layers)
    return None


def _shows(model: nn.Module, sound: nn.Module, candidate: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    wide, right, wrong = (copy.deepcopy(m).double() for m in (model, sound, candidate))
    for probe in _probes(inputs):
        truth, answer = wide(*probe), wrong(*probe)
        if not bool(torch.isfinite(answer).all()):
            return True
        least = max(VISIBLE * float(truth.abs().max()), BEYOND_ROUNDING * float((truth - right(*probe)).abs().max()))
        if float((truth - answer).abs().max()) > least:
            return True
    return False


def _probes(inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Independent of what the verdict feeds."""
    generator = torch.Generator().manual_seed(99)
    for scale in (1.0, 5.0, 50.0):
        yield tuple(
            scale * torch.randn(t.shape, generator=generator, dtype=torch.float64) if t.is_floating_point() else t
            for t in inputs
        )
