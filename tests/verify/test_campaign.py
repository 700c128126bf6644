"""A sample of the campaign that ``benchmarks/verify_faults.py`` runs in full: each kind once, each network often."""

from __future__ import annotations

import pytest

import canonize
from tests.verify.campaign import equivalents, faults
from tests.verify.campaign.architectures import ARCHITECTURES

NETWORKS = list(ARCHITECTURES)
FAULTS = [
    (kind, NETWORKS[(2 * number + shift) % 6], form)
    for number, kind in enumerate(faults.KINDS)
    for shift, form in enumerate(("plain", "canonical"))
    # Nothing in these has a border, or a negative scale, to be wrong.
    if not (kind == "negative scale only" and form == "plain")
]
EQUIVALENTS = [(kind, NETWORKS[(number + 2) % 6]) for number, kind in enumerate(equivalents.KINDS)]


@pytest.mark.parametrize(("kind", "architecture", "form"), FAULTS)
def test_a_planted_fault_is_caught_and_its_layer_named(kind: str, architecture: str, form: str) -> None:
    fault = faults.plant(kind, architecture, form, seed=7)
    if fault is None:  # this network has no place for it: the next one has
        fault = faults.plant(kind, "VGG" if form == "plain" else "DenseNet", form, seed=7)
    assert fault is not None
    verdict = canonize.check_equivalence(fault.model, fault.candidate, fault.inputs)
    assert not verdict.passed
    assert verdict.divergence is not None
    assert verdict.divergence.layer in fault.layers, verdict


@pytest.mark.parametrize(("kind", "architecture"), EQUIVALENTS)
def test_the_same_function_is_not_refused(kind: str, architecture: str) -> None:
    model, candidate, inputs = equivalents.build(kind, architecture, seed=7)
    verdict = canonize.check_equivalence(model, candidate, inputs, locate=False)
    assert verdict.passed, verdict
