"""The library call: what goes in, what comes out, what the report says."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import canonize
from canonize.patterns import catalogue
from canonize.report import Report
from tests import checks
from tests.statistics import harden
from tests.zoo.case import conv, norm, wired

IMAGES = torch.randn(2, 3, 8, 8)


class Small(nn.Module):
    """A bit of everything: folded in front, folded behind, an explicit layer, a dropout, an untouched layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 6, padding=1), norm(6), nn.ReLU(inplace=True))
        self.pre = norm(6)
        self.conv = conv(6, 4, padding=1)
        self.drop = nn.Dropout(0.3)
        self.untouched = conv(3, 4, padding=1)
        self.post = norm(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.relu(self.pre(self.stem(x))))
        return self.post(self.drop(torch.tanh(y)) + torch.sigmoid(self.untouched(x)))


def _small() -> Small:
    torch.manual_seed(0)
    return harden(Small()).eval()


# --------------------------------------------------------------------------------------------- the report


def test_the_report_accounts_for_every_affine() -> None:
    report = canonize.canonize(_small(), IMAGES).report
    assert isinstance(report, Report)
    fates = {fate.name: fate for fate in report.affines}
    assert [fate.name for fate in report.affines] == ["stem.1", "pre", "post"]
    assert {fate.kind for fate in report.affines} == {"BatchNorm2d"}
    assert (fates["stem.1"].outcome, fates["stem.1"].pattern, fates["stem.1"].into) == (
        "absorbed", "linear_bn", ("stem.0",),
    )  # fmt: skip
    assert (fates["pre"].outcome, fates["pre"].pattern, fates["pre"].into) == (
        "absorbed", "bn_activation_linear", ("conv",),
    )  # fmt: skip
    assert (fates["post"].outcome, fates["post"].pattern, fates["post"].into) == (
        "last resort", "last_resort", ("post",),
    )  # fmt: skip
    assert fates["stem.1"].reason == fates["pre"].reason == ""
    assert "linear_bn" in fates["post"].reason
    assert (report.count("absorbed"), report.count("last resort"), report.count("left")) == (2, 1, 0)
    assert report.canonical


def test_the_report_says_what_was_done_with_what() -> None:
    report = canonize.canonize(_small(), IMAGES).report
    assert (report.model, report.strategy, report.captured_by) == ("Small", "threshold", "symbolic_trace")
    assert "3" in report.inputs
    assert "8" in report.inputs
    assert set(report.versions) == {"canonize", "torch", "python"}
    assert report.versions["torch"] == torch.__version__
    assert [(rewrite.pattern, rewrite.anchor, rewrite.into) for rewrite in report.rewrites] == [
        ("linear_bn", "stem.1", ("stem.0",)),
        ("bn_activation_linear", "pre", ("conv",)),
        ("last_resort", "post", ("post",)),
    ]
    assert report.rewrites[1].detail == "through activation"
    assert {refusal.anchor for refusal in report.refusals} == {"post"}
    assert report.verdict is not None
    assert report.verdict.passed
    assert bool(report.verdict)
    assert {check.precision for check in report.verdict.checks} >= {"float64", "float32"}


def test_the_name_map() -> None:
    canonical = canonize.canonize(_small(), IMAGES)
    assert canonical.report.names == {
        "stem.0": "stem.0", "stem.1": None, "stem.2": "stem.2", "pre": None, "conv": "conv", "drop": None,
        "untouched": "untouched", "post": "post",
    }  # fmt: skip
    for new in canonical.report.names.values():
        if new is not None:
            canonical.get_submodule(new)


def test_the_report_is_json() -> None:
    report = canonize.canonize(_small(), IMAGES).report
    data = json.loads(report.to_json())
    assert data["canonical"] is True
    assert data["affines"][0]["into"] == ["stem.0"]
    assert data["verdict"]["passed"] is True
    assert data["names"]["stem.1"] is None
    assert data == json.loads(json.dumps(report.to_dict()))
    assert "stem.1" in str(report)


# --------------------------------------------------------------------------------------------- the result


def test_what_comes_out_is_a_graph_module_in_eval_mode() -> None:
    canonical = canonize.canonize(_small(), IMAGES)
    assert isinstance(canonical, fx.GraphModule)
    assert not any(module.training for module in canonical.modules())
    canonical.graph.lint()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_never_changed(training: bool) -> None:
    model = _small().train(training)
    before = checks.snapshot(model)
    canonical = canonize.canonize(model, IMAGES)
    checks.assert_untouched(model, before)
    # Nor by what is done to the result; casts write into parameters, so they need a copy.
    canonical(IMAGES)
    canonical.train()
    canonize.canonize(model, IMAGES, copy=True, verify=False).double()
    for layer in canonical.modules():
        layer.register_forward_hook(lambda *_: None)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not any(layer._forward_hooks for layer in model.modules())
    assert {module.training for module in model.modules()} == {training}


def test_a_model_in_training_mode_is_canonized_as_in_eval_mode() -> None:
    model = _small()
    wanted = model(IMAGES)
    canonical = canonize.canonize(model.train(), IMAGES)
    torch.testing.assert_close(canonical(IMAGES), wanted, rtol=1e-4, atol=1e-5)


def test_untouched_parameters_are_shared_unless_a_copy_is_asked_for() -> None:
    model = _small()
    shared = canonize.canonize(model, IMAGES, verify=False)
    assert shared.untouched.weight is model.untouched.weight
    assert shared.stem.get_submodule("0").weight is not model.stem[0].weight
    detached = canonize.canonize(model, IMAGES, copy=True, verify=False)
    theirs = {tensor.data_ptr() for tensor in (*detached.parameters(), *detached.buffers())}
    ours = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert not theirs & ours
    assert torch.equal(detached.untouched.weight, model.untouched.weight)
    assert isinstance(detached.untouched.weight, nn.Parameter)
    assert torch.equal(detached(IMAGES), shared(IMAGES))


@pytest.mark.parametrize("trained", [True, False])
def test_parameters_ask_for_gradients_as_the_models_did(trained: bool) -> None:
    model = _small().requires_grad_(trained)
    for copied in (True, False):
        canonical = canonize.canonize(model, IMAGES, copy=copied, verify=False)
        for name in ("stem.0", "conv", "untouched"):
            assert {p.requires_grad for p in canonical.get_submodule(name).parameters()} == {trained}


@pytest.mark.parametrize("again", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))], ids=["deepcopy", "pickle"])
def test_copies_keep_the_report(again: Any) -> None:
    canonical = canonize.canonize(_small(), IMAGES)
    twin = again(canonical)
    assert twin.report.to_dict() == canonical.report.to_dict()
    assert torch.equal(twin(IMAGES), canonical(IMAGES))
    twin_names = [name for name, _ in twin.named_modules()]
    assert twin_names == [name for name, _ in canonical.named_modules()]


def test_canonizing_twice_changes_nothing() -> None:
    model = harden(nn.Sequential(conv(3, 4), norm(4), nn.ReLU(), norm(4), nn.ReLU(), conv(4, 2))).eval()
    canonical = canonize.canonize(model, IMAGES)
    again = canonize.canonize(canonical, IMAGES)
    assert again.report.affines == []
    assert again.report.rewrites == []
    assert [name for name, _ in again.named_modules()] == [name for name, _ in canonical.named_modules()]
    assert torch.equal(again(IMAGES), canonical(IMAGES))


def test_batch_and_image_size_stay_free() -> None:
    model = _small()
    canonical = canonize.canonize(model, IMAGES)
    for shape in ((1, 3, 8, 8), (5, 3, 11, 6)):
        images = torch.randn(shape)
        torch.testing.assert_close(canonical(images), model(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_models_precision_is_kept(dtype: torch.dtype) -> None:
    canonical = canonize.canonize(_small().to(dtype), IMAGES.to(dtype), verify=dtype == torch.float64)
    assert {p.dtype for p in (*canonical.parameters(), *canonical.buffers())} == {dtype}
    assert canonical(IMAGES.to(dtype)).dtype == dtype


def test_random_numbers_of_others_are_left_alone() -> None:
    model, state = _small(), torch.get_rng_state()
    canonize.canonize(model, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("name", [pattern.name for pattern in catalogue()])
def test_a_skipped_pattern_is_not_used(name: str) -> None:
    model = harden(nn.Sequential(norm(3), conv(3, 4), norm(4), nn.ReLU(), norm(4), nn.ReLU(), conv(4, 2, 1))).eval()
    canonical = canonize.canonize(model, IMAGES, skip=[name])
    assert name not in {rewrite.pattern for rewrite in canonical.report.rewrites}
    assert name not in {fate.pattern for fate in canonical.report.affines}


def test_strategies() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        return m.last(torch.relu(m.norm(y))) + m.other(y)

    model = harden(wired(forward, conv=conv(3, 4), norm=norm(4), last=conv(4, 2), other=conv(4, 2))).eval()
    threshold = canonize.canonize(model, IMAGES)
    untangled = canonize.canonize(model, IMAGES, strategy="untangle")
    assert (threshold.report.strategy, untangled.report.strategy) == ("threshold", "untangle")
    assert [fate.pattern for fate in threshold.report.affines] == ["bn_activation_linear"]
    assert [fate.pattern for fate in untangled.report.affines] == ["untangle"]


def test_an_unknown_strategy() -> None:
    with pytest.raises(canonize.CanonizeError, match=r"no strategy 'thresholds'\. Choose 'threshold' or 'untangle'"):
        canonize.canonize(_small(), IMAGES, strategy="thresholds")  # type: ignore[arg-type]


def test_an_unknown_pattern_to_skip() -> None:
    with pytest.raises(canonize.CanonizeError, match=r"no pattern 'bn_fold' to skip\. Patterns: .*linear_bn") as caught:
        canonize.canonize(_small(), IMAGES, skip=["linear_bn", "bn_fold"])
    assert all(pattern.name in str(caught.value) for pattern in catalogue())


@pytest.mark.parametrize("model", ["model.pt", None, {"a": 1}, nn.Module], ids=str)
def test_what_is_no_module(model: Any) -> None:
    with pytest.raises(canonize.CanonizeError, match=r"needs an nn\.Module, not .*canonize\.load"):
        canonize.canonize(model, IMAGES)


def test_progress_is_told_from_start_to_end() -> None:
    told: list[tuple[str, int, int]] = []
    canonize.canonize(_small(), IMAGES, progress=lambda *step: told.append(step))
    stages = [stage for stage, _, _ in told]
    assert stages == sorted(stages, key=["capture", "rewrite", "verify"].index)
    assert set(stages) == {"capture", "rewrite", "verify"}
    assert all(0 <= done <= total for _, done, total in told)
    assert told[0] == ("capture", 0, 1)
    assert ("capture", 1, 1) in told
    assert told[-1][0] == "verify" and told[-1][1] == told[-1][2]
    rewritten = [done for stage, done, _ in told if stage == "rewrite"]
    assert rewritten == sorted(rewritten)


def test_an_error_in_progress_is_the_callers() -> None:
    """Nothing may swallow a keyboard interrupt in the middle of a long run."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        canonize.canonize(_small(), IMAGES, progress=stop)


def test_without_example_inputs_the_shape_is_inferred() -> None:
    model = harden(nn.Sequential(nn.Linear(5, 4), norm(4, 1), nn.ReLU())).eval()
    canonical = canonize.canonize(model)
    images = torch.randn(3, 5)
    torch.testing.assert_close(canonical(images), model(images), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------- verification


def test_verify_false_proves_nothing_and_says_nothing() -> None:
    assert canonize.canonize(_small(), IMAGES, verify=False).report.verdict is None


def test_a_slip_is_caught_and_nothing_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no test has thought of, the proof on the user's own model catches."""
    from canonize.algebra.weights import PendingWeights

    original = PendingWeights.absorb_output

    def slip(self: PendingWeights, scale: Tensor, shift: Tensor) -> None:
        original(self, scale, shift * 1.001)

    monkeypatch.setattr(PendingWeights, "absorb_output", slip)
    model = harden(nn.Sequential(conv(3, 4), norm(4), nn.ReLU())).eval()
    before = checks.snapshot(model)
    with pytest.raises(canonize.NotEquivalentError) as caught:
        canonize.canonize(model, IMAGES)
    assert caught.value.verdict is not None
    assert not caught.value.verdict.passed
    assert "report this model" in str(caught.value)
    checks.assert_untouched(model, before)


def test_inspect_rewrites_nothing() -> None:
    model = _small()
    before = checks.snapshot(model)
    report = canonize.inspect(model, IMAGES)
    checks.assert_untouched(model, before)
    assert report.affines == []
    assert report.rewrites == []
    assert {finding.where for finding in report.findings if finding.rule == "C1"} == {"stem.1", "pre", "post"}
