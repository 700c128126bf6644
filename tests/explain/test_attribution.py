"""``canonize.explain.attribute``: targets, batches, several inputs, and what it leaves behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import canonize
from canonize.errors import ExplainError, InputError
from canonize.explain import Choices, attribute, composite, layer_groups, methods, rule
from canonize.explain.rule_hooks import SignalTakesAll
from canonize.explain.structure import factors, first_layers
from tests.explain.families import efficientnet, hardened
from tests.explain.heatmaps import difference
from tests.explain.nets import Plain, Residual, Reused, dense, ready

BOX = {"low": -5.0 * torch.ones(1, 3, 1, 1), "high": 5.0 * torch.ones(1, 3, 1, 1)}


def relevance(*arguments: Any, **named: Any) -> Tensor:
    found = attribute(*arguments, **named).relevance
    assert isinstance(found, Tensor)
    return found


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    model, images, targets = ready(Residual, batch=3)
    return model, canonize.canonize(model, images, verify=False), images, targets


@pytest.mark.parametrize("method", methods())
def test_every_method_explains_original_and_canonical_in_batches_alike(
    method: str, small: tuple[nn.Module, nn.Module, Tensor, Tensor]
) -> None:
    more: dict[str, Any] = (
        BOX if "box" in method or method == "lrp-custom" else {"noise": 0.0} if method == "smoothgrad" else {}
    )
    for model in small[:2]:
        together = attribute(model, small[2], small[3], method=method, **more)
        alone = attribute(model, small[2], small[3], method=method, batch_size=1, **more)
        assert isinstance(together.relevance, Tensor) and isinstance(alone.relevance, Tensor)
        assert together.relevance.shape == small[2].shape
        assert together.relevance.isfinite().all() and (together.relevance != 0).any()
        assert difference(alone.relevance, together.relevance) < 1e-9
        assert torch.equal(together.target, small[3]) and torch.equal(alone.target, small[3])
        assert together.output.shape == (3, 5) and not together.output.requires_grad


def test_several_targets_are_what_each_alone_is(small: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    _, canonical, images, _ = small
    wanted = torch.tensor([[0, 1], [2, 3], [4, 0]])
    for method in ("epsilon-plus", "gradient", "integrated-gradients", "smoothgrad"):
        both = relevance(canonical, images, wanted, method=method)
        assert both.shape == (3, 2, *images.shape[1:])
        for k in range(2):
            assert difference(both[:, k], relevance(canonical, images, wanted[:, k], method=method)) < 1e-12


def test_what_a_target_may_be(small: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    _, canonical, images, targets = small
    wanted = relevance(canonical, images, targets)
    assert torch.equal(relevance(canonical, images), wanted), "the decision"
    assert torch.equal(relevance(canonical, images, targets.tolist()), wanted)
    start = torch.zeros(3, 5).scatter_(1, targets[:, None], 1)
    assert torch.equal(relevance(canonical, images, start), wanted)
    found = attribute(canonical, images, targets, initial="output")
    assert isinstance(found.relevance, Tensor)
    scale = found.output.gather(1, targets[:, None])[:, :, None, None]
    assert difference(found.relevance, wanted * scale) < 1e-12
    assert torch.equal(found.heatmap(), found.relevance.sum(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "there is no method 'magic'"),
        ({"method": "epsilon-plus", "gamma": 1.0}, "has no hyperparameter 'gamma'"),
        ({"method": "epsilon-gamma-box"}, "needs low"),
        ({"target": 5}, "there is no class 5"),
        ({"target": -1}, "there is no class -1"),
        ({"target": torch.tensor([[0, 1], [2, 3], [4, -5]])}, "there is no class -5"),
        ({"choices": {"gates": "uniform"}}, "there is no choice 'gates'"),
        ({"choices": "uniform"}, "choices are no str"),
        ({"unruled": "ignore"}, "there is no choice unruled='ignore'"),
        ({"method": "gradient", "ledger": True}, "shares no relevance out"),
        ({"target": [1, 2]}, "do not fit 3 samples"),
        ({"target": torch.zeros(3, 4)}, "does not fit the output"),
        ({"initial": "two"}, "no initial relevance"),
        ({"method": "gradient", "layers": {"0": "flat"}}, "has no rules to choose"),
        ({"layers": {"0": "majestic"}}, "there is no rule 'majestic'"),
        ({"layers": {"0": ("gamma", {"epsilon": 1.0})}}, "has no hyperparameter 'epsilon'"),
        ({"batch_size": 0}, "nothing to explain"),
        ({"output": lambda value: value[:, 0]}, "no classes to choose from"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: dict[str, Any], message: str, small: tuple[nn.Module, nn.Module, Tensor, Tensor]
) -> None:
    with pytest.raises((ExplainError, InputError), match=message):
        attribute(small[1], small[2], **arguments)


def test_inputs_without_floats_and_outputs_without_tensors_are_refused() -> None:
    class Table(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": x.flatten(1)}

    with pytest.raises(InputError, match="no floating input"):
        attribute(Table(), torch.ones(1, 3, dtype=torch.int64))
    with pytest.raises(ExplainError, match="returns a dict"):
        attribute(Table(), torch.ones(1, 3), method="gradient")
    found = attribute(Table(), torch.ones(1, 3), 1, method="gradient", output=lambda value: value["out"])
    assert torch.equal(found.heatmap(-1), torch.ones(1))


def test_the_model_is_left_as_it_was(small: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    model, images, _ = ready(Plain)
    model.train()
    model.get_submodule("1").eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for method in ("epsilon-plus", "deep-lift", "gradient"):
        attribute(model, images, method=method)
        with pytest.raises(ExplainError):
            attribute(model, images, 99, method=method)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_relevance_that_overflows_is_noted() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    found = attribute(layer, torch.ones(1, 2), 0, method="epsilon", epsilon=0.0)
    assert isinstance(found.relevance, Tensor) and not found.relevance.isfinite().all()
    assert "not finite" in found.notes[0]


def test_modules_called_twice_are_noted() -> None:
    model, images, _ = ready(Reused)
    assert "conv" in attribute(model, images).notes[0]
    assert "called more than once" in attribute(model, images, batch_size=1).notes[0]
    assert attribute(canonize.canonize(model, images, verify=False), images, batch_size=1).notes == ()
    with pytest.raises(ExplainError, match="captum's DeepLIFT cannot explain"):
        attribute(model, images, method="deep-lift")


def test_rules_by_name_replace_the_methods(small: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    _, canonical, images, targets = small
    everywhere = relevance(canonical, images, targets, method="epsilon", epsilon=0.1)
    groups = layer_groups(canonical)
    assert [len(members) for members in groups.values()] == [2, 2, 2, 1]
    assert [name for members in groups.values() for name in members] == [
        name
        for name in (str(node.target) for node in canonical.graph.nodes)
        if name in ("0", "7") or "conv" in name or "downsample" in name
    ]
    rules = {tuple(members): ("epsilon", {"epsilon": 0.1}) for members in groups.values()}
    assert difference(relevance(canonical, images, targets, method="epsilon-plus", layers=rules), everywhere) < 1e-12
    same = relevance(canonical, images, targets, layers={"*conv*": "z-plus", "0": rule("z-plus")})
    assert difference(same, relevance(canonical, images, targets)) < 1e-12


def test_a_sum_conserves_relevance_and_its_gradient_doubles_it() -> None:
    model, images, targets = ready(Residual)
    canonical = canonize.canonize(model, images, verify=False)
    options: dict[str, Any] = {"epsilon": 1e-12, "stabilizer": 1e-12, "zero_params": "bias"}
    conserved = relevance(canonical, images, targets, **options).sum((1, 2, 3))
    assert (conserved - 1).abs().max() < 1e-6
    doubled = relevance(canonical, images, targets, choices=Choices(sum="gradient"), **options).sum((1, 2, 3))
    assert (doubled - 4).abs().max() < 1e-2


def test_the_rule_of_thresholds_is_a_choice() -> None:
    model, images, targets = ready(dense)
    canonical = canonize.canonize(model, images, verify=False)
    published = relevance(canonical, images, targets)
    assert torch.equal(relevance(canonical, images, targets, choices=Choices(threshold="gradient")), published)
    assert difference(relevance(canonical, images, targets, choices={"threshold": "pass"}), published) > 0.1
    with pytest.raises(ExplainError, match="no choice threshold='norm'"):
        Choices(threshold="norm")


class Product(nn.Module):
    """``x * sigmoid(y)``, ``sigmoid(y) * x`` or ``x * y``: of equal shapes, only the graph says what a gate is."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.gate, self.spelling = nn.Sigmoid(), spelling

    def forward(self, x: Tensor) -> Tensor:
        signal, gate = self.left(x), self.right(x)
        products = {"signal first": lambda: signal * self.gate(gate), "gate first": lambda: self.gate(gate) * signal}
        output: Tensor = self.head(products.get(self.spelling, lambda: signal * gate)())
        return output


@pytest.mark.parametrize("spelling", ["signal first", "gate first", "neither"])
def test_the_signal_of_a_product_takes_all(spelling: str) -> None:
    torch.manual_seed(0)
    model = Product(spelling).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    canonical = canonize.canonize(model, x)
    assert set(factors(canonical).values()) == {None if spelling == "neither" else 0 if "signal" in spelling else 1}
    options: dict[str, Any] = {"method": "epsilon", "epsilon": 1e-14, "zero_params": "bias"}
    found = relevance(canonical, x, 0, **options)
    with torch.no_grad():
        a, b = model.left(x), model.right(x)
        product = a * (b if spelling == "neither" else b.sigmoid())
        above = product * model.head.weight[0] / (product @ model.head.weight[0])[:, None]
        ways = {name: x * ((above / (x @ layer.weight.T)) @ layer.weight) for name, layer in
                (("left", model.left), ("right", model.right))}  # fmt: skip
    wanted = (ways["left"] + ways["right"]) / 2 if spelling == "neither" else ways["left"]
    assert difference(found, wanted) < 1e-8
    halved = relevance(canonical, x, 0, choices=Choices(gate="uniform"), **options)
    assert (difference(halved, wanted) < 1e-8) is (spelling == "neither")


def test_gates_of_an_efficientnet_know_their_signal_where_nothing_is_broadcast() -> None:
    """On 4x4 pixels the last maps have one pixel: signal and gate are of one shape."""
    model, images = hardened(efficientnet, 4, 1)
    canonical = canonize.canonize(model, images, verify=False)
    told = factors(canonical)
    assert sorted(told.values()) == [0, 1, 1, 1], "three gates come first where they are multiplied"
    hooks = composite("epsilon-plus")
    context: dict[str, Any] = {}
    gates = [hooks.mapping(context, name, module) for name, module in canonical.named_modules() if name in ("", *told)]
    assert [type(hook) for hook in gates[1:]] == [SignalTakesAll] * 4


def test_first_layers_are_read_off_the_graph() -> None:
    class Late(nn.Module):
        """Registers its layers in the wrong order, and has two first ones."""

        def __init__(self) -> None:
            super().__init__()
            self.head, self.last = nn.Linear(8, 5), nn.Conv2d(8, 8, 3)
            self.first, self.also_first = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x)) * torch.relu(self.also_first(x)).mean((2, 3), keepdim=True)
            output: Tensor = self.head(torch.relu(self.last(x)).mean((2, 3)))
            return output

    model = Late().double().eval()
    images = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    assert first_layers(canonize.canonize(model, images)) == ["first", "also_first"]
    assert first_layers(model) == ["head"]
