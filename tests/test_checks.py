"""The harness must be able to fail: each of its assertions meets the error it is there for."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests import checks
from tests.statistics import TINY, calibrate, harden
from tests.zoo.case import conv, image, norm, wired

X = torch.ones(2, 6, 5, 7)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (norm(6).eval(), 1),
        (norm(6).train(), 1),
        (norm(6, track_running_stats=False), 1),
        (nn.SyncBatchNorm(6).eval(), 1),
        (nn.Sequential(norm(6), norm(6)).eval(), 2),
        (wired(lambda m, x: m.bn(m.bn(x)), bn=norm(6)).eval(), 2),
        (wired(lambda m, x: F.batch_norm(x, m.mean, m.var), mean=torch.zeros(6), var=torch.ones(6)), 1),
        (nn.InstanceNorm2d(6), 0),
        (nn.InstanceNorm2d(6, track_running_stats=True).eval(), 1),
        (nn.GroupNorm(2, 6), 0),
        (nn.LayerNorm(7), 0),
        (conv(6, 2), 0),
    ],
)
def test_batch_norms_are_counted_where_they_run(model, count):
    assert checks.count_batch_norms(model, X) == count


def test_batch_norms_of_an_exported_graph_are_counted():
    exported = torch.export.export(nn.Sequential(norm(6), nn.InstanceNorm2d(6)).eval(), (X,)).module()
    assert checks.count_batch_norms(exported, (X,)) == 1


def test_batch_norms_are_counted_with_keyword_arguments():
    assert checks.count_batch_norms(norm(6).eval(), ((), {"input": X})) == 1


@pytest.mark.parametrize(
    ("got", "wanted", "error"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), 0.5),
        (torch.tensor([0.0]), torch.tensor([0.0]), 0.0),
        (torch.tensor([0.5]), torch.tensor([0.0]), 0.5),
        (torch.tensor([math.nan]), torch.tensor([math.nan]), math.inf),
        (torch.tensor([math.inf]), torch.tensor([math.inf]), math.inf),
        (torch.tensor([1.0]), torch.tensor([[1.0]]), math.inf),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), math.inf),
        (torch.tensor([1]), torch.tensor([2]), math.inf),
        ((torch.ones(1),), [torch.ones(1)], math.inf),
        ({"a": torch.ones(1), "b": 2}, {"a": torch.ones(1), "b": 2}, 0.0),
        ({"a": torch.ones(1), "b": 2}, {"a": torch.ones(1), "b": 3}, math.inf),
        ((torch.ones(1), (torch.ones(2), 1.5 * torch.ones(2))), (torch.ones(1), (torch.ones(2), torch.ones(2))), 0.5),
    ],
)
def test_relative_error(got, wanted, error):
    assert checks.relative_error(got, wanted) == error


def _touch_weight(model):
    with torch.no_grad():
        model[0].weight[0] += 1e-7


def _negate_zero(model):
    with torch.no_grad():
        model[1].running_mean.neg_()


def _replace_parameter(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def _replace_module(model):
    model[2] = copy.deepcopy(model[2])


def _leave_gradient(model):
    model(X).sum().backward()


MEDDLING = {
    "weight": (_touch_weight, "values were changed"),
    "sign of zero": (_negate_zero, "values were changed"),
    "parameter": (_replace_parameter, "tensor was replaced"),
    "module": (_replace_module, "submodule was replaced"),
    "gradient": (_leave_gradient, "gradient was left"),
    "mode": (lambda model: model[1].train(), "training flag"),
    "hook": (lambda model: model[0].register_forward_hook(lambda *_: None), "hooks"),
    "attribute": (lambda model: setattr(model[2], "note", 1), "attributes"),
    "requires_grad": (lambda model: model[0].weight.requires_grad_(False), "requires_grad"),
    "buffer": (lambda model: model.register_buffer("extra", torch.ones(1)), "parameters or buffers"),
    "addition": (lambda model: model.append(nn.ReLU()), "submodules"),
}


@pytest.mark.parametrize(("meddle", "message"), MEDDLING.values(), ids=MEDDLING.keys())
def test_an_original_that_was_touched_is_noticed(meddle, message):
    model = nn.Sequential(conv(6, 6), norm(6), nn.ReLU()).eval()
    before = checks.snapshot(model)
    checks.assert_untouched(model, before)
    meddle(model)
    with pytest.raises(AssertionError, match=message):
        checks.assert_untouched(model, before)


@pytest.mark.parametrize("slip", ["eps", "bias", "border", "kink"])
def test_classic_slips_are_noticed(slip):
    """What a freshly built model would not show."""
    model = harden(nn.Sequential(norm(6), nn.ReLU(), conv(6, 4, padding=1))).double().eval()
    wrong = copy.deepcopy(model)
    if slip == "eps":
        wrong[0].eps = 1e-5
    elif slip == "bias":
        wrong[2].bias.data.zero_()
    elif slip == "border":
        wrong = wired(lambda m, x: m.conv(F.pad(m.bn(x).relu(), (1, 1, 1, 1), value=1e-6)), bn=wrong[0], conv=wrong[2])
        wrong.conv.padding = (0, 0)
    else:
        wrong[1] = nn.Threshold(-1e-9, 0.0)
    if slip == "kink":
        checks.assert_same_function(model, wrong, image(6))  # harmless: no input falls between
        wrong[1] = nn.Threshold(0.01, 0.0)
    with pytest.raises(AssertionError, match="differ by"):
        checks.assert_same_function(model, wrong, image(6))


def test_wrong_gradients_are_noticed():
    model = harden(nn.Sequential(conv(6, 4), norm(4))).double().eval()
    detached = wired(lambda m, x: m.body(x) + (m.body(x) - m.body(x)).detach() + 0 * x.sum(), body=model)
    checks.assert_same_function(model, detached, image(6))
    detached = wired(lambda m, x: m.body(x.detach()) + 0 * x.sum(), body=model)
    with pytest.raises(AssertionError, match="input gradients differ"):
        checks.assert_same_function(model, detached, image(6))


def test_hard_statistics_are_hard_and_reproducible():
    model, twin = (harden(nn.Sequential(conv(3, 8), norm(8)), seed=5) for _ in range(2))
    bn = model[1]
    assert torch.equal(bn.weight, twin[1].weight)
    assert torch.equal(bn.running_var, twin[1].running_var)
    assert (bn.weight > 0.1).any()
    assert (bn.weight < -0.1).any()
    assert (bn.weight == 0).any()
    assert bn.weight.abs().min() == 0
    assert TINY in bn.weight.abs().tolist() or torch.isclose(bn.weight.abs(), torch.tensor(TINY), atol=0).any()
    assert bn.bias.min() < 0 < bn.bias.max()
    assert (bn.running_mean != 0).all()
    assert bn.running_var.max() > 100 * bn.running_var.min()
    assert bn.eps == 3e-3
    mild = harden(nn.Sequential(norm(8)), zero=False, tiny=False, positive=True)[0]
    assert (mild.weight > 0.1).all()


def test_calibrated_models_neither_blow_up_nor_fade():
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (conv(6, 6, padding=1), norm(6), nn.ReLU())]
    model = harden(nn.Sequential(*layers), zero=False).eval()
    x = torch.randn(8, 6, 5, 7)
    calibrate(model, x)
    assert not any(module.training for module in model.modules())
    assert all(module.momentum == 0.1 for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert 0.1 < model(x).abs().max().item() < 100
