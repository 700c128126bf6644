"""Calls that the vocabulary has no row for: taken apart where torch says what they come down to, else left whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import canonize
from canonize.nn import Call
from tests.zoo.case import norm

CHANNELS = 6


class Net(nn.Module):
    """BatchNorm -> a call with fixed numbers beside it -> a linear layer."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.call, self.bn = call, norm(CHANNELS, 1)
        self.vector = nn.Parameter(torch.randn(CHANNELS, generator=generator))
        self.matrix = nn.Parameter(torch.randn(CHANNELS, CHANNELS, generator=generator))
        self.fc = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Any:
        y: Any = self.fc(self.call(self.bn(x), self.vector, self.matrix))
        return y


def _converted(call: Callable[..., Tensor]) -> canonize.CanonicalModel:
    """Converted, and compared in float64: two batch sizes, gradients, and what ``inspect`` says."""
    torch.manual_seed(1)
    model = Net(call).double().eval()
    x = torch.randn(4, CHANNELS, dtype=torch.float64)
    model(x)
    converted = canonize.canonize(model, x, verify=False)
    for rows in (4, 7):
        given = torch.randn(rows, CHANNELS, dtype=torch.float64, requires_grad=True)
        expected, found = model(given), converted(given)
        scale = float(expected.detach().abs().max())
        assert torch.allclose(found, expected, rtol=0, atol=1e-10 * scale)
        want, got = (torch.autograd.grad(y.sin().sum(), given)[0] for y in (expected, found))
        assert torch.allclose(got, want, rtol=0, atol=1e-10 * max(1.0, float(want.abs().max())))
    assert canonize.inspect(converted, x).canonical == converted.report.canonical
    return converted


def _calls(converted: canonize.CanonicalModel) -> list[str]:
    return [module.target for module in converted.modules() if type(module) is Call]


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda x, v, m: torch.addcmul(x, x, v, value=2.0), id="addcmul"),
        pytest.param(lambda x, v, m: torch.addcdiv(x, v, v + 5, value=0.5), id="addcdiv"),
        pytest.param(lambda x, v, m: torch.lerp(x, v, 0.3), id="lerp"),
        pytest.param(lambda x, v, m: x.lerp(v, 0.8), id="lerp-method"),
        pytest.param(lambda x, v, m: torch.chain_matmul(x, m, m), id="chain_matmul"),
        pytest.param(lambda x, v, m: torch.linalg.multi_dot([x, m, m]), id="multi_dot"),
    ],
)
def test_it_is_taken_apart(call: Callable[..., Tensor]) -> None:
    converted = _converted(call)
    assert converted.report.canonical
    assert not _calls(converted)


@pytest.mark.parametrize(
    ("call", "kept"),
    [
        # Its factor of the batch's size would be baked in.
        pytest.param(lambda x, v, m: F.mse_loss(x, v.expand_as(x)) + x, "mse_loss", id="a size of the example"),
        # A decomposition has another derivative where a length is 0.
        pytest.param(lambda x, v, m: torch.renorm(x, 2, 0, 1.0), "renorm", id="not smooth"),
        pytest.param(lambda x, v, m: torch.cdist(x, m), "cdist", id="nothing to take apart"),
        pytest.param(lambda x, v, m: F.cosine_similarity(x[:, None], m[None], dim=-1), "cosine", id="writes inside"),
        pytest.param(lambda x, v, m: F.normalize(x), "normalize", id="known"),
    ],
)
def test_it_is_left_whole(call: Callable[..., Tensor], kept: str) -> None:
    assert any(kept in target for target in _calls(_converted(call)))


def test_a_part_that_no_rule_knows_is_named() -> None:
    converted = _converted(lambda x, v, m: F.pairwise_distance(x, v.expand_as(x), keepdim=True))
    assert not converted.report.canonical
    assert any("norm" in finding.what or "distance" in finding.what for finding in converted.report.findings)


def test_what_is_read_twice_takes_no_affine_of_one_place_alone() -> None:
    """``cat([y, y])`` plus a constant that is 0 in its second half."""
    converted = _converted(lambda x, v, m: torch.cat([v, torch.zeros_like(v)]) + torch.cat([x, x], 1))
    assert converted.report.canonical


class Collects(nn.Module):
    """Its arguments come in one tuple; the list of pieces makes torch.export capture it."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.fc = norm(CHANNELS, 1), nn.Linear(CHANNELS, 2)

    def forward(self, *inputs: Tensor) -> Tensor:
        value = self.bn(inputs[0])
        total: Tensor = self.fc(value)
        if value.shape[0] > inputs[1].shape[0]:
            return total
        for piece in value.split(3, 1):
            total = total + piece.sum(1, keepdim=True)
        return total


def test_arguments_in_one_tuple_keep_the_batch_size_free() -> None:
    model = Collects().double().eval()
    x = torch.randn(3, CHANNELS, dtype=torch.float64)
    from canonize.capture.export_trace import export_trace
    from canonize.inputs import normalise

    captured = export_trace(model, normalise((x, x)))
    other = torch.randn(5, CHANNELS, dtype=torch.float64)
    assert torch.allclose(
        torch.fx.GraphModule(captured.root, captured.graph)(other, other), model(other, other), rtol=0, atol=1e-10
    )


def test_copies_of_views_are_pieces_of_the_batch() -> None:
    class Rows(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(row * 2 for row in torch.unbind_copy(x, 0))

    x = torch.randn(3, 4)
    converted = canonize.canonize(Rows(), x, verify=False)
    assert len(converted(x)) == 3
    with pytest.raises(AssertionError, match="captured for other sizes"):
        converted(torch.randn(4, 4))


def test_layers_that_refuse_what_functions_take() -> None:
    converted = _converted(lambda x, v, m: F.hardtanh(x, 0.0, 0.0) + x.flip(1))
    assert _calls(converted)


def test_sums_of_single_numbers() -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum().sum(0) + x.mean().mean(0)

    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.allclose(canonize.canonize(One(), x, verify=False)(x), One()(x))
