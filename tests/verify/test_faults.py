"""What the equivalence check must catch, and how it says so."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from canonize.errors import NotEquivalentError
from canonize.verify import assert_equivalent, check_equivalence
from canonize.verify.weight_checks import weight_check
from tests.verify.nets import FAULTS, Wrapped, X, fold, make


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("with_exact", [True, False], ids=["exact", "rounded"])
def test_catches(name: str, with_exact: bool) -> None:
    faulty = FAULTS[name]()
    exact = copy.deepcopy(faulty).double() if with_exact else None
    verdict = check_equivalence(make(), faulty, X, exact=exact)
    assert not verdict.passed
    assert verdict.reason
    assert any(not check.passed for check in verdict.checks)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nan in one element", "nan at output[0, 2]"),
        ("another structure", "structure differs: output in the reference, output[0] in the candidate"),
        ("another shape", "shape of output differs: (2, 5) in the reference, (2, 4) in the candidate"),
        ("fixed batch", "the candidate fails where the reference runs"),
        ("dropout active", "the candidate is not deterministic in eval mode"),
    ],
)
def test_reason_says_what_is_wrong(name: str, reason: str) -> None:
    verdict = check_equivalence(make(), FAULTS[name](), X)
    assert reason in verdict.reason


def test_detail_says_where() -> None:
    def one(x: Tensor, y: Tensor) -> Tensor:
        y = y.clone()
        y[1:2, 3] += 1e-3
        return y

    verdict = check_equivalence(make(), Wrapped(one), X, thorough=False)
    worst = verdict.worst("float64", "output")
    assert worst is not None
    assert "output[1, 3]" in worst.detail


@pytest.mark.parametrize("regime", ["large", "small", "zeros"])
def test_fault_in_one_regime_is_named_by_it(regime: str) -> None:
    verdict = check_equivalence(make(), FAULTS[f"{regime} only" if regime == "zeros" else f"{regime} inputs only"](), X)
    failed = {c.name for c in verdict.checks if not c.passed}
    alone = {"small": "small, batch 1", "zeros": "zeros, batch 1", "large": "large, a row of all kinds, batch 10"}
    assert alone[regime] in failed
    assert not failed & {"normal, batch 1", "normal, batch 2", "examples, batch 2", "ones, batch 1"}


def test_the_assertion_carries_the_verdict() -> None:
    with pytest.raises(NotEquivalentError) as caught:
        assert_equivalent(make(), FAULTS["one bias"](), X)
    message = str(caught.value)
    assert "output[" in message
    assert "tolerance" in message
    assert "FAIL  output in float64" in message
    assert "first layer that differs: conv2 (Conv2d)" in message
    assert caught.value.verdict is not None
    assert not caught.value.verdict.passed  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_must_be_the_exact_ones_rounded(dtype: torch.dtype) -> None:
    """A fault smaller than the noise of a half precision, or behind a dead unit, shows in no output."""
    exact = fold(make(dtype=dtype), rounded=False)
    other = copy.deepcopy(exact).to(dtype)
    with torch.no_grad():
        other.conv2.weight[3, 2, 0, 1] *= 1.02
    verdict = check_equivalence(make(dtype=dtype), other, X, exact=exact)
    assert [c.quantity for c in verdict.checks if not c.passed][-1] == "weights"
    assert "conv2.weight[" in verdict.checks[-1].detail
    assert check_equivalence(make(dtype=dtype), copy.deepcopy(exact).to(dtype), X, exact=exact)


def test_a_bound_that_overflows_on_rounding_is_the_exact_one_rounded() -> None:
    exact = nn.PReLU(2).double()
    with torch.no_grad():
        exact.weight.copy_(torch.tensor([1e30, 1e-30]))
    check = weight_check(copy.deepcopy(exact).half(), exact)
    assert check is not None
    assert check.passed
    assert weight_check(nn.Linear(2, 2), exact) is None
