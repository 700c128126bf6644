"""Everything one call of a model gets, as one value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from canonize.errors import InputError


@dataclass(frozen=True)
class Inputs:
    """Everything one call of a model gets.

    Attributes
    ----------
    args : tuple
        Positional arguments: tensors, and anything else, nested in tuples, lists and dictionaries.
    kwargs : dict
        Keyword arguments, likewise.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def map(self, fn: Callable[[Tensor], Any]) -> Inputs:
        """The same structure with ``fn`` applied to every tensor."""
        return Inputs(tuple(_map(a, fn) for a in self.args), {k: _map(v, fn) for k, v in self.kwargs.items()})

    def tensors(self) -> list[Tensor]:
        """Every tensor, in call order."""
        return [*_tensors(self.args), *_tensors(self.kwargs)]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Inputs:
        """On another device, and floating tensors in another precision; integers and booleans keep their type."""

        def move(tensor: Tensor) -> Tensor:
            target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            return tensor.to(device=device, dtype=target)

        return self.map(move)

    @property
    def batch_size(self) -> int | None:
        """Leading size of the first tensor that has a dimension; None where no tensor has one or it is empty."""
        leading = next((t.shape[0] for t in self.tensors() if t.dim()), 0)
        return leading or None

    def with_batch(self, size: int) -> Inputs | None:
        """The same inputs with another batch size.

        Parameters
        ----------
        size : int
            New leading size of every tensor that has the common one (`batch_size`); rows repeat or are cut off.

        Returns
        -------
        Inputs or None
            None where there is no common batch size.
        """
        common = self.batch_size
        if common is None:
            return None

        def resize(tensor: Tensor) -> Tensor:
            if not tensor.dim() or tensor.shape[0] != common:
                return tensor
            return tensor.index_select(0, torch.arange(size, device=tensor.device) % common)

        return self.map(resize)

    def outline(self) -> Inputs:
        """Their shapes and dtypes: floating tensors without values, others (tokens, masks) as they are."""
        return self.map(lambda t: t.detach().to("meta") if t.is_floating_point() else t.detach().clone())

    def drawn(self, device: torch.device | str, seed: int = 0) -> Inputs:
        """An `outline` filled: normal values where it has none."""
        generator = torch.Generator().manual_seed(seed)

        def fill(tensor: Tensor) -> Tensor:
            if tensor.is_meta:
                drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                return drawn.to(device, tensor.dtype)
            return tensor.detach().clone().to(device)

        return self.map(fill)

    def describe(self) -> str:
        """Shapes and types in one line, for example ``2x3x224x224 float32``."""
        positional = [_describe(a) for a in self.args]
        return ", ".join(positional + [f"{name}: {_describe(value)}" for name, value in self.kwargs.items()])


def _map(value: Any, fn: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple wants its fields one by one
        return type(value)(*(_map(v, fn) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_map(v, fn) for v in value)
    if isinstance(value, Mapping):
        return {k: _map(v, fn) for k, v in value.items()}
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        shape = "x".join(map(str, value.shape)) or "scalar"
        return f"{shape} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_describe, value))})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_describe(v)}" for k, v in value.items()) + "}"
    text = repr(value)
    return text if len(text) <= 20 else type(value).__name__


def normalise(example_inputs: Any) -> Inputs:
    """Bring every accepted spelling of example inputs into one.

    Parameters
    ----------
    example_inputs : Tensor, sequence, mapping or Inputs
        One tensor; the positional arguments as a tuple or list; ``(args, kwargs)``, a sequence and a dictionary with
        string keys; or the keyword arguments alone. NumPy arrays count as tensors.

    Raises
    ------
    InputError
        If no tensor is among them.
    """
    if isinstance(example_inputs, Inputs):
        found = example_inputs
    elif isinstance(example_inputs, Mapping):
        found = Inputs((), _keywords(example_inputs))
    elif isinstance(example_inputs, (tuple, list)):
        if (
            len(example_inputs) == 2
            and isinstance(example_inputs[0], (tuple, list))
            and isinstance(example_inputs[1], Mapping)
        ):
            found = Inputs(tuple(example_inputs[0]), _keywords(example_inputs[1]))
        else:
            found = Inputs(tuple(example_inputs))
    else:
        found = Inputs((example_inputs,))
    found = Inputs(_arrays_to_tensors(found.args), _arrays_to_tensors(found.kwargs))
    if not found.tensors():
        raise InputError(
            f"example inputs of type {type(example_inputs).__name__} hold no tensor",
            hint="Pass a tensor, a tuple of positional arguments, or (args, kwargs)",
            shell="Save a tensor, a tuple of tensors, or a dictionary of tensors to the file",
        )
    return found


def _keywords(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    if not all(isinstance(key, str) for key in mapping):
        raise InputError("keyword arguments need string keys", hint="Pass (args, kwargs) with kwargs such as {'x': x}")
    return dict(mapping)


def _arrays_to_tensors(value: Any) -> Any:
    if type(value).__module__ == "numpy" and hasattr(value, "shape"):
        return torch.as_tensor(value)
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(_arrays_to_tensors(v) for v in value)
    if isinstance(value, Mapping):
        return {k: _arrays_to_tensors(v) for k, v in value.items()}
    return value
