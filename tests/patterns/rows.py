"""The rows of the pattern tests: a small model each, and what must become of its affine.

Nothing here asks canonize to verify itself: a planted error must be caught by the comparison made here.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from torch import fx, nn

import canonize
from canonize.patterns import catalogue
from canonize.report import AffineFate
from tests import checks
from tests.statistics import harden

Inputs = Callable[[int], Any]
NAMES = tuple(pattern.name for pattern in catalogue())
POSITIVE = {"positive": True}
# No dead and no tiny channel: signs differ, thresholds are finite.
MIXED = {"zero": False, "tiny": False}
ALIVE = {"zero": False, "tiny": False, "positive": True}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A small model.

    Attributes
    ----------
    name : str
        The test's id, and the seed of the model's parameters.
    build : callable
        Makes the bare model.
    inputs : callable
        Batch size to arguments.
    hardening : dict
        Keyword arguments of :func:`tests.statistics.harden`.
    strategy : str
        Passed on to canonize.
    skip : tuple of str
        Patterns that must not interfere.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    hardening: Mapping[str, bool] = field(default_factory=dict)
    strategy: Literal["threshold", "untangle"] = "threshold"
    skip: tuple[str, ...] = ()

    def model(self) -> nn.Module:
        """The model in float64 and evaluation mode, with seeded parameters and hard statistics."""
        seed = zlib.crc32(self.name.encode())
        torch.manual_seed(seed)
        return harden(self.build(), seed, **self.hardening).double().eval()


@dataclass(frozen=True, kw_only=True)
class Folds(Row):
    """The pattern takes every affine listed.

    Attributes
    ----------
    into : dict
        Affine to the layers that must hold it.
    layers : dict
        Layers of the canonical model to their exact types: what the pattern adds or exchanges.
    no_rule : tuple of str
        Layers of the canonical model that explainers have no rule for; none in most.
    """

    into: Mapping[str, tuple[str, ...]]
    no_rule: tuple[str, ...] = ()
    layers: Mapping[str, type] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Refuses(Row):
    """The pattern says why it does not take the affine.

    Attributes
    ----------
    affine : str
        Qualified name.
    because : str
        Regular expression that the whole reason matches.
    goes : str
        Which pattern takes it where all may be used.
    into : tuple of str
        Where to.
    """

    affine: str
    because: str
    goes: str
    into: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Alone(Row):
    """It looks like the pattern, and is not.

    Attributes
    ----------
    untouched : tuple of str
        Layers that must keep the very parameters of the model.
    batch_norms : int
        Batch norm operators that must be left.
    """

    untouched: tuple[str, ...]
    batch_norms: int = 0


def rows(*groups: Iterable[Row] | Row) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize``."""
    flat = [row for group in groups for row in ([group] if isinstance(group, Row) else group)]
    assert len({row.name for row in flat}) == len(flat), "two rows share a name"
    return [pytest.param(row, id=row.name) for row in flat]


def canonized(row: Row, model: nn.Module, *, skip: tuple[str, ...] = (), batch_norms: int = 0) -> fx.GraphModule:
    """Canonize without self-verification, and assert that the function is the same and the original untouched."""
    example = checks.draw(row.inputs, 2)
    before = checks.snapshot(model)
    canonical = canonize.canonize(model, example, strategy=row.strategy, skip=tuple({*row.skip, *skip}), verify=False)
    checks.assert_untouched(model, before)
    checks.assert_same_function(model, canonical, row.inputs, tolerance=1e-10)
    assert checks.count_batch_norms(canonical, example) == batch_norms, str(canonical.report)
    assert checks.loose_ends(canonical, example) == []
    checks.assert_untouched(model, before)
    return canonical


def fate_of(canonical: fx.GraphModule, affine: str) -> AffineFate:
    """What became of one affine."""
    (fate,) = (fate for fate in canonical.report.affines if fate.name == affine)
    return fate


def assert_folds(row: Folds, pattern: str) -> fx.GraphModule:
    """Assert that `pattern` puts each affine into the layers named, and changes no other layer's weights."""
    model = row.model()
    canonical = canonized(row, model)
    for affine, into in row.into.items():
        fate = fate_of(canonical, affine)
        assert (fate.outcome, fate.pattern) == ("absorbed", pattern), str(canonical.report)
        assert sorted(fate.into) == sorted(into)
        assert fate.reason == ""
    for name, wanted in row.layers.items():
        assert type(canonical.get_submodule(name)) is wanted
    changed = {name for into in row.into.values() for name in into}
    assert_weights_shared(model, canonical, set(layers_with_weights(canonical)) - changed)
    assert tuple(found.where for found in canonical.report.findings) == row.no_rule, str(canonical.report)
    return canonical


def assert_refuses(row: Refuses, pattern: str) -> None:
    """Assert the reason that `pattern` gives, that nothing is lost by it, and where the affine goes instead."""
    model = row.model()
    others = tuple(name for name in NAMES if name not in (pattern, "last_resort"))
    alone = canonized(row, model, skip=others)
    # A constant of the model becomes a layer of its own, below the constant's name.
    anchors = (row.affine, f"{row.affine}.affine")
    (refusal,) = (r for r in alone.report.refusals if r.pattern == pattern and r.anchor in anchors)
    assert re.fullmatch(row.because, refusal.reason), refusal.reason
    # What is missing altogether has no name.
    assert refusal.nodes or refusal.reason.startswith("no "), "a refusal names the layer concerned"
    fate = fate_of(alone, row.affine)
    assert fate.outcome != "absorbed"
    assert f"{pattern}: {refusal.reason}" in fate.reason
    fate = fate_of(canonized(row, model), row.affine)
    assert (fate.pattern, sorted(fate.into)) == (row.goes, sorted(row.into)), fate


def assert_alone(row: Alone, pattern: str) -> fx.GraphModule:
    """Assert that `pattern` rewrites nothing and the layers named keep the model's own parameters."""
    model = row.model()
    canonical = canonized(row, model, batch_norms=row.batch_norms)
    assert [rewrite for rewrite in canonical.report.rewrites if rewrite.pattern == pattern] == []
    assert_weights_shared(model, canonical, set(row.untouched))
    for name in row.untouched:
        assert type(canonical.get_submodule(name)) is type(model.get_submodule(name))
    return canonical


def layers_with_weights(canonical: fx.GraphModule) -> list[str]:
    """Qualified names of the layers of a canonical model that hold a weight."""
    return [
        name for name, layer in canonical.named_modules() if isinstance(getattr(layer, "weight", None), nn.Parameter)
    ]


def assert_weights_shared(model: nn.Module, canonical: fx.GraphModule, names: set[str]) -> None:
    """Assert that these layers hold the very parameters of the model, bias and all."""
    originals = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        layer, original = canonical.get_submodule(name), originals.get(name)
        if original is None:
            continue
        for parameter, tensor in layer.named_parameters(recurse=False):
            assert tensor is getattr(original, parameter), f"{name}.{parameter} was changed"
