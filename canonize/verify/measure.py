"""How far apart two nested outputs are, and where."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Upper edges of the histogram's bins of |difference| / scale, behind the bin of equal elements.
EDGES = tuple(10.0**power for power in range(-16, 1))
# Classifiers: of how many best classes the agreement is told.
TOP = (1, 5)
# Integer and boolean outputs have no scale: their error is the share of elements that differ.
_EXACT_KINDS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class OutputLeaf:
    """One value of a nested output.

    Attributes
    ----------
    path : str
        How a reader would index it: ``output['logits'][0]``.
    value : Any
        A tensor, or whatever else the model returned there.
    """

    path: str
    value: Any


@dataclass(frozen=True)
class Difference:
    """The largest difference between two nested outputs, or between one pair of their tensors.

    Attributes
    ----------
    error : float
        Largest absolute difference over the largest absolute value of the reference (plain difference where that is
        0; share of differing elements for integers); ``inf`` where the two cannot be compared.
    where : str
        Element at which it was found: ``output[0][3, 7]``.
    mismatch : str
        Why the two cannot be compared (structure, shape, a NaN); empty where they can.
    counted : bool
        Whether `error` is a share of elements.
    path : str
        Which output.
    largest, mean, scale, values, allclose, histogram, top_k
        See `canonize.report.OutputError`.
    """

    error: float
    where: str = ""
    mismatch: str = ""
    counted: bool = False
    path: str = ""
    largest: float = 0.0
    mean: float = 0.0
    scale: float = 0.0
    values: tuple[float, float] = (0.0, 0.0)
    allclose: float = 0.0
    histogram: tuple[int, ...] = ()
    top_k: tuple[tuple[int, float], ...] = ()


def flatten(value: Any, path: str = "output") -> list[OutputLeaf]:
    """Flatten a nested output into its leaves.

    Tuples and lists count as the same structure, as do dictionaries and whatever else has ``items()``: tracing does
    not keep the difference, and no reader of the values depends on it.

    Parameters
    ----------
    value : Any
        A tensor, or a nest of tuples, lists, mappings and dataclasses.
    path : str
        Name of the whole.

    Returns
    -------
    list of Leaf
        In order; an empty container is a leaf of its own, so that losing it is noticed.
    """
    children = _children(value, path)
    if children is None:
        return [OutputLeaf(path, value)]
    if not children:
        return [OutputLeaf(path, "empty container")]
    return [leaf for child_path, child in children for leaf in flatten(child, child_path)]


def _children(value: Any, path: str) -> list[tuple[str, Any]] | None:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, Mapping) or (callable(getattr(value, "items", None)) and not isinstance(value, type)):
        # Mappings are compared by key: their order is no part of the function.
        return sorted(((f"{path}[{key!r}]", child) for key, child in value.items()), key=lambda pair: pair[0])
    if isinstance(value, (tuple, list)):
        return [(f"{path}[{index}]", child) for index, child in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f"{path}.{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a nested output, in the order of `flatten`."""
    return [leaf.value for leaf in flatten(value) if isinstance(leaf.value, Tensor)]


def floating(value: Any) -> list[Tensor]:
    """All floating or complex tensors of a nested output, in the order of `flatten`."""
    return [t for t in tensors(value) if t.is_floating_point() or t.is_complex()]


def first_nonfinite(value: Any) -> str | None:
    """Where the first NaN or infinity of a nested output stands, or None."""
    for leaf in flatten(value):
        if isinstance(leaf.value, float) and not math.isfinite(leaf.value):
            return f"{leaf.value} at {leaf.path}"
        if isinstance(leaf.value, Tensor) and (leaf.value.is_floating_point() or leaf.value.is_complex()):
            finite = torch.isfinite(leaf.value)
            if not bool(finite.all()):
                index = int((~finite).flatten().nonzero()[0])
                found = leaf.value.detach().flatten()[index].item()
                return f"{found} at {_element(leaf.path, leaf.value, index)}"
    return None


def differences(reference: Any, candidate: Any, path: str = "output", row: int | None = None) -> list[Difference]:
    """Compare two nested outputs, each tensor relative to its own scale.

    For each tensor ``error = max|candidate - reference| / max|reference|``, computed in float64.

    Parameters
    ----------
    reference, candidate : Any
        Nested outputs; the reference is finite.
    path : str
        Name of the whole in `Difference.where`.
    row : int, optional
        Compare only this item of the leading dimension of each tensor, relative to its own scale.

    Returns
    -------
    list of Difference
        One per leaf of the reference; a single one that says why where the structures differ.
    """
    left, right = flatten(reference, path), flatten(candidate, path)
    mismatch = _structure_mismatch(left, right)
    if mismatch:
        return [Difference(math.inf, path, mismatch, path=path)]
    return [_compare_leaf(a, b, row) for a, b in zip(left, right, strict=True)]


def has_rows(value: Any, count: int) -> bool:
    """Whether every leaf of a nested output is a tensor with a leading dimension of this size."""
    leaves = [leaf.value for leaf in flatten(value)]
    return all(isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == count for leaf in leaves)


def at_row(value: Any, row: int) -> list[Tensor]:
    """One item of the leading dimension of each tensor of a nested output that `has_rows`."""
    return [tensor[row : row + 1] for tensor in tensors(value)]


def compare(reference: Any, candidate: Any, path: str = "output") -> Difference:
    """The largest of `differences`."""
    return max(differences(reference, candidate, path), key=lambda difference: difference.error)


def dtype_mismatch(reference: Any, candidate: Any) -> str:
    """Which tensor of two equally structured outputs has another dtype; empty where none has."""
    for a, b in zip(flatten(reference), flatten(candidate), strict=True):
        if isinstance(a.value, Tensor) and isinstance(b.value, Tensor) and a.value.dtype != b.value.dtype:
            one, other = dtype_name(a.value.dtype), dtype_name(b.value.dtype)
            return f"{a.path} is {one} in the reference, {other} in the candidate"
    return ""


def _structure_mismatch(left: list[OutputLeaf], right: list[OutputLeaf]) -> str:
    ours, theirs = [leaf.path for leaf in left], [leaf.path for leaf in right]
    if ours != theirs:
        return f"the output's structure differs: {_listed(ours)} in the reference, {_listed(theirs)} in the candidate"
    return ""


def _listed(paths: list[str]) -> str:
    shown = ", ".join(paths[:4])
    return f"{shown}, ... ({len(paths)} in all)" if len(paths) > 4 else shown


def _compare_leaf(reference: OutputLeaf, candidate: OutputLeaf, row: int | None) -> Difference:
    a, b, path = _as_tensor(reference.value), _as_tensor(candidate.value), reference.path
    if a is None or b is None:
        same = type(a) is type(b) and bool(reference.value == candidate.value)
        why = "" if same else f"{path} differs in kind or value"
        return Difference(0.0 if same else math.inf, path, why, path=path)
    if a.shape != b.shape:
        shapes = f"{tuple(a.shape)} in the reference, {tuple(b.shape)} in the candidate"
        return Difference(math.inf, path, f"the shape of {path} differs: {shapes}", path=path)
    if row is not None:
        a, b = a[row : row + 1], b[row : row + 1]
    if a.numel() == 0:
        return Difference(0.0, path, path=path)
    a, b = a.detach(), b.detach().to(a.device)
    if a.dtype in _EXACT_KINDS or b.dtype in _EXACT_KINDS:
        unequal = (a != b).flatten()
        where = _element(path, a, int(unequal.int().argmax()), row)
        return Difference(float(unequal.double().mean()), where, counted=True, path=path)
    found = first_nonfinite(b)
    if found:
        where = found.replace("output", path, 1)
        return Difference(math.inf, path, f"the candidate has {where} where the reference is finite", path=path)
    return _compare_floating(a, b, path, row)


def _compare_floating(a: Tensor, b: Tensor, path: str, row: int | None) -> Difference:
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    size = a.abs()
    distance = (b - a).abs()
    scale, flat = float(size.max()), distance.flatten()
    index = int(flat.argmax())
    largest = float(flat[index])
    values = (0.0, 0.0) if a.is_complex() else (float(a.flatten()[index]), float(b.flatten()[index]))
    return Difference(
        largest / scale if scale > 0 else largest,
        _element(path, a, index, row),
        path=path,
        largest=largest,
        mean=float(flat.mean()),
        scale=scale,
        values=values,
        allclose=float((distance / (1 + size)).max()),
        histogram=_histogram(flat / scale if scale > 0 else flat),
        top_k=() if a.is_complex() else _top_k(a, b),
    )


def _histogram(relative: Tensor) -> tuple[int, ...]:
    """Number of elements in each bin: equal, below each of `EDGES`, and beyond the last."""
    positive = relative[relative > 0]
    edges = torch.tensor(EDGES, dtype=torch.float64, device=relative.device)
    bins = torch.bincount(torch.bucketize(positive, edges, right=True), minlength=len(EDGES) + 1)
    return (relative.numel() - positive.numel(), *bins.tolist())


def _top_k(a: Tensor, b: Tensor) -> tuple[tuple[int, float], ...]:
    """Share of rows of two (N, classes) tensors with the same k best classes, in any order."""
    if a.dim() != 2 or a.shape[0] == 0 or a.shape[1] < 2:
        return ()
    found = []
    for k in (k for k in TOP if k < a.shape[1]):
        same = a.topk(k).indices.sort(-1).values == b.topk(k).indices.sort(-1).values
        found.append((k, float(same.all(-1).double().mean())))
    return tuple(found)


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (bool, int, float, complex)):
        return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    return None


def _element(path: str, tensor: Tensor, flat_index: int, row: int | None = None) -> str:
    position: list[int] = []
    for size in reversed(tensor.shape):
        position.append(flat_index % size)
        flat_index //= size
    position.reverse()
    if row is not None:
        position[0] = row
    return f"{path}[{', '.join(map(str, position))}]" if position else path


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
