r"""Attention, opened: projections, matrix products and softmax as modules of their own.

.. math:: \mathrm{attention}(Q, K, V) = \mathrm{softmax}(Q K^\top / \sqrt{d} + M)\, V

Rules for transformers (AttnLRP: Achtibat et al. 2024, arXiv 2402.05602) are attached to these parts.
``nn.MultiheadAttention`` and ``scaled_dot_product_attention`` compute them in one call. What cannot be opened stays,
with its reason in the report's notes: a mask that depends on the length or is boolean, weights that are read, keys of
its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.algebra.affine import EXACT, Affine
from canonize.algebra.exact import exact_parameter, exact_value
from canonize.graph.network import FrozenAffine, Network, Origin
from canonize.report.record import Rewrite
from canonize.rewrite.form import Form
from canonize.rewrite.journal import Journal
from canonize.vocabulary import resolve_module, row_of

_MULTIHEAD = (
    "query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal",
)  # fmt: skip


class OpenAttention(Form):
    """A module for each part of attention."""

    name = "open_attention"
    summary = "attention as projections, matrix products and softmax, each a module"

    def before(self, network: Network, journal: Journal) -> None:
        """Open every attention that can be; its projections then absorb what a LayerNorm hands on."""
        for node in list(network.graph.nodes):
            if journal.full:
                return
            module = network.module(node)
            if isinstance(module, nn.MultiheadAttention):
                reason = _open_multihead(network, node, module)
            elif isinstance(module, cnn.Call) and row_of(module).attends:
                reason = _open_product(network, node, module)
            else:
                continue
            if not reason:
                journal.add(Rewrite(self.name, str(node.target)))
            else:
                network.notes.append(f"the attention {node.target} was not opened: {reason}")


def _open_multihead(network: Network, node: fx.Node, module: nn.MultiheadAttention) -> str:
    """Open ``nn.MultiheadAttention``; why not, where it is left."""
    given = dict(zip(_MULTIHEAD, node.args, strict=False)) | dict(node.kwargs)
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        return "it adds keys and values of its own"
    if given.get("key_padding_mask") is not None:
        return "its padding is masked"
    if any(_index(user) != 0 for user in node.users):
        return "its weights are read"
    mask = given.get("attn_mask")
    if mask is not None and not _adds(network, mask, 2):
        return "its mask is boolean, or one for each head"
    sources: list[Any] = [given[name] for name in _MULTIHEAD[:3]]
    shapes = [network.shapes.shape(source) for source in sources]
    if any(shape is None or len(shape) != 3 for shape in shapes):
        return "its input is no batch of sequences"
    name = str(node.target)
    network.modules.pop(name)  # frees the name for what stands below it
    with network.graph.inserting_before(node):
        parts = []
        for part, source, (weight, bias) in zip(("query", "key", "value"), sources, _projections(module), strict=True):
            if not module.batch_first:
                source = _moved(network, f"{name}.{part}_batch", source, ".transpose", 0, 1)
            projected = network.call(f"{name}.{part}", _linear(weight, bias), (source,), node)
            heads = _moved(network, f"{name}.{part}_heads", projected, ".unflatten", -1, (module.num_heads, -1))
            parts.append(_moved(network, f"{name}.{part}_first", heads, ".transpose", -3, -2))
        query, key, value = parts
        mixed = _attention(network, node, f"{name}.", query, key, value, mask, module.head_dim**-0.5)
        mixed = _moved(network, f"{name}.heads_last", mixed, ".transpose", -3, -2)
        joined = network.call(f"{name}.join", nn.Flatten(-2, -1), (mixed,), node)
        bias = module.out_proj.bias if isinstance(module.out_proj.bias, Tensor) else None
        output = network.call(f"{name}.out_proj", _linear(module.out_proj.weight, bias), (joined,), node)
        if not module.batch_first:
            output = _moved(network, f"{name}.sequence_first", output, ".transpose", 0, 1)
    for user in list(node.users):
        network.rewire_readers(user, output)
        network.remove(user)
    network.remove(node)
    return ""


def _index(user: fx.Node) -> Any:
    return user.args[1] if user.op == "call_function" and getattr(user.target, "__name__", "") == "getitem" else None


def _projections(module: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of query, key and value."""
    packed: Any = module.in_proj_weight
    biases: Any = [None] * 3 if module.in_proj_bias is None else _split(module.in_proj_bias)
    weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight] if packed is None else _split(packed)
    return list(zip(weights, biases, strict=True))


def _split(packed: Tensor) -> list[Tensor]:
    """Thirds of a parameter that remember its float64 value, if it has one."""
    return [exact_parameter(part, packed) for part in exact_value(packed).chunk(3)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    if bias is not None:
        layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)
    return layer


def _moved(network: Network, name: str, source: fx.Node, method: str, *arguments: Any) -> fx.Node:
    return network.call(name, cnn.Rearrange(method, (cnn.Slot(0), *arguments)), (source,), source)


def _adds(network: Network, mask: Any, dims: int | None = None) -> bool:
    """Whether a mask is a floating tensor, which is added."""
    if not isinstance(mask, fx.Node) or not network.shapes.is_floating(mask):
        return False
    shape = network.shapes.shape(mask)
    return dims is None or (shape is not None and len(shape) == dims)


def _open_product(network: Network, node: fx.Node, module: cnn.Call) -> str:
    """Open one call of ``scaled_dot_product_attention``; why not, where it is left."""
    operation = resolve_module(module)
    if operation is None or operation.name != "scaled_dot_product_attention":
        return "it is no plain product of queries, keys and values"
    given = operation.bound
    if given.get("enable_gqa"):
        return "it shares keys among groups of queries"
    if given.get("is_causal"):
        return "its mask depends on the length"
    if not all(isinstance(given[name], cnn.Slot) for name in _MULTIHEAD[:3]):
        return "an operand is fixed"
    query, key, value = (node.args[given[name].index] for name in _MULTIHEAD[:3])
    mask = given.get("attn_mask")
    held = node.args[mask.index] if isinstance(mask, cnn.Slot) else mask
    if mask is not None and not _adds(network, held):
        return "its mask is boolean"
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value, fx.Node)
    shape = network.shapes.shape(query)
    if shape is None or (given.get("scale") is not None and not isinstance(given["scale"], int | float)):
        return "its scale is not known"
    owner = str(node.target).rpartition(".")[0]
    with network.graph.inserting_before(node):
        scale = float(given.get("scale") or shape[-1] ** -0.5)
        mixed = _attention(network, node, f"{owner}." if owner else "", query, key, value, held, scale)
    network.rewire_readers(node, mixed)
    network.remove(node)
    return ""


def _attention(
    network: Network, node: fx.Node, prefix: str, query: fx.Node, key: fx.Node, value: fx.Node, mask: Any, scale: float
) -> fx.Node:
    """Scale, product, mask, softmax, product; the scale is an affine that the query's projection absorbs."""
    ndim = len(network.shapes.shape(query) or ())
    ones = torch.ones((1,) * ndim, dtype=EXACT, device=network.device)
    frozen = FrozenAffine(Affine(ones * scale, ones * 0), [Origin(f"{prefix}scale", "attention scale")])
    scaled = network.call(f"{prefix}scale", frozen, (query,), node)
    turned = _moved(network, f"{prefix}key_transposed", key, ".transpose", -2, -1)
    product = (cnn.Slot(0), cnn.Slot(1))
    scores = network.call(f"{prefix}scores", cnn.Call("torch.matmul", product), (scaled, turned), node)
    if mask is not None:
        scores = network.call(f"{prefix}mask", cnn.Sum(), (scores, mask), node)
    weights = network.call(f"{prefix}softmax", nn.Softmax(-1), (scores,), node)
    return network.call(f"{prefix}mix", cnn.Call("torch.matmul", product), (weights, value), node)
