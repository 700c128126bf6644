"""ONNX's Resize: by torch's interpolation where that is the same function, else as one linear map for each axis.

Interpolation is separable: along one axis it is y = W x + b, with b from extrapolation alone. W and b are read off the
standard's own reference implementation, on the rows of an identity matrix and on zeros, so that every mode, coordinate
transformation and border comes out as the standard says.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from canonize.loading.onnx.missing_operators import as_numbers

# What torch's interpolation computes: the mode, and the coordinates of the standard.
_TORCH = {
    ("nearest", "asymmetric"), ("linear", "half_pixel"), ("linear", "align_corners"),
    ("cubic", "half_pixel"), ("cubic", "align_corners"),
}  # fmt: skip
_MODES = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
ATTRIBUTES: tuple[tuple[str, Any], ...] = (
    ("antialias", 0), ("axes", None), ("coordinate_transformation_mode", b"half_pixel"), ("cubic_coeff_a", -0.75),
    ("exclude_outside", 0), ("extrapolation_value", 0.0), ("keep_aspect_ratio_policy", b"stretch"),
    ("mode", b"nearest"),
    ("nearest_mode", b"round_prefer_floor"),
)  # fmt: skip


def resize(tensor: Tensor, roi: Any, scales: Any, sizes: Any, settings: Mapping[str, Any]) -> Tensor:
    """`tensor` at other sizes.

    Parameters
    ----------
    tensor : Tensor
    roi, scales, sizes : numbers or None
        As the operator takes them; `scales` or `sizes` is empty.
    settings : mapping
        Its attributes; and ``free_batch``, whether sizes are the file's own, which leave the batch size as it is.
    """
    rank = int(tensor.dim())
    axes = [axis % rank for axis in settings["axes"] or range(rank)]
    borders = as_numbers(roi) if roi is not None else []
    wanted = [float(n) for n in as_numbers(sizes if scales is None else scales)]
    kept = settings["free_batch"] if scales is None else wanted[0] == 1
    if settings["axes"] is None and kept and not borders:
        axes, wanted = axes[1:], wanted[1:]  # the batch size is not asked for: it may stay free
    before = [1 if scales is not None and n == 1 else int(tensor.shape[a]) for a, n in zip(axes, wanted, strict=True)]
    if scales is not None:
        factors = wanted
        after = [math.floor(size * factor) for size, factor in zip(before, factors, strict=True)]
    else:
        after = [int(size) for size in wanted]
        factors = [new / old for new, old in zip(after, before, strict=True)]
        policy = settings["keep_aspect_ratio_policy"]
        if policy != "stretch":
            factor = (min if policy == "not_larger" else max)(factors)
            factors = [factor] * len(axes)
            after = [math.floor(factor * size + 0.5) for size in before]
    changed = {axis: place for place, axis in enumerate(axes) if after[place] != before[place] or borders}
    if not changed:
        return tensor
    if _is_torchs(tensor, changed, before, after, factors, settings):
        size = [after[changed[a]] if a in changed else int(tensor.shape[a]) for a in range(2, rank)]
        if settings["mode"] == "nearest":
            return F.interpolate(tensor, size=size, mode="nearest")
        aligned = settings["coordinate_transformation_mode"] == "align_corners"
        return F.interpolate(tensor, size=size, mode=_MODES[settings["mode"], rank], align_corners=aligned)
    for axis, place in changed.items():
        part = (borders[place], borders[place + len(axes)]) if borders else ()
        weights, shift = _along(before[place], after[place], factors[place], part, _frozen(settings))
        tensor = F.linear(tensor.transpose(axis, -1), weights.to(tensor.dtype)).transpose(axis, -1)
        if shift is not None:
            tensor = tensor + shift.to(tensor.dtype).reshape([-1] + [1] * (rank - 1 - axis))
    return tensor


def _is_torchs(
    tensor: Tensor,
    changed: Mapping[int, int],
    before: Sequence[int],
    after: Sequence[int],
    factors: Sequence[float],
    settings: Mapping[str, Any],
) -> bool:
    """Whether torch's interpolation is the same function here."""
    mode, coordinates = settings["mode"], settings["coordinate_transformation_mode"]
    rank = int(tensor.dim())
    exact = all(abs(before[p] * factors[p] - after[p]) < 1e-6 for p in changed.values())
    return (
        (mode, coordinates) in _TORCH
        and min(changed) >= 2
        and exact
        and not settings["antialias"]
        and not settings["exclude_outside"]
        and ((mode, rank) in _MODES if mode != "nearest" else settings["nearest_mode"] == "floor" and 3 <= rank <= 5)
        and (mode != "cubic" or settings["cubic_coeff_a"] == -0.75)
    )


def _frozen(settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    passed = ("antialias", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "extrapolation_value")
    return tuple((name, settings[name]) for name in (*passed, "mode", "nearest_mode"))


@functools.lru_cache(maxsize=256)
def _along(
    before: int, after: int, factor: float, part: tuple[float, ...], settings: tuple[tuple[str, Any], ...]
) -> tuple[Tensor, Tensor | None]:
    """The matrix (after, before), and the shift (after,) where there is one, of a resize along one axis."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    names = ["x", "roi", "scales"]
    node = helper.make_node("Resize", names, ["y"], **dict(settings))
    kind = TensorProto.FLOAT
    given = [helper.make_tensor_value_info(name, kind, None) for name in names]
    graph = helper.make_graph([node], "axis", given, [helper.make_tensor_value_info("y", kind, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    evaluator = ReferenceEvaluator(model)
    roi = numpy.array([0, part[0], 1, part[1]] if part else [], numpy.float32)
    # The reference takes the size from the factor: halfway into the next number it is the size that is wanted.
    wanted = factor if math.floor(before * factor) == after else (after + 1e-3) / before
    scales = numpy.array([1, wanted], numpy.float32)

    def along(rows: Any) -> Tensor:
        found = evaluator.run(None, {"x": rows.astype(numpy.float32), "roi": roi, "scales": scales})[0]
        return torch.from_numpy(numpy.ascontiguousarray(found)).double()

    zero = along(numpy.zeros((1, before)))[0]
    matrix = (along(numpy.eye(before)) - zero).T.contiguous()
    return matrix, (zero if bool(zero.any()) else None)
