"""One operator of TorchScript, called in Python: on tensors as ATen's, on sizes, lists and flags as Python's own.

A tracer hands in proxies. On tensors they are recorded as the ATen operator they meet, with the arguments of its
schema; on sizes as Python's arithmetic, which every tracer and ``canonize.graph.shapes`` can work out. TorchScript has
tensors where Python has numbers (``prim::NumToTensor``): here they stay numbers, so that a size can be told from data.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from canonize.compat.private import parse_schema
from canonize.errors import CaptureError

# How TorchScript writes dtypes, layouts and memory formats: as numbers.
_DTYPES = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128, torch.bool),
)
_CODES: dict[str, dict[int, Any]] = {
    "dtype": {**dict(enumerate(_DTYPES)), 15: torch.bfloat16},
    "layout": {0: torch.strided},
    "memory_format": {
        0: torch.contiguous_format,
        1: torch.preserve_format,
        2: torch.channels_last,
        3: torch.channels_last_3d,
    },
}


def call_operator(node: Any, arguments: list[Any], where: str | None) -> Any:
    """What an operator gives for `arguments`.

    Parameters
    ----------
    node : torch._C.Node
    arguments : list
        Values of its inputs, in order.
    where : str or None
        The line of source, for messages.

    Returns
    -------
    object
        The one result, or a sequence of as many as the node has outputs.

    Raises
    ------
    CaptureError
        If it is no operator that a graph of torch's own operators could hold.
    """
    kind = node.kind()
    if kind in _PYTHON:
        return _PYTHON[kind](*arguments)
    space, _, name = kind.partition("::")
    schema = _schema(node.schema()) if "(" in node.schema() else None
    tensors = [] if schema is None else _declared_tensors(schema, arguments)
    if name in _ARITHMETIC and space in ("aten", "prim"):
        if any(is_number(value) for value in tensors):
            tensors, arguments = ([_without_tensor(value) for value in values] for values in (tensors, arguments))
        if all(is_number(value) for value in tensors):
            return _ARITHMETIC[name](*arguments)
    if space != "aten" or schema is None:
        raise _refusal(f"uses {kind}, which is none of torch's own operators on tensors", where)
    _refuse_training(name, schema, arguments, where)
    return _call(_overload(schema, where), schema, arguments, where)


def is_number(value: Any) -> bool:
    """Whether a value is a number, or a number of a graph that is being traced (a size)."""
    if isinstance(value, fx.Proxy):
        return not isinstance(_example(value), Tensor | tuple | list)
    return isinstance(value, int | float | torch.SymInt | torch.SymFloat | torch.SymBool)


def _without_tensor(value: Any) -> Any:
    """A constant of a trace that is a number in a tensor, as that number: it stands beside a size."""
    plain = type(value) is Tensor and value.dim() == 0 and value.dtype in (torch.int64, torch.float64)
    return value.item() if plain else value


def _example(proxy: fx.Proxy) -> Any:
    """What a value of a traced graph is under the example inputs, tensors on the meta device."""
    tracer: Any = proxy.tracer
    return tracer.value_of(proxy.node)


def _refusal(what: str, where: str | None) -> CaptureError:
    return CaptureError(f"its TorchScript {what}", where, "Give the nn.Module that it was scripted from.")


# ------------------------------------------------------------------------------------------------ ATen


@functools.lru_cache(maxsize=4096)
def _schema(text: str) -> Any:
    return parse_schema(text)


def _declared_tensors(schema: Any, arguments: list[Any]) -> list[Any]:
    """The arguments that stand where the schema has a tensor."""
    pairs = zip(schema.arguments, arguments, strict=False)
    return [value for argument, value in pairs if str(argument.type) in ("Tensor", "Optional[Tensor]")]


def _overload(schema: Any, where: str | None) -> Any:
    name = schema.name.partition("::")[2]
    packet = getattr(torch.ops.aten, name, None)
    found = getattr(packet, schema.overload_name or "default", None)
    if not isinstance(found, torch._ops.OpOverload):
        raise _refusal(f"uses {schema.name}.{schema.overload_name}, which torch offers to TorchScript alone", where)
    return found


def _refuse_training(name: str, schema: Any, arguments: list[Any], where: str | None) -> None:
    """A trace keeps the mode it was made in, and no ``eval()`` reaches it."""
    given = dict(zip((argument.name for argument in schema.arguments), arguments, strict=True))
    if name == "batch_norm" and given["training"] is True and given["running_mean"] is not None:
        what = "it was traced in training mode: its BatchNorm takes the statistics of the batch"
    elif "dropout" in name and given.get("train") is True and given.get("p") != 0:
        what = "its dropout is always on: it was traced in training mode"
    else:
        return
    raise CaptureError(what, where, "Trace it again after model.eval().")


def _call(target: Any, schema: Any, arguments: list[Any], where: str | None) -> Any:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument, value in zip(schema.arguments, arguments, strict=True):
        if argument.name in _CODES and type(value) is int:
            if value not in _CODES[argument.name]:
                raise _refusal(f"makes tensors of a {argument.name} that is quantized or sparse", where)
            value = _CODES[argument.name][value]
        if not argument.kwarg_only:
            args.append(value)
        elif not argument.has_default_value() or not _same(value, argument.default_value):
            kwargs[argument.name] = value
    tracer = next((proxy.tracer for proxy in _proxies((args, kwargs))), None)
    if tracer is None:
        return target(*args, **kwargs)
    result: Any = tracer.create_proxy("call_function", target, tuple(args), kwargs)
    count = len(schema.returns)
    if count > 1:
        return [result[index] for index in range(count)]
    return list(result) if "List" in str(schema.returns[0].type) else result


def _same(value: Any, default: Any) -> bool:
    return value is None if default is None else type(value) is type(default) and bool(value == default)


def _proxies(value: Any) -> Iterator[fx.Proxy]:
    if isinstance(value, fx.Proxy):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _proxies(item)
    elif isinstance(value, dict):
        yield from _proxies(list(value.values()))


# -------------------------------------------------------------------------------------------- numbers


def _add(a: Any, b: Any, alpha: Any = 1) -> Any:
    return a + b if alpha == 1 else a + alpha * b


def _subtract(a: Any, b: Any, alpha: Any = 1) -> Any:
    return a - b if alpha == 1 else a - alpha * b


def _divide(a: Any, b: Any, rounding: str | None = None) -> Any:
    """Division; a trace writes ``//`` on sizes as one that rounds towards zero."""
    if rounding is None:
        return a / b
    if rounding == "trunc" and (_proxies_in(a, b) or a < 0 or b < 0):
        return _recorded(torch.sym_int, a / b)  # exact below 2**52, and sizes are
    return a // b


def _proxies_in(*values: Any) -> bool:
    return any(isinstance(value, fx.Proxy) for value in values)


def _floor(value: Any) -> Any:
    return torch.sym_int(value // 1)


def _ceil(value: Any) -> Any:
    return torch.sym_int(-(-value // 1))


def _equal(a: Any, b: Any) -> Any:
    """A dtype is a number to TorchScript, and a dtype here."""
    if isinstance(a, torch.dtype) or isinstance(b, torch.dtype):
        first, second = (_CODES["dtype"].get(v) if isinstance(v, int) else v for v in (a, b))
        return first is second
    return a == b


def _smallest(*values: Any) -> Any:
    return _extreme(torch.sym_min, values)


def _largest(*values: Any) -> Any:
    return _extreme(torch.sym_max, values)


def _extreme(choose: Callable[[Any, Any], Any], values: tuple[Any, ...]) -> Any:
    items = list(values[0]) if len(values) == 1 else list(values)
    return functools.reduce(lambda a, b: _recorded(choose, a, b), items)


def _recorded(function: Callable[..., Any], *arguments: Any) -> Any:
    """A call of a function that does not know proxies."""
    tracer = next((proxy.tracer for proxy in _proxies(arguments)), None)
    return function(*arguments) if tracer is None else tracer.create_proxy("call_function", function, arguments, {})


# ------------------------------------------------------------------------------- sizes, lists and flags


def _rank(tensor: Any) -> int:
    value = _example(tensor) if isinstance(tensor, fx.Proxy) else tensor
    return int(value.dim())


def _size(tensor: Any, dim: Any = None) -> Any:
    return [tensor.size(i) for i in range(_rank(tensor))] if dim is None else tensor.size(dim)


def _length(value: Any) -> Any:
    return value.size(0) if isinstance(value, Tensor | fx.Proxy) else len(value)


def _property(name: str) -> Callable[[Any], Any]:
    """A property of a tensor that does not vary from call to call."""

    def read(tensor: Any) -> Any:
        return getattr(_example(tensor) if isinstance(tensor, fx.Proxy) else tensor, name)

    return read


def _device_type(device: Any) -> str:
    """``cpu`` or ``cuda``: for the model as it stands, since meta tensors are on no device."""
    if not isinstance(device, fx.Proxy):
        return str(device.type)
    tracer: Any = device.tracer
    return str(next((tensor.device.type for tensor in tracer.inputs.tensors()), "cpu"))


def _negated(value: Any) -> bool:
    return not value


def _truth(value: Any) -> Any:
    return value if isinstance(value, Tensor | fx.Proxy) else bool(value)


def _whole(value: Any) -> Any:
    if isinstance(value, fx.Proxy):
        return _recorded(torch.sym_int, value) if is_number(value) else value.item()
    return value.item() if isinstance(value, Tensor) else torch.sym_int(value)


def _float(value: Any) -> Any:
    if isinstance(value, fx.Proxy):
        return _recorded(torch.sym_float, value) if is_number(value) else value.item()
    return value.item() if isinstance(value, Tensor) else torch.sym_float(value)


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) or not is_number(value) else value


def _format(template: str, *values: Any) -> str:
    return template.format(*("a size" if _proxies_in(value) else value for value in values))


def _append(items: list[Any], item: Any) -> list[Any]:
    items.append(item)
    return items


def _extend(items: Any, more: Any, alpha: Any = 1) -> Any:
    if not isinstance(items, list):
        raise CaptureError("its TorchScript computes in place with a size", None, "Compute with a new value instead.")
    items.extend(more)
    return items


def _insert(items: list[Any], position: int, item: Any) -> None:
    items.insert(position, item)


def _put(items: Any, key: Any, item: Any) -> Any:
    items[key] = item
    return items


def _sliced(items: Any, start: Any = None, end: Any = None, step: int = 1) -> Any:
    return items[slice(start, end, step)]


def _range_length(low: Any, high: Any, step: Any) -> Any:
    return _largest(0, (high - low + step - 1) // step if step > 0 else (low - high - step - 1) // -step)


_PYTHON: dict[str, Callable[..., Any]] = {
    "prim::NumToTensor": lambda value: value,
    "prim::unchecked_cast": lambda value: value,
    "prim::data": lambda value: value.detach(),
    "prim::dtype": _property("dtype"),
    "prim::layout": _property("layout"),
    "prim::is_cuda": _property("is_cuda"),
    "prim::is_nested": lambda value: False,
    "prim::device": lambda value: value.device,
    "prim::type": _device_type,
    # Whether a gradient is wanted decides between two ways to compute the same; the differentiable one is the general.
    "prim::requires_grad": lambda value: True,
    "prim::min": _smallest,
    "prim::max": _largest,
    "aten::size": _size,
    "aten::dim": _rank,
    "aten::numel": lambda tensor: tensor.numel(),
    "aten::len": _length,
    "aten::Int": _whole,
    "aten::IntImplicit": _whole,
    "aten::Float": _float,
    "aten::FloatImplicit": _float,
    "aten::ScalarImplicit": _scalar,
    "aten::item": _scalar,
    "aten::Bool": _truth,
    "aten::__not__": _negated,
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::is_grad_enabled": lambda: True,
    "aten::is_floating_point": lambda value: _property("dtype")(value).is_floating_point,
    "aten::_unwrap_optional": lambda value: value,
    "aten::format": _format,
    "aten::str": str,
    "aten::list": list,
    "aten::__getitem__": lambda items, key: items[key],
    "aten::_set_item": _put,
    "aten::__contains__": lambda items, key: key in items,
    "aten::append": _append,
    "aten::extend": _extend,
    "aten::insert": _insert,
    "aten::keys": lambda table: list(table),
    "aten::values": lambda table: list(table.values()),
    "aten::items": lambda table: list(table.items()),
    "aten::__range_length": _range_length,
    "aten::__derive_index": lambda index, start, step: start + index * step,
}

# Where every tensor among the arguments is a number; lists as well, which Python adds and compares alike.
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": _add,
    "sub": _subtract,
    "rsub": lambda a, b, alpha=1: _subtract(b, a, alpha),
    "mul": operator.mul,
    "div": _divide,
    "floordiv": operator.floordiv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "fmod": math.fmod,
    "neg": operator.neg,
    "pow": operator.pow,
    "abs": abs,
    "floor": _floor,
    "ceil": _ceil,
    "sqrt": math.sqrt,
    "log": math.log,
    "exp": math.exp,
    "eq": _equal,
    "ne": lambda a, b: _negated(_equal(a, b)) if isinstance(a, torch.dtype) or isinstance(b, torch.dtype) else a != b,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "min": _smallest,
    "max": _largest,
    "add_": _extend,
    "slice": _sliced,
    "copy": list,
    "detach": lambda value: value,
    "clone": lambda value, memory_format=None: value,
}
