"""Two tracers, one result; what neither may drop; and sizes that a graph was not captured for."""

from __future__ import annotations

import threading
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import canonize
from canonize.api import _finish
from canonize.capture import capture, eval_copy, is_leaf
from canonize.compat import import_torchvision
from canonize.errors import CaptureError
from canonize.inputs import normalise
from canonize.pipeline import Options, rewritten
from tests import checks, models
from tests.statistics import calibrate, harden
from tests.zoo.case import Case, conv, image, norm, wired

TRACERS = ("symbolic_trace", "torch.export")


def _canonized_by(tracer: str, model: nn.Module, inputs: Any) -> fx.GraphModule:
    example = normalise(checks.draw(inputs, 2))
    network, report = rewritten(model, example, tracer, Options())
    assert report.captured_by == tracer
    return _finish(network.build(), report, copy=False, inputs=example)


# ------------------------------------------------------------------------------------------- the same result

SAME = (
    "fold-conv-2d", "fold-transposed-grouped-2d", "fold-linear", "fold-two-norms-in-a-row", "fold-affine-false",
    "linear-transposed-onto-the-axis", "dict-output", "tuple-output", "two-inputs", "same-norm-on-two-inputs",
    "keyword-arguments", "list-as-input", "sequential-in-sequential", "idle-operations", "modules-by-number",
)  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_both_tracers_lead_to_the_same_model(name: str) -> None:
    """The same layers by type in the same order, the same fates, and the same function."""
    case: Case = models.BY_NAME[name]
    model = case.model(torch.float64)
    one, other = (_canonized_by(tracer, model, case.inputs) for tracer in TRACERS)
    for canonical in (one, other):
        checks.assert_same_function(model, canonical, case.inputs, tolerance=1e-10)
        assert checks.count_batch_norms(canonical, checks.draw(case.inputs, 2)) == case.batch_norms
    assert _kinds(one) == _kinds(other)
    fates = [[(fate.outcome, fate.pattern) for fate in canonical.report.affines] for canonical in (one, other)]
    assert fates[0] == fates[1]


REAL = ("test_resnet", "test_byobnet", "test_efficientnet", "test_convnext", "test_nfnet", "test_mambaout")


@pytest.mark.parametrize("name", REAL)
def test_both_tracers_lead_to_the_same_model_of_a_real_family(name: str) -> None:
    """The smallest of timm: ResNet, RepVGG-like, EfficientNet, ConvNeXt, normaliser-free, MambaOut."""
    model = harden(import_torchvision("timm").create_model(name).double().eval(), 1)
    inputs = image(3, 64, 64)
    calibrate(model, *checks.draw(inputs, 2))
    one, other = (_canonized_by(tracer, model, inputs) for tracer in TRACERS)
    for canonical in (one, other):
        checks.assert_same_function(model, canonical, inputs, tolerance=1e-10)
    assert _kinds(one) == _kinds(other)
    fates = [[(fate.outcome, fate.pattern) for fate in canonical.report.affines] for canonical in (one, other)]
    assert fates[0] == fates[1]


def _kinds(canonical: fx.GraphModule) -> list[str]:
    """What is called, in execution order; torch.export spells bounded rectifiers and rearrangements in its own way."""
    layers = [canonical.get_submodule(str(n.target)) for n in canonical.graph.nodes if n.op == "call_module"]
    return [type(layer).__name__ for layer in layers if not hasattr(layer, "target")]


def test_inputs_and_outputs_keep_their_structure() -> None:
    """Dictionaries, lists, keyword arguments and numbers go in and come out as in the model, whichever the tracer."""

    def forward(m: Any, batch: dict[str, Tensor], *, scale: float = 1.0) -> Any:
        y = m.bn(m.conv(batch["image"])) * scale
        return {"out": [y.relu(), y], "more": (batch["more"].tanh(),)}

    model = harden(wired(forward, conv=conv(3, 4), bn=norm(4))).double().eval()

    def inputs(batch: int) -> Any:
        return ({"image": torch.randn(batch, 3, 5, 7), "more": torch.randn(batch, 2)},), {"scale": 0.5}

    for tracer in TRACERS:
        canonical = _canonized_by(tracer, model, inputs)
        checks.assert_same_function(model, canonical, inputs)


def test_the_eval_copy_shares_tensors_and_nothing_else() -> None:
    model = nn.Sequential(conv(3, 4), norm(4), nn.Dropout()).train()
    before = checks.snapshot(model)
    copy = eval_copy(model)
    assert not any(module.training for module in copy.modules())
    assert all(a is b for a, b in zip(copy.parameters(), model.parameters(), strict=True))
    assert all(a is b for a, b in zip(copy.buffers(), model.buffers(), strict=True))
    assert not set(copy.modules()) & set(model.modules())
    checks.assert_untouched(model, before)
    assert model.training


@pytest.mark.parametrize("tracer", TRACERS)
def test_capturing_leaves_the_model_alone(tracer: str) -> None:
    model = harden(nn.Sequential(conv(3, 4), norm(4), nn.Dropout(inplace=True), nn.ReLU(inplace=True))).train()
    nn.utils.parametrizations.weight_norm(model[0])
    before = checks.snapshot(model)
    captured = capture(model, normalise(torch.randn(2, 3, 5, 7)), tracer)
    assert captured.tracer == tracer
    checks.assert_untouched(model, before)


class Scaled(nn.Conv2d):
    """A subclass that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2.0


class Renamed(nn.Conv2d):
    """A subclass that only has another name."""


class Helped(nn.Conv2d):
    """A subclass whose inherited forward calls what it overrides."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight * 2.0, bias)


def test_leaves_are_layers_that_compute_what_their_class_does() -> None:
    assert is_leaf(nn.Conv2d(3, 4, 3))
    assert is_leaf(Renamed(3, 4, 3))
    assert is_leaf(nn.ReLU())
    assert not is_leaf(Scaled(3, 4, 3))
    assert not is_leaf(Helped(3, 4, 3))
    assert not is_leaf(nn.Sequential())
    assert not is_leaf(wired(lambda m, x: x))
    patched = nn.ReLU()
    patched.forward = lambda x: x  # type: ignore[method-assign]
    assert not is_leaf(patched)


@pytest.mark.parametrize("layer", [Scaled, Renamed, Helped])
def test_subclassed_layers_are_exact(layer: type[nn.Conv2d]) -> None:
    model = harden(nn.Sequential(layer(3, 4, 3), norm(4), nn.ReLU())).double().eval()
    checks.assert_canonized(model, image(3), verify=False)


# ------------------------------------------------------------------------------------------------- refusals

HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


@pytest.mark.parametrize("register", HOOKS)
def test_hooks_are_refused_by_the_name_of_their_layer(register: str) -> None:
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(conv(3, 4), norm(4)))

    def mine(*_: Any) -> None:
        return None

    handle = getattr(model.features[1], register)(mine)
    images = torch.zeros(1, 3, 5, 7)
    with pytest.raises(canonize.CaptureError) as caught:
        canonize.canonize(model, images)
    assert caught.value.where == "features.1"
    assert "mine" in str(caught.value)
    assert "remove" in str(caught.value).lower()
    handle.remove()
    assert count_of_affines(canonize.canonize(model, images, verify=False)) == 1


def count_of_affines(canonical: fx.GraphModule) -> int:
    """How many affines the report accounts for."""
    return len(canonical.report.affines)


def test_hooks_that_only_compute_a_weight_are_no_obstacle() -> None:
    """The older weight and spectral norms are forward pre-hooks; they are evaluated."""
    model = nn.Sequential(nn.utils.weight_norm(conv(3, 4)), norm(4), nn.utils.spectral_norm(conv(4, 2))).double().eval()
    checks.assert_canonized(harden(model), image(3, 7, 9), verify=False)


def test_control_flow_on_values_is_refused_with_the_place() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        if x.sum() > 0:
            return m.conv(x)
        return -m.conv(x)

    model = wired(forward, conv=conv(3, 4)).eval()
    with pytest.raises(canonize.CaptureError) as caught:
        canonize.canonize(model, torch.randn(2, 3, 5, 7))
    message = str(caught.value)
    assert "values" in message
    assert "test_capture.py" in message, "the line of the user's code is named"


def test_inputs_that_the_model_cannot_take_are_refused() -> None:
    with pytest.raises(canonize.CanonizeError):
        canonize.canonize(nn.Sequential(conv(3, 4), norm(4)), torch.randn(2, 5, 8, 8))


# ----------------------------------------------------------------------------------------------- sizes


def _if_wide(m: Any, x: Tensor) -> Any:
    if x.shape[-1] > 6:
        x = F.max_pool2d(x, (1, 2))
    return m.bn(m.conv(x)).relu()


def _loop_over_rows(m: Any, x: Tensor) -> Any:
    y = m.bn(m.conv(x))
    total = y[:, :, 0]
    for row in range(1, y.shape[2]):
        total = total + y[:, :, row] * float(row)
    return total.relu()


def _size_as_a_number(m: Any, x: Tensor) -> Any:
    return m.bn(m.conv(x)).relu() / int(x.shape[2])


CONTROL: dict[str, Callable[[Any, Tensor], Any]] = {
    "if": _if_wide,
    "loop": _loop_over_rows,
    "number": _size_as_a_number,
}
OTHER_SIZES = ((5, 7), (5, 6), (5, 5), (6, 7), (9, 4), (3, 12))


@pytest.mark.parametrize(
    ("name", "tracer"), [*((name, TRACERS[0]) for name in CONTROL), ("loop", TRACERS[1]), ("number", TRACERS[1])]
)
def test_control_flow_on_sizes_is_right_or_refused(name: str, tracer: str) -> None:
    """For every other image size: the same result, or an error; never something else."""
    model = harden(wired(CONTROL[name], conv=conv(3, 4), bn=norm(4))).double().eval()
    canonical = _canonized_by(tracer, model, image(3, 5, 7))
    accepted = [size for size in OTHER_SIZES if _right_or_refused(model, canonical, 2, size)]
    assert (5, 7) in accepted
    if tracer == "symbolic_trace" and name != "number":  # int() of a size follows the size
        assert accepted != list(OTHER_SIZES), "this model's code depends on the size"


def _right_or_refused(model: nn.Module, canonical: fx.GraphModule, batch: int, size: tuple[int, int]) -> bool:
    """Whether the canonical model takes this size; what it then computes must be what the model computes."""
    images = torch.randn(batch, 3, *size, dtype=torch.float64)
    try:
        outputs = canonical(images)
    except (AssertionError, RuntimeError):
        return False
    torch.testing.assert_close(outputs, model(images), rtol=1e-10, atol=1e-10)
    return True


@pytest.mark.parametrize(
    ("forward", "condition"),
    [
        (lambda m, x: F.conv2d(x, m.conv.weight, stride=1 + (x.shape[2] > 8)), "1 + (x.shape[2] > 8) is 1"),
        (lambda m, x: m.conv(x) + F.avg_pool2d(x, x.shape[2:]), "x.shape[2:] is (6, 5)"),
        (
            lambda m, x: m.conv(x) if (x.size(2) - 1) * 2 < x.size(3) * 3 else x,
            "((x.size(2) - 1) * 2) < (x.size(3) * 3)",
        ),
    ],
)
def test_conditions_are_told_as_one_would_write_them(
    forward: Callable[[nn.Module, torch.Tensor], torch.Tensor], condition: str
) -> None:
    model = wired(forward, conv=conv(3, 3)).double().eval()
    (note,) = canonize.canonize(model, torch.randn(2, 3, 6, 5, dtype=torch.float64)).report.notes
    assert f"this canonical model holds where {condition} (test_capture.py:" in note


def test_the_refusal_says_what_to_do_and_the_report_knows_of_it() -> None:
    model = harden(wired(_if_wide, conv=conv(3, 4), bn=norm(4))).double().eval()
    canonical = canonize.canonize(model, torch.randn(2, 3, 5, 7, dtype=torch.float64))
    assert canonical.report.captured_by == "symbolic_trace"
    (note,) = canonical.report.notes
    assert "this canonical model holds where" in note
    with pytest.raises(AssertionError, match=r"captured for other sizes.*Canonize again"):
        canonical(torch.randn(2, 3, 5, 6, dtype=torch.float64))
    # The other branch, captured for its own sizes.
    small = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(canonize.canonize(model, small)(small), model(small))


def test_code_that_only_asks_stays_free() -> None:
    """Assertions and sizes that are computed with, not decided on, need no guard."""

    def forward(m: Any, x: Tensor) -> Any:
        assert x.dim() == 4
        batch, _, height, width = x.shape
        y = F.interpolate(m.bn(m.conv(x)), size=(2 * height, width))
        return y.flatten(2).reshape(batch, 4, -1) / height

    model = harden(wired(forward, conv=conv(3, 4), bn=norm(4))).double().eval()
    canonical = canonize.canonize(model, torch.randn(2, 3, 5, 7, dtype=torch.float64))
    assert canonical.report.notes == []
    for size in OTHER_SIZES:
        images = torch.randn(3, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(canonical(images), model(images), rtol=1e-10, atol=1e-10)


def test_control_flow_on_the_batch_size_is_never_frozen() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.bn(m.conv(x)).relu()
        return y * 2.0 if x.shape[0] > 2 else y

    model = harden(wired(forward, conv=conv(3, 4), bn=norm(4))).double().eval()
    try:
        canonical = canonize.canonize(model, torch.randn(2, 3, 5, 7, dtype=torch.float64))
    except canonize.CanonizeError:
        return
    accepted = [batch for batch in (1, 2, 3, 4) if _right_or_refused(model, canonical, batch, (5, 7))]
    assert 2 in accepted


@pytest.mark.parametrize("kind", ["lock", "keys", "file", "object"])
def test_what_cannot_be_copied_is_shared(kind: str, tmp_path: Path) -> None:
    held: dict[str, Any] = {
        "lock": threading.Lock(),
        "keys": {"a": 1}.keys(),
        "file": (tmp_path / "log").open("w"),
        "object": types.SimpleNamespace(lock=threading.Lock(), numbers=[1, 2]),
    }
    model = nn.Sequential(nn.Conv2d(3, 4, 1), harden(nn.BatchNorm2d(4))).eval()
    model.held = held[kind]
    assert canonize.canonize(model, torch.randn(2, 3, 8, 8)).report.verdict.passed
    assert model.held is held[kind]
    held["file"].close()


def test_a_generator_is_no_attribute_to_keep() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), harden(nn.BatchNorm2d(4))).eval()
    model.held = (number for number in range(3))
    with pytest.raises(CaptureError, match="generator"):
        canonize.canonize(model, torch.randn(2, 3, 8, 8))
    assert next(model.held) == 0


def test_hooks_that_only_collect_for_their_library_are_no_obstacle() -> None:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        """Inactive: nobody asks for what it would collect."""

    hook.__module__ = "transformers.utils.output_capturing"
    model = nn.Sequential(nn.Conv2d(3, 4, 1), harden(nn.BatchNorm2d(4))).eval()
    model[0].register_forward_hook(hook)
    assert canonize.canonize(model, torch.randn(2, 3, 8, 8)).report.verdict.passed


class Answer(OrderedDict[str, Any]):
    """A dictionary of a kind of its own, as libraries return it."""


@pytest.mark.parametrize("tracer", TRACERS)
def test_an_output_of_a_dictionarys_kind_is_a_plain_one_and_said_to_be(tracer: str) -> None:
    torch.utils._pytree._register_pytree_node(
        Answer, lambda it: (list(it.values()), list(it)), lambda values, names: Answer(zip(names, values, strict=True))
    )

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Answer:
            return Answer(logits=self.conv(x))

    captured = capture(Model().eval(), normalise(torch.randn(2, 3, 8, 8)), tracer)
    assert captured.notes == ("the model's Answer comes as a plain dictionary: output['logits'], not output.logits",)


def test_an_output_of_a_foreign_kind_is_named() -> None:
    class Cache:
        pass

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"y": self.conv(x), "cache": Cache()}

    with pytest.raises(CaptureError, match="its output holds a Cache, which is neither a tensor nor"):
        canonize.canonize(Model().eval(), torch.randn(2, 3, 8, 8))


def test_refusals_that_are_asked_for_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), harden(nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.bn(self.conv(row[None]))[0] for row in x])

    found = canonize.canonize(Rows().eval(), torch.randn(2, 3, 8, 8))
    assert found.report.verdict.passed
    assert "refuses" in str(found.report.verdict)
    assert capfd.readouterr() == ("", "")


class AnyNumber(nn.Module):
    """Takes as many images as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3, 4), nn.BatchNorm2d(4)

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        return sum((self.norm(self.conv(other)) for other in others), self.norm(self.conv(first)))


@pytest.mark.parametrize("rows", [1, 2])
@torch.no_grad()
def test_torch_export_leaves_the_sizes_of_any_number_of_inputs_free(rows: int) -> None:
    model = harden(AnyNumber()).double().eval()
    captured = capture(model, normalise((torch.randn(rows, 3, 9, 9).double(),) * 3), "torch.export")
    graph = fx.GraphModule(captured.root, captured.graph)
    inputs = [torch.randn(4, 3, 7, 12).double() for _ in range(3)]
    wanted = model(*inputs)
    assert (graph(*inputs) - wanted).abs().max() <= 1e-10 * wanted.abs().max()
