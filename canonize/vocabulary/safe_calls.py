"""Functions and methods that a file may name: those that compute on tensors and do nothing else.

torch itself lists what computes on tensors (``torch.overrides``) and gives every ATen operator a schema. Whatever
writes in place, reads or writes files, takes functions, or reaches the interpreter is outside.
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from canonize.compat.private import HOMES
from canonize.errors import LoadError

_OPERATORS = {
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "neg", "pos", "abs", "invert", "not_"),
    *("lt", "le", "gt", "ge", "eq", "ne", "and_", "or_", "xor", "lshift", "rshift", "getitem"),
}
# They make tensors from numbers, or ask for sizes; torch does not list them, for no tensor goes in.
_TORCH = {
    *("arange", "zeros", "ones", "full", "empty", "eye", "linspace", "scalar_tensor", "_assert"),
    *("as_tensor", "tensor", "finfo", "iinfo"),
    *("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_sum", "sym_ite", "sym_sqrt"),
}
_SEQUENCES = {"pack_padded_sequence", "pad_packed_sequence", "pad_sequence", "pack_sequence", "unpad_sequence"}
_ATEN_FACTORIES = {"arange", "zeros", "ones", "full", "empty", "eye", "linspace", "scalar_tensor", "einsum"}
_METHODS = {"size", "dim", "numel", "__getitem__", "type", "is_floating_point", "is_complex",
            "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"}  # fmt: skip
# On numbers that come from sizes.
_BUILTINS = {"max", "min", "abs", "round", "len", "int", "float", "bool", "sum"}
_MATH = {"ceil", "floor", "trunc", "sqrt", "isqrt", "prod", "log", "log2", "log10", "exp", "pow", "gcd", "fabs"}
# Families of torch's functions: where they live, and how their own names begin.
_NN = HOMES["torch._C._nn"]
_FAMILIES = {"linalg": torch.linalg, "fft": torch.fft, "special": torch.special}
_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "T", "mT", "H", "mH", "real", "imag", "is_cuda", "itemsize",
               "min", "max", "eps", "tiny", "smallest_normal", "bits"}  # fmt: skip
# Listed by torch among what computes on tensors, though they reach further.
_NEVER = {
    *("apply", "map", "map2", "backward", "register_hook", "numpy", "tolist", "storage", "untyped_storage"),
    *("data_ptr", "module_load", "share_memory", "pin_memory", "requires_grad", "retain_grad", "set", "resize"),
    *("resize_as", "record_stream", "register_post_accumulate_grad_hook", "const_data_ptr", "storage_type"),
    *("save", "load", "from_file", "as_subclass", "compile", "cond", "while_loop", "to_mkldnn", "names", "rename"),
    *("align_to", "align_as", "refine_names", "autocast", "lobpcg", "triplet_margin_with_distance_loss"),
}
# They take memory apart that only their own kin has packed.
_FOREIGN = ("fbgemm", "miopen", "cudnn", "mkldnn", "quantize", "fake_quantize", "choose_qparams", "fused_moving")
# ATen's own names for what the graphs of torch.export hold.
_ATEN_INNER = {
    *("_softmax", "_log_softmax", "_to_copy", "_unsafe_view", "_unsafe_index", "_native_batch_norm_legit_no_training"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_native_batch_norm_legit", "_prelu_kernel", "_cdist_forward"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
}


def callable_named(name: Any) -> Callable[..., Any]:
    """The function behind a name that a file gives.

    Raises
    ------
    LoadError
        If it is not known to be harmless.
    """
    found = _find(name) if isinstance(name, str) else None
    if found is None:
        raise LoadError(
            f"the graph calls {str(name)[:80]!r}, which a file may not bring in unasked",
            hint="If you made the file yourself: --trust, or load(path, trust=True)",
        )
    return found


def name_of(function: Any) -> str | None:
    """The name that `callable_named` finds a function by; None where there is none."""
    if isinstance(function, torch._ops.OpOverload):
        namespace, _, name = function._schema.name.partition("::")
        candidates = [f"torch.ops.{namespace}.{name}.{function._overloadname}"]
    else:
        own = next((n for n in _functional() if getattr(F, n) is function), getattr(function, "__name__", ""))
        candidates = [f"{home}.{own}" for home in _HOMES]
    return next((name for name in candidates if _find(name) is function), None)


def is_safe_method(name: Any) -> bool:
    """Whether a method of tensors only computes."""
    return isinstance(name, str) and (name in _METHODS or name in _listed()[torch.Tensor])


def is_safe_call(target: Any, args: Any) -> bool:
    """Whether a ``canonize.nn.Call`` with this target calls only what a file may name."""
    if not isinstance(target, str):
        return False
    if target.startswith("."):
        return is_safe_method(target[1:])
    if target == "builtins.getattr":
        return isinstance(args, tuple) and len(args) == 2 and args[1] in _ATTRIBUTES
    return _find(target) is not None


_HOMES: dict[str, Any] = {
    "operator": operator,
    "torch": torch,
    "torch.nn.functional": F,
    "torch._C._nn": _NN,
    "builtins": builtins,
    "math": math,
    **{f"torch._C._{family}": None for family in _FAMILIES},
    "canonize.nn": None,
}


def _find(name: str) -> Callable[..., Any] | None:
    home, _, own = name.rpartition(".")
    if home in ("operator", "_operator"):
        return getattr(operator, own) if own in _OPERATORS else None
    if home.startswith("torch.ops.aten."):
        return _aten(home.removeprefix("torch.ops.aten."), own)
    if home == "torch.nn.utils.rnn" and own in _SEQUENCES:
        return getattr(torch.nn.utils.rnn, own, None)
    if home == "torch" and own in _TORCH:
        return getattr(torch, own, None)
    if home in ("torch", "torch.nn.functional", "torch._C._nn"):
        return getattr(_HOMES[home], own, None) if own in _listed()[_HOMES[home]] else None
    if home == "builtins" and own in _BUILTINS:
        return _function(builtins, own)
    if home == "math" and own in _MATH:
        return _function(math, own)
    if home.startswith("torch._C._") and home.removeprefix("torch._C._") in _FAMILIES:
        return _of_family(home.removeprefix("torch._C._"), own)
    if name == "builtins.getattr":
        return getattr
    if name == "canonize.nn.assign":
        from canonize.nn import assign

        return assign
    return None


def _function(home: Any, own: str) -> Callable[..., Any] | None:
    function: Callable[..., Any] | None = getattr(home, own, None)
    return function


def _of_family(family: str, own: str) -> Callable[..., Any] | None:
    """``linalg_vector_norm``, which is what ``torch.linalg.vector_norm`` is called where it is defined."""
    functions = torch.overrides.get_overridable_functions().get(_FAMILIES[family], [])
    known = any(getattr(function, "__name__", "") == own for function in functions)
    return getattr(HOMES[f"torch._C._{family}"], own, None) if known and _is_pure(own) else None


def _aten(packet: str, overload: str) -> Callable[..., Any] | None:
    # An operator that works in place computes as well; what it may not do is told by its name without the underscore.
    base = packet.removesuffix("_")
    is_operator = packet.startswith("__") and packet.strip("_") in {name.strip("_") for name in _OPERATORS}
    if not packet.isidentifier() or not (_is_pure(base) or packet in _ATEN_INNER or is_operator):
        return None
    operation = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if not isinstance(operation, torch._ops.OpOverload) or (operation._schema.is_mutable and base == packet):
        return None
    types = [str(argument.type) for argument in operation._schema.arguments]
    computes = bool(types) and "Tensor" in types[0]
    return operation if computes or packet in _ATEN_FACTORIES else None


@functools.cache
def _listed() -> dict[Any, set[str]]:
    """Names of the functions on tensors, for each place they live in, by torch's own list."""
    found: dict[Any, set[str]] = {place: set() for place in (torch, F, _NN, torch.Tensor)}
    for place, functions in torch.overrides.get_overridable_functions().items():
        home = F if place is torch.functional else place
        for function in functions:
            name = getattr(function, "__name__", "")
            if _is_pure(name):
                for target in [home] if home in found else []:
                    found[target].add(name)
    for place in (torch, F, _NN):
        known = found[torch] | found[F] | found[_NN]
        found[place] |= {name for name in known if callable(getattr(place, name, None))}
    # Functional spellings that torch lists under another name.
    found[F] |= {name for name in _functional() if hasattr(F, name)}
    return found


def _functional() -> set[str]:
    pools = {f"{kind}_pool{d}d" for d in (1, 2, 3) for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp")}
    return pools | {f"fractional_max_pool{d}d" for d in (2, 3)} | {"upsample", "interpolate", "pad"}


def _is_pure(name: str) -> bool:
    return bool(name) and not name.startswith(("_", *_FOREIGN)) and not name.endswith("_") and name not in _NEVER
