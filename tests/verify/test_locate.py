"""Where two models part: the right layer, in modules, exported programs and sessions; by halves; and on disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

import canonize
from canonize.graph.network import Network
from canonize.patterns.linear_bn import LinearThenBatchNorm
from canonize.twins.twin import float64_twin
from canonize.verify import check_equivalence
from canonize.verify.onnx_model import OnnxModel
from canonize.verify.where.locate import Reference, Side, compare_layers
from tests.verify.nets import FAULTS, X, make


class Branches(nn.Module):
    """Two branches, of which the second is not concerned by a fault in the first, and runs later."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y = torch.cat([self.act(self.left(x)), self.act(self.right(x))], 1)
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("name", ["stem", "left", "right", "head"])
def test_a_parallel_branch_that_agrees_excuses_nothing(name: str) -> None:
    faulty = Branches()
    with torch.no_grad():
        faulty.get_submodule(name).bias[1] += 1e-3  # type: ignore[index,operator]
    found = check_equivalence(Branches(), faulty, X).divergence
    assert found is not None
    assert (found.layer, found.rewrite, found.passes) == (name, "", 1)
    assert found.error > found.tolerance > 0


def test_a_module_called_several_times_is_named_with_its_call() -> None:
    class Second(nn.ReLU):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls % 3 + 1
            return super().forward(x) * (1.01 if self.calls == 2 else 1)

    faulty = Branches()
    faulty.act = Second()
    found = check_equivalence(Branches(), faulty, X).divergence
    assert found is not None
    assert (found.layer, found.call, found.reads) == ("act", 1, ("left",))


def test_folded_layers_in_front_of_the_fault_are_excused() -> None:
    faulty = fuse(make())
    with torch.no_grad():
        faulty.conv2.bias[3] += 1e-3
    found = check_equivalence(make(), faulty, X).divergence
    assert found is not None
    assert found.layer == "conv2"


def test_a_fault_in_a_canonical_model_is_named_with_the_rewrite_that_made_the_layer() -> None:
    canonical = canonize.canonize(make(), X, copy=True)
    with torch.no_grad():
        canonical.get_submodule("conv1").weight[0, 0, 0, 0] += 1e-3  # type: ignore[index,operator]
    verdict = check_equivalence(make(), canonical, X)
    assert verdict.divergence is not None
    assert verdict.divergence.layer == "conv1"
    assert verdict.divergence.rewrite == "made by linear_bn (bn)"
    assert verdict.divergence.reference == "the reference's canonical form"
    assert "first layer that differs: conv1 (Conv2d), by" in str(verdict)


def test_a_rewrite_that_goes_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.conv2, self.bn2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
            for bn in (self.bn1, self.bn2):
                bn.running_mean.normal_()

        def forward(self, x: Tensor) -> Tensor:
            return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))

    model = Two().eval()
    rewrite = LinearThenBatchNorm.rewrite

    def slipping(self: LinearThenBatchNorm, network: Network, plan: Any) -> Any:
        result = rewrite(self, network, plan)
        for name in plan.into:
            if name == "conv2":
                node = next(n for n in network.graph.nodes if n.target == name)
                network.weights(node).bias = network.weights(node).bias * 1.001  # type: ignore[operator]
        return result

    monkeypatch.setattr(LinearThenBatchNorm, "rewrite", slipping)
    with pytest.raises(canonize.NotEquivalentError) as caught:
        canonize.canonize(model, X)
    found = caught.value.verdict.divergence  # type: ignore[attr-defined]
    assert found.rewrite.startswith("the rewrite that went wrong: linear_bn (bn2), number ")


def test_without_the_memory_for_all_activations_the_search_halves_its_way() -> None:
    def deep() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(16, 16) for _ in range(33)))

    faulty = deep()
    with torch.no_grad():
        faulty[20].weight[3, 4] += 1e-3
    fed = canonize.inputs.normalise(torch.randn(2, 16, dtype=torch.float64))
    sides = [Side(float64_twin(model), torch.float64) for model in (deep(), faulty)]
    reference = Reference("the reference", sides[0], None, 1e-11)
    for budget, passes in ((2**20, 1), (4 * 2 * 16 * 8, 4)):
        found = compare_layers(reference, sides[1], fed, budget)
        number = found.first_divergent()
        assert number is not None
        assert found.layers[number].name == "20"
        assert (found.passes == 1) == (passes == 1)
        assert found.passes <= passes


def test_the_layer_that_raises_is_named() -> None:
    faulty = Branches()
    faulty.right = nn.Conv2d(5, 4, 1)
    found = check_equivalence(Branches(), faulty, X).divergence
    assert found is not None
    assert (found.layer, found.kind) == ("right", "Conv2d")


def test_dumped_activations_are_those_of_the_layer(tmp_path: Path) -> None:
    check_equivalence(make(), FAULTS["one bias"](), X, dump=tmp_path / "dump")
    (fed,) = torch.load(tmp_path / "dump" / "inputs.pt")
    reference, candidate = (torch.load(tmp_path / "dump" / f"{name}.pt") for name in ("reference", "candidate"))
    assert fed.dtype == torch.float64
    expected = torch.zeros_like(reference)
    expected[:, 3] = 1e-3
    assert torch.allclose(candidate - reference, expected, atol=1e-7)
    check_equivalence(make(), make(), X, dump=tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def _exported(model: nn.Module, path: Path) -> nn.Module:
    torch.export.save(torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("batch")},)), path)
    return torch.export.load(path).module()


def _session(model: nn.Module, path: Path) -> nn.Module:
    program = torch.onnx.export(model, (X,), dynamo=True, verbose=False, dynamic_shapes=({0: "batch"},))
    assert program is not None
    program.save(str(path), external_data=False)
    return OnnxModel(path)


@pytest.mark.parametrize(("form", "ending"), [(_exported, "pt2"), (_session, "onnx")])
def test_layers_of_files_for_runtimes_are_named(form: Any, ending: str, tmp_path: Path) -> None:
    faulty = FAULTS["one bias"]()
    verdict = check_equivalence(make(), form(faulty, tmp_path / f"faulty.{ending}"), X)
    assert not verdict.passed
    assert verdict.divergence is not None
    assert verdict.divergence.layer == "conv2"
    sound = check_equivalence(make(), form(make(), tmp_path / f"sound.{ending}"), X)
    assert sound.passed, sound
    assert any("size 12x12' was not compared: the candidate refuses it" in note for note in sound.notes)
    if ending == "onnx":
        assert {check.precision for check in sound.checks} == {"float32"}
        assert check_equivalence(OnnxModel(tmp_path / "sound.onnx"), make(), X).passed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_whatever_tf32_is() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        verdict = check_equivalence(make().cuda(), canonize.canonize(make().cuda(), X.cuda()), X.cuda())
        assert verdict.passed, verdict
        assert verdict.environment["device"].startswith("cuda")
        assert verdict.environment["TF32 while verifying"] == "on"
        assert torch.backends.cudnn.allow_tf32
        found = check_equivalence(make().cuda(), FAULTS["one bias"]().cuda(), X.cuda()).divergence
        assert found is not None
        assert found.layer == "conv2"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def test_a_model_that_hides_its_layers_still_gets_a_verdict() -> None:
    traced = torch.jit.trace(FAULTS["one bias"](), X)
    verdict = check_equivalence(make(), traced, X)
    assert not verdict.passed
    assert verdict.divergence is not None
    assert verdict.divergence.layer in ("", "conv2")


def test_hooks_do_not_stay_behind() -> None:
    model = fx.symbolic_trace(make())
    faulty = copy.deepcopy(model)
    with torch.no_grad():
        faulty.get_submodule("conv2").bias[0] += 1  # type: ignore[index,operator]
    check_equivalence(model, faulty, X)
    assert not any(module._forward_hooks for m in (model, faulty) for module in m.modules())
