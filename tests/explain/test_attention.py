"""Attention, opened: the same function, and a rule of AttnLRP on each part."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

import canonize
from canonize.explain import Choices, attribute
from canonize.explain.structure import is_matrix_product
from canonize.normalize.attention import OpenMultiheadAttention, window_mask, with_open_modules
from tests.explain.heatmaps import difference


def vit() -> nn.Module:
    """torchvision's, with ``nn.MultiheadAttention``; its head starts as zero."""
    model = VisionTransformer(32, 8, 2, 4, 16, 32, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "torchvision ViT": (vit, 32, 4),
    "timm ViT": (lambda: _timm("vit_tiny_patch16_224", depth=2, img_size=32, patch_size=8, num_classes=5), 32, 4),
    "torchvision Swin": (lambda: SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=5), 64, 8),
    "torchvision Swin, padded": (lambda: SwinTransformer([4, 4], 8, [2], [2], [4, 4], num_classes=5), 40, 4),
    "torchvision Swin 2": (
        lambda: SwinTransformer(
            [4, 4], 8, [2], [2], [4, 4], num_classes=5, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
        ),
        64,
        4,
    ),
    "timm Swin": (
        lambda: _timm(
            "swin_tiny_patch4_window7_224", img_size=56, depths=(2,), num_heads=(2,), embed_dim=8, num_classes=5
        ),
        56,
        4,
    ),
    "torchvision ConvNeXt": (
        lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5),
        32,
        0,
    ),
    "timm ConvNeXt": (lambda: _timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=5), 32, 0),
}  # fmt: skip


def _timm(name: str, **options: Any) -> nn.Module:
    model: nn.Module = timm.create_model(name, **options)
    return model


def hard(model: nn.Module) -> nn.Module:
    """Random affines, biases and tables: freshly built ones are 0 and 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "table" in name or "embed" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.5 + (1.0 if "weight" in name else 0.0))
    return model.double().eval()


@pytest.mark.parametrize("name", MODELS)
def test_opened_transformers_are_the_same_function_with_a_module_for_each_part(name: str) -> None:
    build, size, products = MODELS[name]
    model = hard(build())
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    canonical = canonize.canonize(model, images, open_attention=True, verify=False)
    with torch.no_grad():
        wanted = model(images)
        assert (canonical(images) - wanted).abs().max() / wanted.abs().max() < 1e-10
    layers = dict(canonical.named_modules())
    assert sum(map(is_matrix_product, layers.values())) == products
    assert sum(isinstance(layer, nn.Softmax) for layer in layers.values()) == products // 2
    assert not any(isinstance(layer, nn.MultiheadAttention) for layer in layers.values())
    assert not any("attention" in str(getattr(layer, "target", "")).removeprefix("canonize.normalize.attention")
                   for layer in layers.values())  # fmt: skip
    for choices in (Choices(), Choices(attention="cplrp")):
        found = attribute(canonical, images, method="epsilon", choices=choices).relevance
        assert isinstance(found, Tensor) and found.isfinite().all() and (found != 0).any()


@pytest.mark.parametrize("name", ["torchvision ViT", "timm ViT"])
def test_no_affine_is_left_in_a_vision_transformer(name: str) -> None:
    model = hard(MODELS[name][0]())
    canonical = canonize.canonize(model, torch.randn(2, 3, 32, 32, dtype=torch.float64), open_attention=True)
    assert canonical.report.verdict.passed and not canonical.report.findings
    norms = [layer for layer in canonical.modules() if isinstance(layer, nn.LayerNorm)]
    assert len(norms) == 5 and not any(layer.elementwise_affine for layer in norms)


def test_attnlrp_on_one_attention_layer_is_what_its_equations_say() -> None:
    """Achtibat et al. 2024, Eqs. 8 (linear), 13 (softmax) and 15 (products), written out."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(4, 6, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)).mean(1)

    torch.manual_seed(0)
    layer, x = Layer().double(), torch.randn(1, 5, 4, dtype=torch.float64)
    canonical = canonize.canonize(layer, x, open_attention=True)
    tiny = 1e-14
    found = attribute(canonical, x, 2, method="epsilon", epsilon=tiny, stabilizer=tiny).relevance
    assert isinstance(found, Tensor)
    with torch.no_grad():
        q, k, v = (part(x)[0] for part in (layer.q, layer.k, layer.v))
        scores = q @ k.T / math.sqrt(6)
        weights = scores.softmax(-1)
        mixed = weights @ v
        above = torch.zeros_like(mixed)
        above[:, 2] = mixed[:, 2] / mixed[:, 2].sum()  # the mean shares by contribution
        ratio = above / (2 * mixed)
        to_weights, to_values = weights * (ratio @ v.T), v * (weights.T @ ratio)
        to_scores = scores * (to_weights - weights * to_weights.sum(-1, keepdim=True))
        ratio = to_scores / (2 * scores)
        to_queries, to_keys = q * (ratio @ (k / math.sqrt(6))), k * (ratio.T @ (q / math.sqrt(6)))
        wanted = torch.zeros_like(x[0])
        for part, value, relevance in ((layer.q, q, to_queries), (layer.k, k, to_keys), (layer.v, v, to_values)):
            wanted += x[0] * ((relevance / value) @ part.weight)
    assert difference(found, wanted[None]) < 1e-8
    closed = attribute(canonical, x, 2, method="epsilon", choices=Choices(attention="gradient")).relevance
    assert isinstance(closed, Tensor) and difference(closed, wanted[None]) > 0.01


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("widths", [(8, 8), (6, 5)])
def test_open_multihead_attention_answers_as_the_closed_one(batch_first: bool, widths: tuple[int, int]) -> None:
    closed = nn.MultiheadAttention(8, 2, batch_first=batch_first, kdim=widths[0], vdim=widths[1]).double().eval()
    nn.init.normal_(closed.in_proj_bias)
    opened = OpenMultiheadAttention(closed)
    query, key, value = (torch.randn(3, 4, n, dtype=torch.float64) for n in (8, *widths))
    length = 4 if batch_first else 3
    batch = 7 - length
    causal = torch.ones(length, length, dtype=torch.bool).triu(1)
    padding = torch.zeros(batch, length, dtype=torch.bool)
    padding[:, -1] = True
    for more in (
        {},
        {"attn_mask": causal, "average_attn_weights": False},
        {"attn_mask": torch.randn(2 * batch, length, length, dtype=torch.float64), "key_padding_mask": padding},
        {"need_weights": False, "attn_mask": torch.randn(length, length, dtype=torch.float64)},
    ):
        options: dict[str, Any] = dict(more)
        if options.get("attn_mask") is not None and options["attn_mask"].is_floating_point():
            mask = options.get("key_padding_mask")
            if mask is not None:  # torch wants both masks of one type
                options["key_padding_mask"] = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask, -math.inf)
        wanted, got = closed(query, key, value, **options), opened(query, key, value, **options)
        assert torch.allclose(got[0], wanted[0], rtol=1e-10, atol=1e-12)
        assert (got[1] is None) is (wanted[1] is None)
        assert got[1] is None or torch.allclose(got[1], wanted[1], rtol=1e-10, atol=1e-12)
    assert (
        opened.key.weight.data_ptr()
        == (closed.in_proj_weight[8:] if widths == (8, 8) else closed.k_proj_weight).data_ptr()
    )


def test_what_is_not_opened_is_noted_and_stays_right() -> None:
    class Causal(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    report = canonize.canonize(Causal(), torch.randn(2, 5, 4), open_attention=True).report
    assert "its mask depends on the length" in " ".join(report.notes)
    _, notes = with_open_modules(nn.MultiheadAttention(8, 2, add_bias_kv=True))
    assert "keys and values of its own" in notes[0]


def test_the_model_is_not_changed() -> None:
    model = vit().eval()
    before = [(name, module, type(module)) for name, module in model.named_modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    canonize.canonize(model, torch.randn(2, 3, 32, 32), open_attention=True, verify=False)
    swin = SwinTransformer([4, 4], 8, [2], [2], [4, 4], num_classes=5).eval()
    types = [type(module) for module in swin.modules()]
    with_open_modules(swin)
    assert types == [type(module) for module in swin.modules()]
    assert before == [(name, module, type(module)) for name, module in model.named_modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_cyclic_shift_masks_what_was_not_beside_each_other() -> None:
    mask = window_mask(torch.zeros((), dtype=torch.float64), (2, 2), (2, 2), (1, 0))
    assert mask.shape == (4, 1, 4, 4) and mask.dtype == torch.float64
    assert not mask[:2].any(), "the upper windows hold neighbours"
    rows = torch.tensor([0, 0, 1, 1])
    assert torch.equal(mask[2, 0], (rows[:, None] != rows[None]) * -100.0)
