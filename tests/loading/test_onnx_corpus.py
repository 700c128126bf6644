"""A slice of the ONNX standard's own tests; all of them: ``python -m benchmarks.onnx``."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

import canonize

pytest.importorskip("onnx2fx", reason="begins at Python 3.11")

import onnx
from onnx import TensorProto, helper

from benchmarks.onnx.__main__ import measured
from benchmarks.onnx.cases import Case, cases
from canonize.loading.onnx.missing_operators import expand, pad, squeeze, unsqueeze

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64

# Families that were wrong, refused or crashed once: a kind each, and what must become of it.
RIGHT = (
    "test_abs", "test_attention_4d_causal_expanded", "test_batchnorm_epsilon",
    "test_center_crop_pad_crop_and_pad", "test_clip_default_inbounds", "test_conv_with_strides_padding",
    "test_cumprod_1d_reverse_exclusive", "test_cumsum_2d_axis_0", "test_expand_dim_changed", "test_expand_shape_model4",
    "test_gru_defaults", "test_lstm_with_initial_bias",
    "test_resize_downsample_scales_cubic", "test_resize_upsample_scales_nearest_axes_3_2",
    "test_resize_upsample_sizes_nearest_not_smaller", "test_scan_sum", "test_slice_start_out_of_bounds",
    "test_squeeze", "test_unsqueeze_negative_axes", "test_unsqueeze_axis_0", "test_constant_pad",
    "test_reduce_l2_default_axes_keepdims_example_expanded",
)  # fmt: skip


@pytest.fixture(scope="module")
def all_cases() -> list[Case]:
    return cases()


@pytest.mark.parametrize("name", RIGHT)
def test_a_model_of_the_standard_is_read_canonized_and_right(name: str, all_cases: list[Case]) -> None:
    found = [case for case in all_cases if case.name == name]
    if not found:
        pytest.skip("this onnx has no such test")
    (outcome,) = measured(found)
    if outcome.outcome == "not for us":
        pytest.skip(outcome.reason)
    assert outcome.outcome == "right", outcome.reason


# What a translation got wrong on other numbers than those it was compared with: refused, or right by now, never wrong.
@pytest.mark.parametrize(
    "name",
    [
        "test_qlinearmatmul_2D_int8_float32", "test_dynamicquantizelinear_max_adjusted", "test_l2normalization_axis_0",
        "test_attention_4d_causal_nonpad_continued_prefill", "test_resize_upsample_sizes_nearest", "test_stft",
    ],
)  # fmt: skip
def test_a_model_of_the_standard_is_never_silently_wrong(name: str, all_cases: list[Case]) -> None:
    for outcome in measured([case for case in all_cases if case.name == name]):
        assert outcome.outcome in ("right", "refused", "not for us"), outcome.reason
        assert outcome.reason or outcome.outcome == "right"


def test_of_a_slice_nothing_is_wrong_and_nothing_crashes() -> None:
    slice_ = [case for position, case in enumerate(cases(every=6)) if position % 9 == 0]
    outcomes = measured(slice_)
    bad = [o for o in outcomes if o.outcome in ("wrong", "crashed")]
    assert not bad, bad
    asked = [o for o in outcomes if o.outcome != "not for us"]
    assert len(asked) >= 25 and sum(o.outcome == "right" for o in asked) >= 0.92 * len(asked)
    assert all(o.reason for o in outcomes if o.outcome == "refused")


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_padding_of_any_axes_and_amounts(mode: str) -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    found = pad(tensor, [1, 2, 0, 2], axes=[1, -1], mode=mode)
    wanted = numpy.pad(tensor.numpy(), [(0, 0), (1, 0), (2, 2)], mode=mode)
    assert numpy.array_equal(found.numpy(), wanted)


def test_axes_may_be_negative_and_in_any_order() -> None:
    tensor = torch.zeros(2, 1, 3, 1)
    assert squeeze(tensor, torch.tensor([-1, 1])).shape == (2, 3)
    assert unsqueeze(torch.zeros(2, 3), [-1, 0]).shape == (1, 2, 3, 1)
    assert expand(torch.zeros(3, 1), [2, 1, 4]).shape == (2, 3, 4)
    assert expand(torch.zeros(2, 3, 4), torch.tensor([1, 4])).shape == (2, 3, 4)


def test_sizes_that_come_in_are_part_of_what_is_captured(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    x, shape = (helper.make_tensor_value_info(*of) for of in (("x", FLOAT, [2, 6]), ("shape", INT, [2])))
    graph = helper.make_graph([node], "g", [x, shape], [helper.make_tensor_value_info("y", FLOAT, ["n", "m"])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    model = canonize.load(tmp_path / "m.onnx")
    inputs = torch.rand(2, 6)
    canonical = canonize.canonize(model, (inputs, torch.tensor([3, 4])))
    assert torch.equal(canonical(inputs, torch.tensor([3, 4])), inputs.reshape(3, 4))
    with pytest.raises(AssertionError, match=r"holds for shape=\[3, 4\]"):
        canonical(inputs, torch.tensor([4, 3]))


def test_the_converter_stands_behind_one_file() -> None:
    root = Path(canonize.__file__).parent
    users = {p.name for p in root.rglob("*.py") if "onnx2fx" in p.read_text(encoding="utf-8")}
    assert users == {"converter.py", "read.py", "extras.py"}
