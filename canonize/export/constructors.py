"""A layer -> the expression that builds it, checked by building it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from canonize import nn as cnn
from canonize.errors import ExportError
from canonize.export.literals import literal

# Where a class calls an argument and the attribute that holds it differently.
_RENAMED: dict[type, dict[str, str]] = {cnn.ChannelLinear: {"channels": "in_channels"}}
_RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")
_MISSING = object()


def class_of(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch or of canonize whose forward a layer runs; None where it is of neither."""
    for cls in type(module).__mro__:
        if cls.__module__.startswith("torch.nn.") or cls.__module__ == "canonize.nn":
            return cls if cls is not nn.Module and issubclass(cls, nn.Module) else None
    return None


def expression(module: nn.Module, name: str) -> str:
    """Python that builds a layer like `module`: same class, same options, same shapes of weights.

    Parameters
    ----------
    module : nn.Module
        A layer of ``torch.nn`` or ``canonize.nn``, or of a class that inherits its forward from one.
    name : str
        Its qualified name, for the error.

    Raises
    ------
    ExportError
        If no expression builds the same layer.
    """
    cls = class_of(module)
    if cls is None:
        raise _refusal(module, name)
    for short in (True, False):
        try:
            text = _expression(module, cls, name, short)
            if _same(module, _built(text)):
                return text
        except ExportError:
            raise
        except Exception:  # constructors complain with whatever they like
            continue
    raise _refusal(module, name)


def _refusal(module: nn.Module, name: str) -> ExportError:
    return ExportError(
        f"{type(module).__name__} cannot be written as source", where=name, hint="Write a .pt: it holds any module"
    )


def _expression(module: nn.Module, cls: type[nn.Module], name: str, short: bool) -> str:
    home = "" if cls.__module__ == "canonize.nn" else "nn."
    if isinstance(module, nn.TransformerEncoder):
        layer = expression(module.layers[0], name)
        norm = f", norm={expression(module.norm, name)}" if module.norm is not None else ""
        nested = "" if module.enable_nested_tensor else ", enable_nested_tensor=False"
        return f"nn.TransformerEncoder({layer}, {module.num_layers}{norm}{nested})"
    written = []
    for parameter, value in _arguments(module, cls):
        if short:
            value = _shortened(value)
        if parameter.default is not parameter.empty and _equal(value, parameter.default):
            continue
        text = f"torch.empty({_shape(value)})" if isinstance(value, Tensor) else literal(value, _slot)
        positional = parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY
        written.append(text if positional else f"{parameter.name}={text}")
    return f"{home}{cls.__name__}({', '.join(written)})"


def _arguments(module: Any, cls: type) -> list[tuple[inspect.Parameter, Any]]:
    """Arguments of the constructor, with the values the layer was built with."""
    if isinstance(module, nn.TransformerEncoderLayer):
        return _encoder_layer(module)
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    parameters = [p for p in list(signature.parameters.values())[1:] if p.name not in ("device", "dtype")]
    if issubclass(cls, nn.RNNBase):  # hidden behind *args, **kwargs
        names = [*_RECURRENT, *(["nonlinearity"] if issubclass(cls, nn.RNN) else [])]
        defaults = inspect.signature(nn.RNNBase.__init__).parameters
        parameters = [p for n in names if (p := defaults.get(n, inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY)))]
    found = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = _value(module, cls, parameter.name)
        found.append((parameter, parameter.default if value is _MISSING else value))
    return found


def _value(module: Any, cls: type, name: str) -> Any:
    if name in ("bias", "add_bias_kv"):
        held = (
            {"bias": "in_proj_bias", "add_bias_kv": "bias_k"}[name]
            if isinstance(module, nn.MultiheadAttention)
            else name
        )
        value = getattr(module, held, _MISSING)
        return value is not None if value is None or isinstance(value, Tensor) else value
    return getattr(module, _RENAMED.get(cls, {}).get(name, name), _MISSING)


def _encoder_layer(module: nn.TransformerEncoderLayer) -> list[tuple[inspect.Parameter, Any]]:
    values = {
        "d_model": module.self_attn.embed_dim,
        "nhead": module.self_attn.num_heads,
        "dim_feedforward": module.linear1.out_features,
        "dropout": module.dropout.p,
        "activation": getattr(module.activation, "__name__", None),
        "layer_norm_eps": module.norm1.eps,
        "batch_first": module.self_attn.batch_first,
        "norm_first": module.norm_first,
        "bias": module.linear1.bias is not None,
    }
    parameters = inspect.signature(nn.TransformerEncoderLayer.__init__).parameters
    # The default activation is the function that the word "relu" stands for.
    return [(parameters[n], v) for n, v in values.items() if (n, v) != ("activation", "relu")]


def _shortened(value: Any) -> Any:
    """``(3, 3)`` as ``3``, where layers make it a tuple again."""
    if isinstance(value, tuple) and len(value) > 1 and len(set(map(repr, value))) == 1:
        return value[0]
    return value


def _slot(value: Any) -> str | None:
    return f"Slot({value.index})" if isinstance(value, cnn.Slot) else None


def _shape(tensor: Tensor) -> str:
    return ", ".join(map(str, tensor.shape)) or "()"


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and not isinstance(a, Tensor) and repr(a) == repr(b)


def _built(text: str) -> nn.Module:
    """What an expression builds; it was made above, from checked literals."""
    with torch.device("meta"):  # where initial weights are not drawn
        built: nn.Module = eval(text, {**vars(cnn), "torch": torch, "nn": nn})
    return built


def _same(module: nn.Module, built: nn.Module) -> bool:
    """Whether two layers differ in nothing but the values of their tensors."""
    theirs = dict(built.named_modules())
    ours = dict(module.named_modules())
    if theirs.keys() != ours.keys():
        return False
    for name, there in theirs.items():
        here = ours[name]
        if class_of(here) is not class_of(there) and type(here) is not type(there):
            return False
        if any(not _alike(getattr(here, key, _MISSING), value) for key, value in _options(there).items()):
            return False
    shapes = {k: v.shape for k, v in built.state_dict().items()}
    return shapes == {k: v.shape for k, v in module.state_dict().items()}


def _options(module: nn.Module) -> dict[str, Any]:
    """What a layer knows beside its tensors and submodules."""
    hidden = {"training", "_is_full_backward_hook", "_flat_weights", "_flat_weight_refs"}
    if getattr(module, "padding_mode", "") == "zeros":
        hidden.add("_reversed_padding_repeated_twice")  # read for the other modes alone
    bare = vars(nn.Module()).keys() | hidden
    return {key: value for key, value in vars(module).items() if key not in bare}


def _alike(a: Any, b: Any) -> bool:
    return callable(a) and a is b if callable(b) else repr(a) == repr(b)
