r"""Attention, opened: projections, matrix products and softmax as modules of their own, for rules to be attached to.

.. math:: \mathrm{attention}(Q, K, V) = \mathrm{softmax}(Q K^\top / \sqrt{d} + M)\, V

An optional normal form (``canonize.canonize(..., open_attention=True)``): it computes the same, a little slower, and
rules for transformers (AttnLRP, Achtibat et al. 2024, arXiv 2402.05602) need it. Three spellings are opened:

- ``nn.MultiheadAttention``, before the model is captured;
- torchvision's shifted window attention (Swin, versions 1 and 2), which hides itself from tracers, likewise;
- ``scaled_dot_product_attention``, wherever a captured graph calls it.

What is not opened stays, with the reason in the report's notes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.affine import EXACT, Affine
from canonize.capture.copying import eval_copy
from canonize.network import FrozenAffine, Network, Origin


def with_open_modules(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy of a model, in eval mode and sharing its tensors, whose attention modules are made of parts.

    Returns
    -------
    model : nn.Module
    notes : list of str
        Attention modules that were left, and why.
    """
    duplicate, notes = eval_copy(model), []
    for name, module in list(duplicate.named_modules()):
        made: nn.Module | None = None
        if type(module) is nn.MultiheadAttention:
            reason = _why_not(module)
            made = None if reason else OpenMultiheadAttention(module)
            notes += [f"the attention {name} was not opened: {reason}"] if reason else []
        elif type(module).__name__ in ("ShiftedWindowAttention", "ShiftedWindowAttentionV2"):
            made = opened_windows(module) if type(module).__module__.startswith("torchvision.") else None
        if made is not None:
            if not name:
                return made.eval(), notes
            owner, _, last = name.rpartition(".")
            duplicate.get_submodule(owner)._modules[last] = made.eval()
    return duplicate, notes


def _why_not(module: nn.MultiheadAttention) -> str:
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        return "it adds keys and values of its own"
    return ""


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer that shares the given tensors."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
    return layer


class OpenMultiheadAttention(nn.Module):
    """``nn.MultiheadAttention`` as four linear layers, two matrix products and a softmax.

    Parameters
    ----------
    attention : nn.MultiheadAttention
        Whose tensors it shares.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width = attention.embed_dim
        packed: Any = attention.in_proj_weight
        if packed is None:
            weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
        else:
            weights = list(packed.split(width))
        biases: list[Any] = [None] * 3
        if attention.in_proj_bias is not None:
            biases = list(attention.in_proj_bias.split(width))
        self.query, self.key, self.value = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.softmax = nn.Softmax(-1)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
        self.heads, self.batch_first, self.scale = attention.num_heads, attention.batch_first, attention.head_dim**-0.5

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``; ``is_causal`` is a hint about ``attn_mask`` there, and ignored here."""
        together = not self.batch_first and query.ndim == 3
        given = (self.query(query), self.key(key), self.value(value))
        q, k, v = (self._heads(part.transpose(0, 1) if together else part) for part in given)
        scores = torch.matmul(q * self.scale, k.transpose(-2, -1))
        if attn_mask is not None:
            if attn_mask.ndim == 3 and scores.ndim == 4:
                attn_mask = attn_mask.reshape(-1, self.heads, attn_mask.shape[1], attn_mask.shape[2])
            scores = masked(scores, attn_mask)
        if key_padding_mask is not None:
            padding = key_padding_mask[..., None, :]
            scores = masked(scores, padding[:, None] if scores.ndim == 4 else padding)
        weights = self.softmax(scores)
        joined = torch.matmul(weights, v).transpose(-3, -2).flatten(-2)
        output = self.out_proj(joined)
        output = output.transpose(0, 1) if together else output
        if not need_weights:
            return output, None
        return output, weights.mean(-3) if average_attn_weights else weights

    def _heads(self, part: Tensor) -> Tensor:
        """``(..., L, E)`` to ``(..., heads, L, E / heads)``."""
        heads: Tensor = part.unflatten(-1, (self.heads, -1))
        return heads.transpose(-3, -2)


def masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores with a mask: added, or minus infinity where a boolean one is true."""
    if mask.dtype == torch.bool:
        return scores.masked_fill(mask, -math.inf)
    return scores + mask


def opened_windows(attention: Any) -> nn.Module:
    """Window attention of torchvision, made a module that tracers see through; it is changed in place.

    What only parameters make (the position bias, the scale) stays in its ``forward``, to be evaluated in float64.
    """
    qkv = attention.qkv
    cosine = hasattr(attention, "logit_scale")
    if cosine and qkv.bias is not None:  # the keys of version 2 have no bias
        bias = qkv.bias.detach().clone()
        bias[len(bias) // 3 : 2 * len(bias) // 3] = 0
        attention.qkv = _linear(qkv.weight, bias)
    attention.register_buffer("like", torch.zeros((), dtype=qkv.weight.dtype, device=qkv.weight.device))
    attention.softmax, attention.cosine = nn.Softmax(-1), cosine
    attention.__class__ = type("OpenWindowAttention", (OpenWindowAttention, type(attention)), {})
    opened: nn.Module = attention
    return opened


class OpenWindowAttention(nn.Module):
    """Shifted window attention (Swin: Liu et al. 2021, and with cosine similarity 2022), as modules."""

    like: Tensor
    logit_scale: Tensor
    cosine: bool
    window_size: list[int]
    shift_size: list[int]
    num_heads: int
    qkv: nn.Linear
    proj: nn.Linear
    softmax: nn.Softmax
    get_relative_position_bias: Any

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C)`` to the same."""
        height, width = x.shape[1], x.shape[2]
        rows, columns = self.window_size
        below, beside = -height % rows, -width % columns
        if below > 0 or beside > 0:
            x = F.pad(x, (0, 0, 0, beside, 0, below))
        padded = (x.shape[1], x.shape[2])
        shift = tuple(
            0 if w >= size else s for w, s, size in zip(self.window_size, self.shift_size, padded, strict=True)
        )
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        grid = (padded[0] // rows, padded[1] // columns)
        channels = self.qkv.in_features
        x = x.reshape(-1, grid[0], rows, grid[1], columns, channels).permute(0, 1, 3, 2, 4, 5)
        x = self._within(x.reshape(-1, rows * columns, channels), grid, shift)
        x = x.reshape(-1, grid[0], grid[1], rows, columns, channels).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, padded[0], padded[1], channels)
        if any(shift):
            x = torch.roll(x, shift, (1, 2))
        if below > 0 or beside > 0:
            x = x[:, :height, :width]
        return x

    def _within(self, windows: Tensor, grid: tuple[int, int], shift: tuple[int, ...]) -> Tensor:
        """Attention within each window, ``(N * windows, positions, C)``."""
        positions, heads = self.window_size[0] * self.window_size[1], self.num_heads
        width = self.qkv.in_features // heads
        qkv = self.qkv(windows).reshape(-1, positions, 3, heads, width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.cosine:
            scores = torch.matmul(F.normalize(query, dim=-1), F.normalize(key, dim=-1).transpose(-2, -1))
            scores = scores * self.logit_scale.clamp(max=math.log(100.0)).exp()
        else:
            scores = torch.matmul(query * width**-0.5, key.transpose(-2, -1))
        scores = scores + self.get_relative_position_bias()
        if any(shift):
            mask = window_mask(self.like, grid, tuple(self.window_size), shift)
            scores = scores.reshape(-1, grid[0] * grid[1], heads, positions, positions) + mask
            scores = scores.reshape(-1, heads, positions, positions)
        joined = torch.matmul(self.softmax(scores), value).transpose(1, 2).reshape(-1, positions, self.qkv.in_features)
        mixed: Tensor = self.proj(joined)
        return mixed


@fx.wrap
def window_mask(like: Tensor, grid: tuple[int, int], window: tuple[int, ...], shift: tuple[int, ...]) -> Tensor:
    """-100 between positions that a cyclic shift has brought into one window from different sides of the image.

    Returns
    -------
    Tensor, shape (windows, 1, positions, positions)
        With the dtype and device of ``like``.
    """
    sides = []
    for count, size, moved in zip(grid, window, shift, strict=True):
        position = torch.arange(count * size, device=like.device)
        side = (position >= count * size - size).long() + (position >= count * size - moved).long()
        sides.append(side if moved else torch.zeros_like(side))
    region = 3 * sides[0][:, None] + sides[1][None, :]
    region = region.reshape(grid[0], window[0], grid[1], window[1]).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    apart = region[:, None, :] != region[:, :, None]
    return (apart * -100.0).to(like)[:, None]


# --------------------------------------------------------------------------- scaled_dot_product_attention

_CALLS = ("torch.nn.functional.scaled_dot_product_attention", "torch._C._nn.scaled_dot_product_attention",
          "torch.ops.aten.scaled_dot_product_attention.default")  # fmt: skip
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def open_products(network: Network) -> None:
    """Replace each call of ``scaled_dot_product_attention`` by its parts; what cannot be is noted."""
    for node in list(network.graph.nodes):
        module = network.module(node)
        if not isinstance(module, cnn.Call) or module.target not in _CALLS:
            continue
        reason = _open(network, node, module)
        if reason:
            network.notes.append(f"the attention {node.target} was not opened: {reason}")


def _open(network: Network, node: fx.Node, module: cnn.Call) -> str:
    """Open one call; why not, where it is left."""
    given = dict(zip(_ARGUMENTS, module.args, strict=False)) | module.kwargs
    tensors = [given[name] for name in _ARGUMENTS[:3]]
    if not all(isinstance(value, cnn.Slot) for value in tensors) or given.get("enable_gqa"):
        return "it shares keys among groups of queries" if given.get("enable_gqa") else "an operand is fixed"
    if given.get("is_causal"):
        return "its mask depends on the length"
    query, key, value = (node.args[slot.index] for slot in tensors)
    mask = given.get("attn_mask")
    held = node.args[mask.index] if isinstance(mask, cnn.Slot) else None
    if mask is not None and (not isinstance(held, fx.Node) or not network.shapes.is_floating(held)):
        return "its mask is boolean"
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value, fx.Node)
    shape = network.shapes.shape(query)
    if shape is None or (given.get("scale") is not None and not isinstance(given["scale"], int | float)):
        return "its scale is not known"
    scale = given.get("scale") or shape[-1] ** -0.5
    name = str(node.target)
    owner = name.rpartition(".")[0]
    prefix = f"{owner}." if owner else ""
    with network.graph.inserting_before(node):
        affine = Affine(
            torch.full((1,) * len(shape), float(scale), dtype=EXACT, device=network.device),
            torch.zeros((1,) * len(shape), dtype=EXACT, device=network.device),
        )
        origin = Origin(f"{prefix}scale", "attention scale")
        query = network.call(f"{prefix}scale", FrozenAffine(affine, [origin]), (query,), node)
        turned = network.call(
            f"{prefix}key_transpose", cnn.Rearrange(".transpose", (cnn.Slot(0), -2, -1)), (key,), node
        )  # fmt: skip
        product = (cnn.Slot(0), cnn.Slot(1))
        scores = network.call(f"{prefix}scores", cnn.Call("torch.matmul", product), (query, turned), node)
        if isinstance(held, fx.Node):
            scores = network.call(f"{prefix}mask", cnn.Sum(), (scores, held), node)
        weights = network.call(f"{prefix}softmax", nn.Softmax(-1), (scores,), node)
        mixed = network.call(f"{prefix}mix", cnn.Call("torch.matmul", product), (weights, value), node)
    node.replace_all_uses_with(mixed)
    network.remove(node)
    return ""
