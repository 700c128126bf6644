"""An ``.onnx`` file as a module that ONNX Runtime runs: one side of a comparison, never a model to rewrite."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from canonize.capture.captured import GUARD
from canonize.compat import require
from canonize.errors import InputError, LoadError
from canonize.inputs import Inputs

_TYPES = {
    "tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64, "tensor(int32)": torch.int32, "tensor(bool)": torch.bool,
    "tensor(uint8)": torch.uint8, "tensor(int8)": torch.int8,
}  # fmt: skip
# What the exporter of torch notes at each operator: the qualified names of the modules around it.
_SCOPES = "pkg.torch.onnx.name_scopes"


class OnnxModel(nn.Module):
    """A session of ONNX Runtime that takes and gives torch tensors.

    Parameters
    ----------
    path : Path
        An ``.onnx`` file.
    device : torch.device
        On CUDA the CUDA provider runs it, where onnxruntime-gpu is installed.

    Attributes
    ----------
    own_dtype : torch.dtype
        Precision of its floating inputs and outputs.

    Raises
    ------
    LoadError
        If a package is missing, or ONNX Runtime cannot read the file or use the device.
    """

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        super().__init__()
        self.path, self.device = path, device or torch.device("cpu")
        self.providers = _providers(self.device, path)
        self.session = _session(str(path), self.providers, path)
        self.wanted = self.session.get_inputs()
        unknown = [i.type for i in self.wanted if i.type not in _TYPES]
        if unknown:
            raise LoadError(f"takes {unknown[0]}, which torch has no type for", where=str(path))
        kinds = [_TYPES.get(i.type) for i in (*self.wanted, *self.session.get_outputs())]
        self.own_dtype = next((k for k in kinds if k is not None and k.is_floating_point), torch.float32)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModel:
        twin = self.__class__.__new__(self.__class__)
        nn.Module.__init__(twin)
        twin.__dict__.update({k: v for k, v in self.__dict__.items() if not k.startswith("_") and k != "training"})
        return twin

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the session; a tuple of tensors, or the one tensor."""
        found = self.session.run(None, self.feed(*args, **kwargs))
        outputs = tuple(torch.as_tensor(value) for value in found)
        return outputs[0] if len(outputs) == 1 else outputs

    def feed(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Arguments by the names of the file's inputs; positional ones in their order."""
        tensors = Inputs(args, kwargs).tensors()
        if len(tensors) != len(self.wanted):
            raise RuntimeError(f"the file takes {len(self.wanted)} inputs, {len(tensors)} are given")
        named = {i.name: kwargs[i.name] for i in self.wanted if isinstance(kwargs.get(i.name), Tensor)}
        rest = iter([t for t in tensors if not any(t is n for n in named.values())])
        fed = {}
        for wanted in self.wanted:
            tensor = named[wanted.name] if wanted.name in named else next(rest)
            _check_shape(wanted, tensor)
            dtype = _TYPES[wanted.type]
            if tensor.dtype == torch.float64 and dtype != torch.float64:
                raise TypeError(f"ONNX Runtime runs this file in {str(dtype).removeprefix('torch.')} only")
            fed[wanted.name] = tensor.detach().cpu().to(dtype).numpy()
        return fed

    def example(self) -> Inputs:
        """Random inputs of the sizes that the file states, free batch sizes being 2.

        Raises
        ------
        InputError
            If a size other than the first is free.
        """
        tensors = []
        for wanted in self.wanted:
            free = [i for i, size in enumerate(wanted.shape) if not isinstance(size, int)]
            if any(i > 0 for i in free) or not _TYPES[wanted.type].is_floating_point:
                raise InputError(
                    f"{wanted.name} has a free size or is no floating tensor: {wanted.shape}",
                    where=str(self.path),
                    hint="Say what it takes: --input 1x3x224x224",
                )
            shape = [2 if i in free else size for i, size in enumerate(wanted.shape)]
            tensors.append(torch.randn(shape, dtype=_TYPES[wanted.type]))
        return Inputs(tuple(tensors))

    def layers(self) -> Iterator[tuple[str, str, str, list[str]]]:
        """Where the exporter has left the modules' names: module, operator, its result, results that it reads.

        Yields
        ------
        tuple
            One for each node of the graph, in order; an empty module where none is noted.
        """
        onnx = importlib.import_module("onnx")
        for node in onnx.load(str(self.path), load_external_data=False).graph.node:
            scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "[]")
            names = [name for name in ast.literal_eval(scopes) if name]
            yield names[-2] if len(names) > 1 else "", node.op_type, node.output[0], list(node.input)

    def with_results(self, names: list[str]) -> Any:
        """A session that also gives these intermediate results."""
        onnx = importlib.import_module("onnx")
        model = onnx.load(str(self.path))
        given = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names if n not in given)
        return _session(model.SerializeToString(), self.providers, self.path)


def _check_shape(wanted: Any, tensor: Tensor) -> None:
    fits = len(wanted.shape) == tensor.dim() and all(
        size == given for size, given in zip(wanted.shape, tensor.shape, strict=True) if isinstance(size, int)
    )
    if not fits:
        raise RuntimeError(f"{GUARD}: {wanted.name} is {wanted.shape} in the file, {list(tensor.shape)} is given")


def _providers(device: torch.device, path: Path) -> list[Any]:
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    runtime = _runtime(path)
    if device.type != "cuda" or "CUDAExecutionProvider" not in runtime.get_available_providers():
        raise LoadError(
            f"ONNX Runtime has no provider for {device}",
            where=str(path),
            hint="Install onnxruntime-gpu, or take the CPU",
        )
    # TF32 would drown what is to be seen.
    return [("CUDAExecutionProvider", {"device_id": device.index or 0, "use_tf32": 0}), "CPUExecutionProvider"]


def _session(model: Any, providers: list[Any], path: Path) -> Any:
    runtime = _runtime(path)
    try:
        return runtime.InferenceSession(model, providers=providers)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:160]
        raise LoadError(f"ONNX Runtime cannot read it ({first})", where=str(path), hint="Export it again") from error


def _runtime(path: Path) -> Any:
    return require("onnxruntime", "running ONNX files", where=str(path), error=LoadError)
