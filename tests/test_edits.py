"""Edits are values; exactness is a kind of tensor; what is known of a network is dropped by what changes it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import canonize
from canonize.algebra.affine import EXACT, Affine
from canonize.algebra.exact import ExactTensor, exact_parameter, exact_value
from canonize.flow.edits import Compose, Edit, HoldConstant, Kink, PadBefore, PadWith, TakeInput, TakeOutput, Threshold
from canonize.graph.affine_nodes import Origin
from canonize.inputs import normalise
from canonize.pipeline import Options, rewritten
from tests.checks import evaluate, relative_error
from tests.statistics import harden

ONE, TWO = torch.ones(3, dtype=EXACT), torch.full((3,), 2.0, dtype=EXACT)
ORIGINS = (Origin("bn", "BatchNorm2d"),)


def _affine(scale: Tensor) -> Affine:
    return Affine(scale.reshape(1, -1), scale.reshape(1, -1))


@pytest.mark.parametrize(
    ("edit", "same", "other"),
    [
        (TakeOutput(ONE, TWO), TakeOutput(ONE.clone(), TWO.clone()), TakeOutput(ONE, ONE)),
        (TakeInput(ONE, TWO), TakeInput(ONE.clone(), TWO.clone()), TakeOutput(ONE, TWO)),
        (Threshold(ONE, None), Threshold(ONE.clone(), None), Threshold(ONE, TWO)),
        (Kink(ONE, ONE, TWO), Kink(ONE, ONE.clone(), TWO), Kink(ONE, TWO, TWO)),
        (HoldConstant(ONE, TWO), HoldConstant(ONE, TWO.clone()), HoldConstant(TWO, TWO)),
        (PadWith((1, 1), ONE), PadWith((1, 1), ONE.clone()), PadWith((1, 0), ONE)),
        (
            PadBefore((1, 1), ONE, (("padding", (0,)),)),
            PadBefore((1, 1), ONE.clone(), (("padding", (0,)),)),
            PadBefore((1, 1), ONE, (("padding", (1,)),)),
        ),
        (
            Compose(_affine(ONE), ORIGINS, behind=True),
            Compose(_affine(ONE.clone()), ORIGINS, behind=True),
            Compose(_affine(TWO), ORIGINS, behind=True),
        ),
    ],
    ids=lambda edit: type(edit).__name__ if isinstance(edit, Edit) else None,
)
def test_edits_are_compared_by_value(edit: Edit, same: Edit, other: Edit) -> None:
    assert edit == same
    assert hash(edit) == hash(same)
    assert edit != other
    assert type(edit).__name__ in repr(edit)


def test_the_report_holds_every_edit() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, 1, 1))
    report = canonize.canonize(harden(net).eval(), torch.randn(2, 3, 8, 8)).report
    told = [line for rewrite in report.rewrites for line in rewrite.edits]
    assert "0 takes the affine behind it" in told
    assert "4 takes the affine before it" in told
    assert "4 its padding becomes explicit, with a constant per channel" in told
    assert report.to_dict()["rewrites"][0]["edits"]


@pytest.mark.parametrize("copied", [torch.clone, copy.deepcopy, Tensor.detach], ids=lambda f: f.__name__)
def test_what_waits_in_float64_survives_copies(copied) -> None:
    kept = ExactTensor.of(torch.randn(3, dtype=EXACT), torch.float16)
    twin = copied(kept)
    assert isinstance(twin, ExactTensor)
    assert twin.rounding is torch.float16
    value = torch.tensor([1 / 3, 2 / 3], dtype=EXACT)
    parameter = copied(exact_parameter(value, torch.zeros(2)))
    assert parameter.dtype is torch.float32
    assert torch.equal(exact_value(parameter), value)


def test_what_is_computed_from_it_is_plain() -> None:
    kept = ExactTensor.of(torch.randn(3, dtype=EXACT))
    assert type(kept * 2) is Tensor
    assert type(exact_value(kept)) is Tensor


def test_a_finished_model_holds_plain_tensors_only() -> None:
    norm = nn.utils.parametrizations.weight_norm(nn.Embedding(4, 4))
    convs = nn.Sequential(nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))
    for model, example in ((norm, torch.tensor([[0, 1]])), (convs, torch.randn(2, 2, 5))):
        built = canonize.canonize(harden(model).eval(), example)
        kinds = {type(t) for t in (*built.parameters(), *built.buffers())}
        assert kinds <= {nn.Parameter, Tensor}


def test_forms_are_watched_one_by_one() -> None:
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    net = harden(nn.Sequential(*layers, nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))).eval()
    forms = ("dense_as_convolution", "plain_pooling")
    built = canonize.canonize(net, torch.randn(2, 3, 8, 8), forms=forms, paranoid=True)
    assert [r.pattern for r in built.report.rewrites].count("dense_as_convolution") == 2
    assert any(f"{len(built.report.rewrites)} rewrites checked alone" in note for note in built.report.notes)
    assert set(built.report.forms) == set(forms)
    x = torch.randn(3, 3, 8, 8, dtype=EXACT)
    assert relative_error(evaluate(built.double(), (x,))[0], evaluate(net.double(), (x,))[0]) < 1e-6


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        mixed: Tensor = self.attention(y, y, y, need_weights=False)[0]
        return mixed


def test_an_opened_attention_is_a_rewrite() -> None:
    built = canonize.canonize(_Attention().eval(), torch.randn(2, 5, 8), forms=("open_attention",), paranoid=True)
    assert "open_attention" in [r.pattern for r in built.report.rewrites]


def test_rewrites_stop_where_they_are_told_to() -> None:
    layers = [nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)]
    net = harden(nn.Sequential(*layers)).eval()
    from canonize.forms import chosen_forms

    options = Options(forms=chosen_forms(["dense_as_convolution"]))
    for limit in range(4):
        _, report = rewritten(net, normalise(torch.randn(2, 3, 2, 2)), "symbolic_trace", options, limit=limit)
        assert len(report.rewrites) == limit
        assert report.skip == []
        assert report.forms == ["dense_as_convolution"]
