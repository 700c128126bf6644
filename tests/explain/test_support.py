"""``blockers``: what an explainer has no rule for, against what the explainer then does."""

from __future__ import annotations

import warnings

import captum.attr
import pytest
import torch
from torch import Tensor, nn

import canonize
from canonize.explain.support import Blocker, blockers, listed
from canonize.inputs import normalise
from tests.explain.families import FAMILIES, hardened
from tests.explain.nets import Plain, Reused, ready


def told(model: nn.Module, inputs: Tensor, explainer: str) -> dict[str, str]:
    return {blocker.where: blocker.what for blocker in blockers(model, normalise(inputs), explainer)}


def test_a_plain_canonical_model_has_none() -> None:
    model, images, targets = ready(Plain)
    canonical = canonize.canonize(model, images, verify=False)
    assert told(canonical, images, "zennit") == {}
    assert all("LRP has no rule" in what for what in told(canonical, images, "captum").values())
    assert {name for name, what in told(model, images, "zennit").items() if "BatchNorm" in what} == {
        "1",
        "5",
        "8",
        "13",
    }
    del targets


def test_reuse_and_functional_calls_are_found_at_their_place() -> None:
    model, images, _ = ready(Reused)
    found = told(model, images, "zennit")
    assert "called 2 times: its rule sees the last call alone" in found["conv"]
    assert "called 3 times" in found["relu"]
    assert any("mean is no module" in what for what in found.values())
    assert "raise an error" in told(model, images, "captum")["conv"]


@pytest.mark.parametrize("family", FAMILIES)
def test_captums_lrp_raises_exactly_where_something_is_listed(family: str) -> None:
    model, images = hardened(FAMILIES[family], 32)
    canonical = canonize.canonize(model, images, verify=False)
    found = told(canonical, images, "captum")
    leaves = [n for n, m in canonical.named_modules() if n and not any(True for _ in m.children())]
    for name in leaves:
        single = nn.Sequential(canonical.get_submodule(name))
        explainer = captum.attr.LRP(single)
        explainer.layers = []
        explainer._get_layers(single)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                explainer._check_and_attach_rules()
            raised = False
        except TypeError:
            raised = True
        finally:
            if "rule" in vars(single[0]):
                del single[0].rule
        assert raised is ("LRP has no rule" in found.get(name, "")), name


def test_attention_recurrence_and_unknown_calls_say_what_to_do() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.memory = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x, _ = self.attention(x, x, x, need_weights=False)
            return torch.cumsum(self.memory(x)[0], 1)

    x = torch.randn(2, 3, 4)
    model = Odd().eval()
    zennit, captum_ = (blockers(model, normalise(x), name) for name in ("zennit", "captum"))
    by_name = {blocker.where: blocker for blocker in zennit}
    assert "--form open_attention" in by_name["attention"].advice and "fails" in by_name["attention"].what
    assert "rule of yours" in by_name["memory"].advice
    assert any("cumsum" in blocker.what for blocker in zennit)
    assert any("attention" in blocker.what.lower() for blocker in captum_)
    opened = canonize.canonize(model, x, forms=["open_attention"], verify=False)
    after = told(opened, x, "zennit")
    assert any("matrix product" in what for what in after.values()) and any(
        "Softmax" in what for what in after.values()
    )


def test_lines_put_the_same_advice_together() -> None:
    many = [Blocker(f"bn{i}", "BatchNorm", "fold") for i in range(5)]
    assert listed([*many, Blocker("x", "odd", "help")]) == [
        "5 x BatchNorm", "    at bn0, bn1, bn2, and 2 more", "    -> fold", "odd", "    at x", "    -> help",
    ]  # fmt: skip
