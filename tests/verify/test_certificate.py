"""Proven for all inputs: the checker proves every hard model, and notices whatever is changed in what was written."""

from __future__ import annotations

import copy
import dataclasses
import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor, fx, nn

import canonize
from canonize.algebra.affine import EXACT
from canonize.forms import chosen_forms
from canonize.graph.network import Network
from canonize.inputs import normalise
from canonize.pipeline import Options, rewritten
from canonize.report import Proof
from canonize.verify.certificate import Certificate, certificate_of, check, hash_of
from canonize.verify.certificate.relation import IDENTITY, Relation, is_rounded
from tests import checks, models, random_models
from tests.statistics import harden
from tests.zoo.case import Case

ALL = [pytest.param(case, id=case.name) for case in models.CASES]


@dataclasses.dataclass
class Proven:
    """A conversion, and what its proof is made of."""

    network: Network
    built: fx.GraphModule
    certificate: Certificate

    def proof(self) -> Proof:
        assert self.network.before is not None
        return check(self.network.before, self.built, Certificate.from_json(self.certificate.to_json()))


def _converted(model: nn.Module, inputs: Any, strategy: str = "threshold", tracer: str = "symbolic_trace") -> Proven:
    network, _ = rewritten(model, normalise(inputs), tracer, Options(strategy))
    built = network.build()
    assert network.before is not None
    return Proven(network, built, certificate_of(network.before, network, built))


@pytest.mark.parametrize("case", ALL)
def test_every_hard_model_is_proven(case: Case) -> None:
    example = checks.draw(case.inputs, 2, dtype=torch.float32)
    proof = _converted(case.model(torch.float32).eval(), example).proof()
    assert proof, proof.unproven


@pytest.mark.parametrize("case", ALL[::7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_untangled_too(case: Case, dtype: torch.dtype) -> None:
    example = checks.draw(case.inputs, 2, dtype=dtype)
    proof = _converted(case.model(dtype).eval(), example, "untangle").proof()
    assert proof, proof.unproven


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(random_models.programs())
def test_random_models_are_proven(program: random_models.Program) -> None:
    """All but those where three norms in a row end in one layer: with scales of zero, nothing says which is which."""
    norms = [step.operation == "norm" for step in program.steps]
    assume(not any(all(norms[i : i + 2]) for i in range(len(norms) - 1)))
    model = random_models.build(program)
    proof = _converted(model, random_models.inputs(2)[0].double()).proof()
    assert proof, (program, proof.unproven)


class Small(nn.Module):
    """A threshold, a border, a sum, a concatenation, a dense end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.taken = nn.BatchNorm2d(4)
        self.second, self.side = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.later, self.last = nn.BatchNorm2d(8), nn.Linear(8, 3)
        self.third = nn.Conv2d(8, 8, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.taken(self.first(x)).relu()
        y = self.norm(y)
        z = torch.cat([y, self.second(y) + self.side(y)], 1)
        z = self.third(self.later(z).relu())
        return self.last(z.mean((2, 3)))


def _small() -> Proven:
    torch.manual_seed(0)
    model = Small().eval()
    harden(model)
    converted = _converted(model, torch.randn(2, 3, 8, 8))
    converted.built = copy.deepcopy(converted.built)  # shares nothing with the original
    return converted


def _places(built: nn.Module) -> list[tuple[str, Tensor, int]]:
    tensors = [(name, t) for name, t in (*built.named_parameters(), *built.named_buffers()) if t.is_floating_point()]
    return [(name, tensor, i) for name, tensor in tensors for i in range(tensor.numel())]


def test_one_unit_in_the_last_place_of_one_number_is_noticed() -> None:
    """Every number of a model, one at a time: its neighbour is not the exact number, rounded once."""
    converted = _small()
    assert converted.proof()
    places = _places(converted.built)
    chosen = random.Random(0)
    for name, tensor, i in chosen.sample(places, min(300, len(places))):
        flat = tensor.data.view(-1)
        before = flat[i].clone()
        towards = torch.tensor(chosen.choice((-1e30, 1e30)))
        # Two units: the exact number may lie half-way between two neighbours.
        flat[i] = torch.nextafter(torch.nextafter(before, towards), towards)
        # Next to zero float64's own noise is larger than a unit; infinity has no neighbour on one side.
        if before != 0 and not torch.equal(flat[i], before):
            assert not converted.proof(), f"{name}[{i}] {before} {flat[i]}"
        flat[i] = before
    assert converted.proof()


def _numbers(part: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(part, list | tuple):
        return [found for i, item in enumerate(part) for found in _numbers(item, (*path, i))]
    return [path]


def test_every_corrupted_relation_and_name_is_noticed() -> None:
    converted = _small()
    good = converted.certificate
    chosen = random.Random(1)
    assert good.taken
    tried = 0
    for _ in range(400):
        bad = Certificate.from_json(good.to_json())
        kind = chosen.choice(("number", "name", "lost", "moved"))
        if kind == "number":
            layer = chosen.choice(list(bad.taken))
            path = chosen.choice(_numbers(bad.taken[layer]))
            part: Any = bad.taken[layer]
            for step in path[:-1]:
                part = part[step]
            if path[-1:] == () or not isinstance(part, list):
                continue
            part[path[-1]] += chosen.choice((1e-3, -1.0, float("nan")))
        elif kind == "name":
            node = chosen.choice([n for n, other in bad.stands_for.items() if other is not None and n != "output"])
            others = [other for other in bad.stands_for.values() if other not in (None, bad.stands_for[node], "output")]
            bad.stands_for[node] = chosen.choice(others)
        elif kind == "lost":
            bad.taken.pop(chosen.choice(list(bad.taken)))
        else:
            layer = chosen.choice(list(bad.taken))
            bad.taken[f"{layer}_x"] = bad.taken.pop(layer)
        tried += 1
        assert converted.network.before is not None
        assert not check(converted.network.before, converted.built, bad), (kind, bad)
    assert tried > 300


SETTINGS: list[tuple[str, str, Any]] = [
    ("third", "padding", (1, 1)),
    ("second", "stride", (2, 2)),
    ("second", "dilation", (2, 2)),
    ("first", "padding", (0, 0)),
]


@pytest.mark.parametrize(("layer", "setting", "value"), SETTINGS)
def test_another_setting_is_noticed(layer: str, setting: str, value: Any) -> None:
    converted = _small()
    module: Any = converted.built.get_submodule(layer)
    setattr(module, setting, value)
    if setting == "padding":
        module._reversed_padding_repeated_twice = [side for side in reversed(value) for _ in range(2)]
    proof = converted.proof()
    assert not proof
    assert proof.unproven[0].layer == layer
    assert proof.unproven[0].broken


def test_another_activation_and_other_wires_are_noticed() -> None:
    converted = _small()
    graph = converted.built.graph
    node = next(n for n in graph.nodes if n.op == "call_module" and "cat" in str(n.target))
    node.args = tuple(reversed(node.args))
    assert not converted.proof()
    converted = _small()
    name = next(n for n, m in converted.built.named_modules() if isinstance(m, nn.ReLU))
    converted.built.set_submodule(name, nn.Tanh())
    proof = converted.proof()
    assert [unproven.layer for unproven in proof.unproven if unproven.broken] == [name]


def test_an_operation_without_a_rule_is_told_and_rests_on_samples() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(self.norm(self.conv(x)), 1)

    converted = _converted(harden(Odd()).eval(), torch.randn(2, 3, 6, 6))
    assert converted.proof()  # the same operation of the same value
    name = next(n for n, m in converted.built.named_modules() if "cumsum" in repr(m) and n)
    before = converted.network.before
    assert before is not None
    before.modules[name] = copy.copy(before.modules[name])
    before.modules[name].args = (before.modules[name].args[0], 2)  # type: ignore[assignment]
    assert [u.layer for u in converted.proof().unproven] == [name]


def test_the_report_says_so() -> None:
    model = harden(Small()).eval()
    built = canonize.canonize(model, torch.randn(2, 3, 8, 8))
    report = built.report
    assert report.proof
    assert "proven for all inputs" in str(report)
    assert report.to_dict()["proof"]["proven"] is True
    assert "certificate" not in report.to_dict()
    certificate = Certificate.from_json(report.certificate)
    assert certificate.hashes == {"original": hash_of(model), "canonical": hash_of(built)}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "stands_for": [], "taken": {}}'])
def test_a_damaged_certificate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"certificate|damaged|Expecting|missing"):
        Certificate.from_json(text)


def test_relations_are_what_they_say() -> None:
    """a v = c u + d, under affines on either side, against numbers."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        u, scale, shift, s, t = torch.randn(5, 4, generator=generator, dtype=EXACT)
        given = Relation(torch.ones(4, dtype=EXACT), scale, shift)
        v = scale * u + shift
        behind = given.behind(s, t).solved()
        assert torch.allclose(behind[0] * u + behind[1], s * v + t, atol=1e-9)
        before = given.before(s, t).solved()
        assert torch.allclose(before[0] * (s * u + t) + before[1], v, atol=1e-9)
    assert IDENTITY.solved()[0] == 1


def test_half_a_unit_in_the_last_place() -> None:
    exact = torch.randn(1000, dtype=EXACT, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        held = exact.to(dtype)
        assert is_rounded(held, exact)
        step = held.to(EXACT) * (1 + 2 * torch.finfo(dtype).eps)
        assert not is_rounded(step.to(dtype), exact)
        assert not is_rounded(held, exact * torch.nan)


_POOLINGS = [
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((2, None)),
    nn.AdaptiveMaxPool2d((3, 2)),
    nn.AdaptiveAvgPool2d((4, 6)),
]


def _plainly_pooled(pooling: nn.Module) -> Proven:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4), pooling, nn.Conv2d(4, 2, 1))
    harden(model)
    options = Options("threshold", (), chosen_forms(["plain_pooling"]))
    network, _ = rewritten(model.eval(), normalise(torch.randn(2, 3, 12, 12)), "symbolic_trace", options)
    assert network.before is not None
    built = network.build()
    return Proven(network, built, certificate_of(network.before, network, built))


@pytest.mark.parametrize("pooling", _POOLINGS, ids=str)
def test_plain_pooling_is_proven(pooling: nn.Module) -> None:
    proven = _plainly_pooled(pooling)
    assert any(isinstance(m, nn.AvgPool2d | nn.MaxPool2d) for m in proven.built.modules())
    assert proven.proof(), proven.proof().unproven


@pytest.mark.parametrize("name, value", [("kernel_size", (3, 3)), ("stride", (1, 1)), ("padding", (1, 1))])
def test_other_windows_are_noticed(name: str, value: tuple[int, int]) -> None:
    proven = _plainly_pooled(nn.AdaptiveAvgPool2d(2))
    (plain,) = (m for m in proven.built.modules() if isinstance(m, nn.AvgPool2d))
    setattr(plain, name, value)
    assert proven.proof().unproven[0].broken


def test_one_size_is_not_taken_for_all() -> None:
    proven = _plainly_pooled(nn.AdaptiveAvgPool2d(2))
    for node in reversed(list(proven.built.graph.nodes)):
        if node.target is torch._assert:
            proven.built.graph.erase_node(node)
            break
    assert "no other is refused" in proven.proof().unproven[0].reason
