"""What the equivalence check must leave alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canonize.twins.twin import eval_twin, float64_twin
from canonize.verify import assert_equivalent, check_equivalence
from tests.verify.nets import X, fold, make


class Restless(nn.Module):
    """Everything that a careless check would disturb."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.utils.weight_norm(nn.Linear(4, 4))
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.table = {"scale": [torch.rand(4)]}
        self.derived = self.norm.weight * 2
        self.tied = self.norm.bias

    def train(self, mode: bool = True) -> Restless:
        with torch.no_grad():
            self.norm.weight.add_(1)  # some adapters merge weights here
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x.mul_(2)
        torch.rand(1)
        return self.norm(self.linear(x)) * self.table["scale"][0] + self.derived + self.tied


def test_nothing_is_disturbed() -> None:
    model = Restless()
    model.linear.training = False
    seen: list[int] = []
    model.register_forward_hook(lambda m, a, y: y + 1)
    model.register_full_backward_hook(lambda m, a, b: seen.append(1))
    x = torch.randn(2, 4)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    versions = [p._version for p in (*model.parameters(), *model.buffers())]
    flags = [m.training for m in model.modules()]
    grads = [p.grad for p in model.parameters()]
    hooks = len(model._forward_hooks), len(model._backward_hooks)
    tokens = torch.get_rng_state(), random.getstate(), x.clone(), set(model.__dict__), torch.is_grad_enabled()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.get_default_dtype()
    verdict = check_equivalence(model, model, x)
    assert verdict.passed, verdict
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert versions == [p._version for p in (*model.parameters(), *model.buffers())]
    assert flags == [m.training for m in model.modules()]
    assert grads == [p.grad for p in model.parameters()]
    assert hooks == (len(model._forward_hooks), len(model._backward_hooks))
    assert not seen
    assert torch.equal(tokens[0], torch.get_rng_state())
    assert tokens[1] == random.getstate()
    assert torch.equal(tokens[2], x)
    assert tokens[3:] == (set(model.__dict__), torch.is_grad_enabled())
    assert tf32 == (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.get_default_dtype(),
    )


def test_a_forward_hook_is_part_of_the_function() -> None:
    hooked = make()
    hooked.conv1.register_forward_hook(lambda m, a, y: y * 1.01)
    assert not check_equivalence(hooked, make(), X)
    assert check_equivalence(hooked, hooked, X)
    graph = torch.fx.symbolic_trace(make())
    graph.register_forward_hook(lambda m, a, y: y * 1.01)
    assert not check_equivalence(graph, make(), X)


def test_a_model_in_train_mode_is_compared_in_eval_mode() -> None:
    model = make().train()
    assert_equivalent(model, fold(make()), X)
    assert model.training


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_inside_no_grad(context: Callable[[], Any]) -> None:
    with context():
        verdict = check_equivalence(make(), make(), torch.randn(2, 3, 8, 8))
    assert verdict.passed
    assert any(check.quantity == "input gradient" for check in verdict.checks)


def test_twins_keep_ties_and_share_what_they_may() -> None:
    model = Restless()
    own, wide = eval_twin(model), float64_twin(model)
    assert own.norm.weight is model.norm.weight
    assert wide.tied is wide.norm.bias
    assert wide.tied.dtype == torch.float64
    assert wide.table["scale"][0].dtype == torch.float64
    assert wide.calls.dtype == torch.long
    assert not own.training
    assert not wide.linear.training
    assert model.training
