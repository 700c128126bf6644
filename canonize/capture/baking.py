"""Evaluate what only computes a weight: weight norm, spectral norm and other parametrizations, embeddings' max_norm.

Works on the eval-mode copy of a model (``canonize.twins``); the original keeps its parametrizations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from canonize.algebra.affine import EXACT
from canonize.algebra.exact import exact_parameter
from canonize.twins.module_tree import named_modules


def bake_weights(root: nn.Module) -> None:
    """Replace every parametrized weight of ``root`` by its value, computed in float64.

    Covers ``torch.nn.utils.parametrize`` (and so the new weight and spectral norms) and the older hooks of
    ``torch.nn.utils.weight_norm`` and ``spectral_norm``; and embeddings with a ``max_norm``, whose forward would
    shorten the rows that it looks up, in the weight itself.
    """
    for _, module in named_modules(root):
        if "parametrizations" in module._modules and parametrize.is_parametrized(module):
            _bake_parametrizations(module)
        if module._forward_pre_hooks:
            for key, hook in list(module._forward_pre_hooks.items()):
                if is_weight_hook(hook):
                    _bake_hook(module, key, hook)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            _bake_max_norm(module)


def is_weight_hook(hook: Any) -> bool:
    """Whether a forward pre-hook only computes a weight: torch's weight norm, spectral norm and pruning."""
    named = type(hook).__name__ in ("WeightNorm", "SpectralNorm") and type(hook).__module__.startswith("torch.nn.utils")
    return named or isinstance(hook, BasePruningMethod)


def _bake_parametrizations(module: nn.Module) -> None:
    parametrizations: Any = module.parametrizations
    values = {}
    for name in list(parametrizations.keys()):
        values[name] = _evaluate_exactly(parametrizations[name])
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    for name, value in values.items():
        original = parametrizations[name].original if hasattr(parametrizations[name], "original") else None
        like = original if original is not None else parametrizations[name].original0
        module.register_parameter(name, exact_parameter(value, like))


def _evaluate_exactly(parametrization: nn.Module) -> Tensor:
    """Run a parametrization in float64; its parameters are shared, so they are cast in a copy."""
    import copy

    duplicate = copy.deepcopy(parametrization).to(EXACT)
    with torch.no_grad():
        value: Tensor = duplicate()
    return value


def _bake_hook(module: nn.Module, key: int, hook: Any) -> None:
    name = hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name
    cast = {
        n: p.detach().to(EXACT)
        for n, p in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }
    stand_in = nn.Module()
    for other, value in cast.items():
        stand_in.register_buffer(other, value)
    with torch.no_grad():
        if isinstance(hook, BasePruningMethod):
            value = hook.apply_mask(stand_in)
        elif type(hook).__name__ == "WeightNorm":
            value = hook.compute_weight(stand_in)
        else:
            value = hook.compute_weight(stand_in, do_power_iteration=False)
    del module._forward_pre_hooks[key]
    like = next(iter(module.parameters(recurse=False)))
    # The hook has left the computed weight behind as a plain attribute, next to its ingredients.
    vars(module).pop(name, None)
    for suffix in ("_g", "_v", "_orig", "_u", "_mask"):
        module._parameters.pop(name + suffix, None)
        module._buffers.pop(name + suffix, None)
    module.register_parameter(name, exact_parameter(value, like))


def _bake_max_norm(module: nn.Embedding | nn.EmbeddingBag) -> None:
    weight, most = module.weight, module.max_norm
    assert most is not None
    exact = weight.detach().to(EXACT)
    norm = torch.linalg.vector_norm(exact, ord=module.norm_type, dim=1, keepdim=True)
    # As in ATen's embedding_renorm_.
    shortened = torch.where(norm > most, exact * (most / (norm + 1e-7)), exact)
    module.max_norm = None
    if not torch.equal(shortened, exact):
        module.weight = exact_parameter(shortened, weight)
