"""One test: what ONNX Runtime makes of the model, and what canonize makes of it."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import onnx
import torch
from torch import Tensor

import canonize
from benchmarks.onnx.cases import Case

# What can become of a test. "not for us": ONNX Runtime itself cannot load it, or gives something else than expected.
OUTCOMES = ("right", "refused", "wrong", "crashed", "not for us")


@dataclass(frozen=True)
class Outcome:
    """What became of one test."""

    name: str
    kind: str
    operator: str
    outcome: str
    reason: str = ""

    def as_dict(self) -> dict[str, str]:
        """For a JSON file."""
        return asdict(self)


def measure(case: Case) -> Outcome:
    """Read a model by `canonize.load`, canonize it, run it on the standard's inputs, compare with its outputs."""
    operator = ", ".join(dict.fromkeys(node.op_type for node in case.model.graph.node))[:60]

    def outcome(what: str, reason: str = "") -> Outcome:
        return Outcome(case.name, case.kind, operator, what, reason)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        onnx.save(case.model, str(path))
        problem = not_for_us(case)
        if problem:
            return outcome("not for us", problem)
        try:
            inputs = tuple(as_tensor(array) for array in case.inputs or ())
            model = canonize.load(path)
            canonical = canonize.canonize(model, inputs)
            with torch.no_grad():
                found = canonical(*inputs)
        except canonize.CanonizeError as error:
            return outcome("refused", str(error).replace(str(path), "model.onnx"))
        except Exception as error:
            return outcome("crashed", f"{type(error).__name__}: {error}"[:300])
    problem = difference(flat(found), case)
    return outcome("wrong" if problem else "right", problem)


def not_for_us(case: Case) -> str:
    """Why the standard's runtime is no judge here; empty where it is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            case.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [i.name for i in session.get_inputs()]
        found = session.run(None, dict(zip(names, case.inputs or (), strict=True)))
    except Exception as error:
        return f"ONNX Runtime: {str(error).strip().splitlines()[0][:120]}"
    if case.outputs is None:
        return "its outputs are no tensors"
    problem = difference([torch.as_tensor(numpy.asarray(value)) for value in found], case)
    return f"ONNX Runtime gives something else than the standard: {problem}" if problem else ""


def as_tensor(array: Any) -> Tensor:
    """A tensor of its own."""
    return torch.from_numpy(numpy.array(array, copy=True))


def flat(value: Any) -> list[Any]:
    """The tensors of a nested result."""
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def difference(found: list[Any], case: Case) -> str:
    """How outputs differ from those expected; empty where they do not."""
    wanted = case.outputs or []
    if len(found) != len(wanted):
        return f"{len(found)} outputs instead of {len(wanted)}"
    for one, other in zip(found, wanted, strict=True):
        if tuple(one.shape) != other.shape:
            return f"shape {tuple(one.shape)} instead of {other.shape}"
        exact = other.astype(numpy.float64)
        rounding = (
            2 * torch.finfo(one.dtype).eps * numpy.nanmax(numpy.abs(exact), initial=0) if one.is_floating_point() else 0
        )
        absolute = max(case.atol, 1e-5, rounding if numpy.isfinite(rounding) else 0)
        close = numpy.allclose(one.double().numpy(), exact, max(case.rtol, 1e-3), absolute, True)
        if not close:
            return f"off by {numpy.abs(one.double().numpy() - other.astype(numpy.float64)).max():.2g}"
    return ""
