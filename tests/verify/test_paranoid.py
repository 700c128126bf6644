"""Each rewrite on its own: the zoo's pass, a slip is caught where it is made, regions are reached."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import canonize
from canonize.graph.network import Network
from canonize.patterns.linear_bn import LinearThenBatchNorm
from canonize.verify.paranoid import TOLERANCE
from tests import checks, models
from tests.verify.campaign.architectures import make as network
from tests.verify.nets import X, make

# Every kind of change that a rewrite makes: copies, paddings set in place, affines composed, layers merged.
NAMES = (
    "bn-called-twice-in-a-row", "fold-conv-2d", "relation-network", "dict-output", "two-inputs",
    "same-norm-on-two-inputs", "fold-transposed-grouped-2d",
)  # fmt: skip


def _note(model: Any) -> str:
    return next(note for note in model.report.notes if note.startswith("paranoid: "))


@pytest.mark.parametrize("name", NAMES)
def test_rewrites_of_the_zoo_pass_alone(name: str) -> None:
    case = next(case for case in models.CASES if case.name == name)
    inputs = checks.draw(case.inputs, 2)
    canonical = canonize.canonize(case.model(torch.float64), inputs, verify=False, paranoid=True)
    assert f"{len(canonical.report.rewrites)} rewrites checked alone" in _note(canonical)


@pytest.mark.parametrize("strategy", ["threshold", "untangle"])
def test_linear_regions_are_reached(strategy: Any) -> None:
    model, inputs = network("DenseNet", 0)
    note = _note(canonize.canonize(model, inputs, strategy=strategy, verify=False, paranoid=True))
    reached, total = (int(word) for word in note.split("; ")[1].split(" linear")[0].split(" of "))
    assert 0.9 * total < reached <= total  # dead channels have one region alone
    assert total > 200


def test_a_slip_is_caught_at_its_rewrite(monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite = LinearThenBatchNorm.rewrite

    def slipping(self: LinearThenBatchNorm, network: Network, plan: Any) -> None:
        rewrite(self, network, plan)
        node = next(n for n in network.graph.nodes if n.target in plan.into)
        weights = network.weights(node)
        assert weights.bias is not None
        weights.bias = weights.bias * (1 + 100 * TOLERANCE)

    monkeypatch.setattr(LinearThenBatchNorm, "rewrite", slipping)
    with pytest.raises(
        canonize.CanonizeError, match=r"^bn.affine: linear_bn changed what .* gives \(by .* of its scale"
    ):
        canonize.canonize(make(), X, verify=False, paranoid=True)
    canonize.canonize(make(), X, verify=False)
