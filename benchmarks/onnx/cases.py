"""The tests that the onnx package carries: a model, inputs and the outputs that the standard expects of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import onnx
from onnx import numpy_helper

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")


@dataclass(frozen=True)
class Case:
    """One model of the standard's tests.

    Attributes
    ----------
    name, kind : str
    model : onnx.ModelProto
    inputs, outputs : list of numpy.ndarray or None
        None where they are no tensors (sequences, optional values).
    rtol, atol : float
        What the standard allows.
    """

    name: str
    kind: str
    model: Any
    inputs: list[Any] | None
    outputs: list[Any] | None
    rtol: float
    atol: float

    @property
    def has_floats(self) -> bool:
        """Whether a number of a floating-point type goes in: nothing else is a model of what canonize is for."""
        return self.inputs is not None and any(is_float(array) for array in self.inputs)


def is_float(array: Any) -> bool:
    """Whether an array holds floating-point numbers, the narrow types of ml_dtypes included."""
    return isinstance(array, numpy.ndarray) and (array.dtype.kind == "f" or "float" in array.dtype.name)


def cases(every: int = 1, only: Sequence[str] = ()) -> list[Case]:
    """All tests with floating-point inputs; of those of single operators, one in `every`.

    Parameters
    ----------
    every : int
    only : sequence of str
        Names, where not all are wanted.
    """
    from onnx.backend.test.loader import load_model_tests

    found = []
    for kind in KINDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tests = load_model_tests(kind=kind)
        for test in tests[:: every if kind == "node" else 1]:
            if not only or test.name in only:
                found += [case for case in [_case(test)] if case.has_floats]
    return found


def _case(test: Any) -> Case:
    if test.model is not None:
        model, (inputs, outputs) = test.model, test.data_sets[0]
    else:
        folder = Path(test.model_dir)
        model = onnx.load(str(folder / "model.onnx"))
        data = sorted(folder.glob("test_data_set_*"))[0]
        inputs, outputs = _values(data, "input"), _values(data, "output")
    return Case(test.name, test.kind, model, _arrays(inputs), _arrays(outputs), test.rtol, test.atol)


def _values(folder: Path, stem: str) -> list[Any]:
    files = sorted(folder.glob(f"{stem}_*.pb"), key=lambda path: int(path.stem.rpartition("_")[2]))
    tensors = []
    for file in files:
        proto = onnx.TensorProto()
        try:
            proto.ParseFromString(file.read_bytes())
            tensors.append(numpy_helper.to_array(proto))
        except Exception:  # a sequence, or an optional value
            tensors.append(None)
    return tensors


def _arrays(values: Sequence[Any]) -> list[Any] | None:
    plain = all(isinstance(value, numpy.ndarray | numpy.generic) for value in values)
    return [numpy.asarray(value) for value in values] if plain else None
