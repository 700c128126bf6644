r"""LayerNorm, RMSNorm, GroupNorm and InstanceNorm: what depends on the input stays, the affine behind it is split off.

.. math:: \mathrm{LN}(x) = \gamma \odot \hat x + \beta, \qquad \hat x = \frac{x - \mu(x)}{\sqrt{\sigma^2(x) + \epsilon}}

The layers behind can take :math:`\gamma, \beta` as they take a BatchNorm's (design of the canonical form, C1); the
division is no fixed affine and remains, as a layer without parameters.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, fx, nn

from canonize.algebra.affine import EXACT, Affine
from canonize.algebra.exact import exact_value
from canonize.capture.leaves import layer_class
from canonize.normalize.constants import FixedValue
from canonize.normalize.operations import Built, Context, Layer, is_node, operation, plain, running_statistics

INSTANCE_NORM = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
# They divide over their last dimensions, the others over positions.
_OVER_FEATURES = (nn.LayerNorm, nn.RMSNorm)
SPLIT = (*_OVER_FEATURES, nn.GroupNorm, *INSTANCE_NORM)


def split(module: nn.Module, ndim: int) -> tuple[nn.Module, Affine] | None:
    """A normalisation without its affine, and the affine; ``None`` where there is none per channel."""
    norm: Any = module
    if not isinstance(norm.weight, Tensor) or getattr(norm, "running_mean", None) is not None:
        return None
    if isinstance(module, _OVER_FEATURES) and len(module.normalized_shape) != 1:
        return None
    dim = ndim - 1 if isinstance(module, _OVER_FEATURES) else 1
    shape = [1] * ndim
    shape[dim] = -1
    scale = exact_value(norm.weight).to(EXACT)
    shift = exact_value(norm.bias).to(EXACT) if isinstance(getattr(norm, "bias", None), Tensor) else scale * 0
    core: Any = copy.copy(module)
    core.__class__ = layer_class(type(module))
    core.__dict__["_parameters"] = dict(norm._parameters) | dict.fromkeys(norm._parameters)
    if isinstance(module, _OVER_FEATURES):
        core.elementwise_affine = False
    else:
        core.affine = False
    return core, Affine(scale.reshape(shape), shift.reshape(shape))


@operation("layer_norm")
def layer_norm(
    ctx: Context, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5, **_: Any
) -> Built:
    """``F.layer_norm`` with fixed parameters, as the module."""
    if not is_node(input) or not plain(normalized_shape, eps):
        return None
    module: Any = nn.LayerNorm(normalized_shape, eps, elementwise_affine=False)
    return _with_parameters(module, input, weight, bias, "elementwise_affine")


@operation("rms_norm")
def rms_norm(ctx: Context, input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None, **_: Any) -> Built:
    """``F.rms_norm`` with a fixed weight, as the module."""
    if not is_node(input) or not plain(normalized_shape, eps):
        return None
    module: Any = nn.RMSNorm(normalized_shape, eps, elementwise_affine=False)
    return _with_parameters(module, input, weight, None, "elementwise_affine")


@operation("group_norm")
def group_norm(
    ctx: Context, input: Any, num_groups: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5, **_: Any
) -> Built:
    """``F.group_norm`` with fixed parameters, as the module."""
    shape = ctx.shapes.shape(input) if is_node(input) else None
    if shape is None or not plain(num_groups, eps):
        return None
    module: Any = nn.GroupNorm(num_groups, shape[1], eps, affine=False)
    return _with_parameters(module, input, weight, bias, "affine")


@operation("instance_norm")
def instance_norm(
    ctx: Context,
    input: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    use_input_stats: Any = True,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
    cudnn_enabled: Any = True,
) -> Built:
    """An instance norm: over the statistics of its input the module, over running ones an affine."""
    shape = ctx.shapes.shape(input) if is_node(input) else None
    if shape is None or len(shape) not in (3, 4, 5) or not plain(eps):
        return None
    if use_input_stats is False and running_mean is not None:
        return running_statistics(ctx, input, weight, bias, running_mean, running_var, eps)
    if use_input_stats is not True or running_mean is not None or running_var is not None:
        return None
    cls: Any = INSTANCE_NORM[len(shape) - 3]
    return _with_parameters(cls(shape[1], eps=eps), input, weight, bias, "affine")


def _with_parameters(module: Any, input: fx.Node, weight: Any, bias: Any, flag: str) -> Built:
    owner = ""
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        if not isinstance(value, FixedValue) or not value.is_tensor:
            return None
        own = isinstance(value.value, nn.Parameter)
        module._parameters[name] = value.value if own else nn.Parameter(value.value.detach(), requires_grad=False)
        setattr(module, flag, True)
        owner = owner or value.name.rpartition(".")[0]
    if bias is not None and weight is None:
        return None
    return Layer(module, (input,), owner)
