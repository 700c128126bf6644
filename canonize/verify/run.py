"""Running a model for comparison: nothing outside the copy that is run may notice."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, fx, nn

from canonize.compat.private import pytree
from canonize.errors import cuts_in, kind_and_line
from canonize.inputs import Inputs
from canonize.twins.float64 import in_float64
from canonize.twins.randomness import PrivateRandom, Streams
from canonize.twins.twin import device_of
from canonize.twins.writes import WriteError, is_opaque, unharmed
from canonize.verify import measure


class FailedRunError(RuntimeError):
    """A model raised while it was run; the message is one line long."""


# The proof that this thread is in the middle of.
_HERE = threading.local()
# Copies that have drawn no random number: they are run without a watch over it.
_STILL: WeakSet[nn.Module] = WeakSet()


@contextlib.contextmanager
def undisturbed(device: torch.device | None = None) -> Iterator[None]:
    """Compute as the calling thread does, without gradients and without autocast.

    Whatever belongs to the whole process stays as it is: torch's default dtype, TF32, the global random generators.
    What a forward draws from torch comes from generators of the proof's own.

    Parameters
    ----------
    device : torch.device, optional
        Of the model.
    """
    on_gpu = device is not None and device.type == "cuda"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.autograd.set_grad_enabled(False))
        for kind in ("cpu", "cuda") if on_gpu else ("cpu",):
            stack.enter_context(torch.autocast(kind, enabled=False))
        before, _HERE.streams = getattr(_HERE, "streams", None), Streams()
        try:
            yield
        finally:
            _HERE.streams = before


@contextlib.contextmanager
def _drawing_privately(model: nn.Module) -> Iterator[None]:
    """Keep a model from the global random generator; nothing is watched where it was seen not to draw."""
    if model in _STILL or any(is_opaque(module) for module in model.modules()):
        yield
        return
    with PrivateRandom(getattr(_HERE, "streams", None)) as watch:
        yield
    if not watch.drew:
        _STILL.add(model)


def outputs(model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> Any:
    """Outputs of a model in a given precision, without gradient.

    Parameters
    ----------
    model : nn.Module
        A twin, see `canonize.verify.twin`.
    inputs : Inputs
        Copied, since a forward may write to them.
    dtype : torch.dtype
        Of the floating inputs; float64 also overrides the precision that a forward names itself.

    Raises
    ------
    FailedRunError
        If the model raises.
    """
    with torch.no_grad():
        return unharmed(model, lambda: call(model, _prepared(model, inputs, dtype), dtype))


@dataclass(frozen=True)
class Slopes:
    """What one run forwards and backwards gives.

    Attributes
    ----------
    outputs : Any
        Of the forward, without gradient.
    gradients : list of Tensor or None
        One per floating input, zeros where an input has no influence; None where no output depends on any input by a
        differentiable path.
    """

    outputs: Any
    gradients: list[Tensor] | None


def input_gradients(model: nn.Module, inputs: Inputs, dtype: torch.dtype, weights: list[Tensor]) -> Slopes:
    """Gradient of a fixed projection of all floating outputs with respect to the floating inputs.

    With outputs y_k and weights w_k it is d/dx sum_k <w_k, y_k>.

    Parameters
    ----------
    model : nn.Module
    inputs : Inputs
    dtype : torch.dtype
    weights : list of Tensor
        One per floating output, of its shape.

    Returns
    -------
    Slopes

    Raises
    ------
    FailedRunError
        If the model raises, forwards or backwards.
    """
    return unharmed(model, lambda: _input_gradients(model, inputs, dtype, weights))


def _input_gradients(model: nn.Module, inputs: Inputs, dtype: torch.dtype, weights: list[Tensor]) -> Slopes:
    leaves: list[Tensor] = []

    def track(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        leaves.append(tensor.requires_grad_())
        # Not the leaf itself: a first layer that works in place may not write to a leaf.
        return tensor.clone()

    with torch.enable_grad():
        prepared = _prepared(model, inputs, dtype).map(track)
        outputs = call(model, prepared, dtype)
        found = measure.floating(outputs)
        if [w.shape for w in weights] != [y.shape for y in found]:
            raise FailedRunError("the output has another shape than the reference's")
        pairs = zip(weights, found, strict=True)
        terms = [(w.to(y.device, y.dtype) * y).real.sum() for w, y in pairs if y.requires_grad]
        outputs = pytree.tree_map_only(Tensor, torch.detach, outputs)
        if not terms or not leaves:
            return Slopes(outputs, None)
        try:
            total = torch.stack([term.to(terms[0].device) for term in terms]).sum()
            gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        except RuntimeError as error:
            raise FailedRunError(kind_and_line(error)) from error
    pairs = zip(leaves, gradients, strict=True)
    return Slopes(outputs, [torch.zeros_like(x) if g is None else g for x, g in pairs])


def _prepared(model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return inputs.to(device_of(model), dtype).map(lambda tensor: tensor.detach().clone())


def as_it_is(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model on the very tensors given, in whatever precision it names.

    Raises
    ------
    FailedRunError
        If the model raises.
    """
    return unharmed(model, lambda: _call(model, inputs, contextlib.nullcontext()))


def call(model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> Any:
    """Call a model on inputs as they are; float64 also overrides the precision that a forward names itself.

    Raises
    ------
    FailedRunError
        If the model raises.
    """
    context: Any = contextlib.nullcontext()
    if dtype == torch.float64:
        context = in_float64(operators=any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()))
    return _call(model, inputs, context)


def _call(model: nn.Module, inputs: Inputs, context: Any) -> Any:
    run: Any = model
    if isinstance(model, fx.GraphModule) and getattr(model._wrapped_call, "cls_call", None) is None:
        # Its own call prints the code around an error, also where a refusal is what is being asked for.
        run = functools.partial(nn.Module.__call__, model)
    try:
        with _drawing_privately(model), context:
            return run(*inputs.args, **inputs.kwargs)
    except WriteError:
        raise
    except Exception as error:
        if cuts_in(error):
            raise
        raise FailedRunError(kind_and_line(error)) from error
