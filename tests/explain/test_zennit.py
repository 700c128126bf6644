"""zennit on live models through the drop-in canonizer, and its composites on canonical models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.canonizers import CompositeCanonizer
from zennit.composites import COMPOSITES, EpsilonPlus, NameMapComposite
from zennit.core import Composite
from zennit.rules import Epsilon
from zennit.types import BatchNorm

import canonize
from canonize.errors import CaptureError, ExplainError
from canonize.explain import Choices, attribute
from canonize.explain.zennit import Canonizer, layer_map
from tests.explain.families import FAMILIES, hardened, relation_network
from tests.explain.heatmaps import difference, heatmap
from tests.explain.nets import Plain, Residual, Reused, dense, ready

METHODS = {
    "epsilon_plus": "epsilon-plus",
    "epsilon_plus_flat": "epsilon-plus-flat",
    "epsilon_alpha2_beta1": "alpha2-beta1",
    "excitation_backprop": "excitation-backprop",
    "guided_backprop": "guided-backprop",
    "deconvnet": "deconvnet",
}
FINE = ("sum", "pool", "gate", "threshold")


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that a canonizer could change: the objects a model is made of, their flags, every bit of every tensor."""
    return {
        name: (
            module,
            [(key, id(value)) for key, value in vars(module).items() if key not in ("_modules",)],
            list(module._modules.items()),
            [(key, value.data_ptr(), value._version, value.clone()) for key, value in module.state_dict().items()],
        )
        for name, module in model.named_modules()
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    if list(before) != list(after):
        return False
    for one, other in zip(before.values(), after.values(), strict=True):
        if one[0] is not other[0] or one[1] != other[1] or one[2] != other[2]:
            return False
        if any(a[:3] != b[:3] or not torch.equal(a[3], b[3]) for a, b in zip(one[3], other[3], strict=True)):
            return False
    return True


@pytest.mark.parametrize("build", [Plain, Residual, Reused, dense])
def test_one_changed_line_gives_the_heatmaps_of_the_canonical_model(build: Callable[[], nn.Module]) -> None:
    model, images, targets = ready(build)
    canonical = canonize.canonize(model, images, verify=False)
    before = state_of(model)
    for name, method in METHODS.items():
        wanted = attribute(canonical, images, targets, method=method).relevance
        assert isinstance(wanted, Tensor)
        live = heatmap(model, COMPOSITES[name](canonizers=[Canonizer(images, verify=False)]), images, targets)
        assert difference(live, wanted) < 1e-12, name
        rules = layer_map(method=method if name in ("guided_backprop", "deconvnet") else "lrp")
        assert difference(heatmap(canonical, COMPOSITES[name](layer_map=rules), images, targets), wanted) < 1e-12, name
        again = heatmap(canonical, COMPOSITES[name](canonizers=[Canonizer()]), images, targets)
        assert difference(again, wanted) < 1e-12, name
    assert same(before, state_of(model))


def test_gates_and_means_get_their_rules_through_the_canonizer() -> None:
    model, images = hardened(FAMILIES["EfficientNet"], 16)
    targets = torch.tensor([0, 1])
    canonical = canonize.canonize(model, images, verify=False)
    for name in ("epsilon_plus", "excitation_backprop"):
        wanted = attribute(canonical, images, targets, method=METHODS[name]).relevance
        assert isinstance(wanted, Tensor)
        live = heatmap(model, COMPOSITES[name](canonizers=[Canonizer(images, verify=False)]), images, targets)
        assert difference(live, wanted) < 1e-12, name
        gradient = attribute(canonical, images, targets, method=METHODS[name], choices=Choices(gate="gradient"))
        assert isinstance(gradient.relevance, Tensor)
        live = heatmap(
            model, COMPOSITES[name](canonizers=[Canonizer(images, verify=False, gate="gradient")]), images, targets
        )
        assert difference(live, gradient.relevance) < 1e-12, name
        assert difference(live, wanted) > 0.01, name


def test_choices_of_the_canonizer_are_those_of_composites() -> None:
    model, images, targets = ready(dense)
    canonical = canonize.canonize(model, images, verify=False)
    wanted = attribute(canonical, images, targets, choices=Choices(threshold="pass", pool="gradient")).relevance
    assert isinstance(wanted, Tensor)
    own = Canonizer(images, threshold="pass", pool="gradient", verify=False)
    live = heatmap(model, EpsilonPlus(canonizers=[own]), images, targets)
    assert difference(live, wanted) < 1e-12
    rules = layer_map({"threshold": "pass", "pool": "gradient"})
    assert difference(heatmap(canonical, EpsilonPlus(layer_map=rules), images, targets), wanted) < 1e-12


def test_the_model_computes_the_same_meanwhile_and_is_restored_after_an_exception() -> None:
    model, images, _ = ready(Residual)
    model.train()
    before = state_of(model)
    with torch.no_grad():
        model.eval()
        wanted = model(images)
        model.train()
    canonizer = Canonizer(images)
    composite = EpsilonPlus(canonizers=[canonizer])

    def stumble() -> None:
        with composite.context(model):
            assert not any(isinstance(module, BatchNorm) for module in model.modules())
            assert (model(images) - wanted).abs().max() / wanted.abs().max() < 1e-10
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        stumble()
    assert same(before, state_of(model))
    instances = CompositeCanonizer([Canonizer(images, verify=False)]).apply(model)
    assert not same(before, state_of(model))
    for instance in (*instances, *instances):
        instance.remove()
    assert same(before, state_of(model))


def test_a_model_that_cannot_be_canonized_is_left_alone() -> None:
    class Wilful(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Wilful()).eval()
    before = state_of(model)
    with pytest.raises(CaptureError):
        Composite(canonizers=[Canonizer(torch.rand(1, 3, 4, 4))]).register(model)
    assert same(before, state_of(model))


def test_hooks_are_refused_or_ignored_as_told() -> None:
    model, images, targets = ready(Plain)
    called = []
    handle = model.get_submodule("1").register_forward_hook(lambda *_: called.append(1))
    with pytest.raises(CaptureError, match="forward hook"):
        Canonizer(images).apply(model)
    found = heatmap(model, EpsilonPlus(canonizers=[Canonizer(images, hooks="ignore")]), images, targets)
    assert not called, "its BatchNorm was not there"
    model(images)
    assert called, "now it is"
    handle.remove()
    assert difference(found, heatmap(model, EpsilonPlus(canonizers=[Canonizer(images)]), images, targets)) < 1e-12


def test_what_the_canonizer_cannot_do_is_said() -> None:
    with pytest.raises(ExplainError, match="halves"):
        Canonizer(gate="uniform")
    with pytest.raises(ExplainError, match="hooks='drop'"):
        Canonizer(hooks="drop")
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with pytest.raises(ExplainError, match=r"no rule for MultiheadAttention at self_attn.*open_attention"):
        Canonizer(torch.rand(2, 3, 8), verify=False).apply(layer)


@pytest.mark.parametrize("family", FAMILIES)
def test_module_order_is_execution_order_and_names_can_be_mapped(family: str) -> None:
    model, images = hardened(FAMILIES[family], 32)
    canonical = canonize.canonize(model, images, verify=False)
    called = [str(node.target) for node in canonical.graph.nodes if node.op == "call_module"]
    leaves = [name for name, module in canonical.named_modules() if not any(True for _ in module.children())]
    assert leaves == called
    name = next(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    with NameMapComposite([((name,), Epsilon())]).context(canonical):
        assert len(canonical.get_submodule(name)._forward_hooks) > 0
    assert isinstance(canonical.get_submodule(name), nn.Conv2d)


@pytest.mark.parametrize("family", [*FAMILIES, "Relation Network"])
def test_all_five_families_are_explained_without_a_warning(family: str) -> None:
    if family == "Relation Network":
        model, (images, *others) = relation_network()
    else:
        model, images = hardened(FAMILIES[family], 32)
        others = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        composite = EpsilonPlus(canonizers=[Canonizer((images, *others), verify=False)])
        with composite.context(model):
            given = images.clone().requires_grad_()
            output = model(given, *others)
            (relevance,) = torch.autograd.grad(output, given, torch.eye(output.shape[1], dtype=output.dtype)[:2])
    assert relevance.isfinite().all() and (relevance != 0).any()


def test_no_example_input_is_asked_for_where_the_model_says_its_own() -> None:
    model, images, targets = ready(Plain)
    with Gradient(model=model, composite=EpsilonPlus(canonizers=[Canonizer(verify=False)])) as attributor:
        _, found = attributor(images, torch.eye(5, dtype=torch.float64)[targets])
    wanted = heatmap(model, EpsilonPlus(canonizers=[Canonizer(images, verify=False)]), images, targets)
    assert difference(found.detach(), wanted) < 1e-12
