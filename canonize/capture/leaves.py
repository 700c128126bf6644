"""Which modules are one operation, and of which class of torch they are."""

from __future__ import annotations

import functools
from typing import Any

from torch import fx, nn

# What a subclass of a torch layer may define and still be the layer it inherits from.
_HARMLESS = {
    "__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__constants__", "__static_attributes__",
    "__firstlineno__", "__parameters__", "__annotations_cache__", "__annotate_func__", "extra_repr", "__repr__",
    "reset_parameters",
}  # fmt: skip


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one operation: a layer of torch or of canonize, as its class defines it."""
    if "forward" in module.__dict__ or isinstance(module, nn.Sequential | fx.GraphModule):
        return False
    kind: Any = type(module)
    return _is_layer(kind)


@functools.lru_cache(maxsize=4096)
def _is_layer(kind: Any) -> bool:
    layer = layer_class(kind)
    own = {name for cls in kind.__mro__[: kind.__mro__.index(layer)] for name in vars(cls)}
    return layer is not nn.Module and not (own - _HARMLESS) & set(_attributes(layer))


def layer_class(kind: Any) -> Any:
    """The class of torch or canonize that a class of modules is, or inherits from."""
    homes = ("torch.nn", "torch.ao.nn")
    return next(c for c in kind.__mro__ if c.__module__.startswith(homes) or c.__module__ == "canonize.nn")


def _attributes(cls: type) -> set[str]:
    return {name for base in cls.__mro__ if base is not object for name in vars(base)}
