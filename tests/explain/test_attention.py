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
    canonical = canonize.canonize(model, images, forms=["open_attention"], verify=False)
    with torch.no_grad():
        wanted = model(images)
        assert (canonical(images) - wanted).abs().max() / wanted.abs().max() < 1e-10
    layers = dict(canonical.named_modules())
    assert sum(map(is_matrix_product, layers.values())) == products
    assert sum(isinstance(layer, nn.Softmax) for layer in layers.values()) == products // 2
    assert not any(isinstance(layer, nn.MultiheadAttention) for layer in layers.values())
    assert not any("attention" in str(getattr(layer, "target", "")) for layer in layers.values())
    for choices in (Choices(), Choices(attention="cplrp")):
        found = attribute(canonical, images, method="epsilon", choices=choices).relevance
        assert isinstance(found, Tensor) and found.isfinite().all() and (found != 0).any()


@pytest.mark.parametrize("name", ["torchvision ViT", "timm ViT"])
def test_no_affine_is_left_in_a_vision_transformer(name: str) -> None:
    model = hard(MODELS[name][0]())
    canonical = canonize.canonize(model, torch.randn(2, 3, 32, 32, dtype=torch.float64), forms=["open_attention"])
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
    canonical = canonize.canonize(layer, x, forms=["open_attention"])
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


class Attending(nn.Module):
    """``nn.MultiheadAttention`` of three inputs."""

    def __init__(self, batch_first: bool, widths: tuple[int, int], **options: Any) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=batch_first, kdim=widths[0], vdim=widths[1], **options)
        if self.inner.in_proj_bias is not None:
            nn.init.normal_(self.inner.in_proj_bias)
            nn.init.normal_(self.inner.out_proj.bias)
        self.mask: Tensor | None = None

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output: Tensor = self.inner(query, key, value, attn_mask=self.mask, need_weights=False)[0]
        return output


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("widths", [(8, 8), (6, 5)])
@pytest.mark.parametrize("options", [{}, {"bias": False}])
def test_open_multihead_attention_answers_as_the_closed_one(
    batch_first: bool, widths: tuple[int, int], options: dict[str, Any]
) -> None:
    model = Attending(batch_first, widths, **options).double().eval()
    inputs = tuple(torch.randn(3, 4, n, dtype=torch.float64) for n in (8, *widths))
    opened = canonize.canonize(model, inputs, forms=["open_attention"], verify=False)
    assert not any(isinstance(layer, nn.MultiheadAttention) for layer in opened.modules()), opened.report.notes
    with torch.no_grad():
        wanted = model(*inputs)
        assert (opened(*inputs) - wanted).abs().max() / wanted.abs().max() < 1e-10
        other = tuple(torch.randn(3, 9, n, dtype=torch.float64) for n in (8, *widths))  # of another length
        assert (opened(*other) - model(*other)).abs().max() / model(*other).abs().max() < 1e-10
    assert isinstance(opened.get_submodule("inner.query"), nn.Linear)
    assert isinstance(opened.get_submodule("inner.softmax"), nn.Softmax)


@pytest.mark.parametrize(
    ("options", "mask", "reason"),
    [
        ({"add_bias_kv": True}, None, "keys and values of its own"),
        ({}, torch.ones(4, 4, dtype=torch.bool).triu(1), "its mask is boolean"),
    ],
)
def test_attention_that_is_not_opened_is_noted_and_stays_right(
    options: dict[str, Any], mask: Tensor | None, reason: str
) -> None:
    model = Attending(True, (8, 8), **options).eval()
    model.mask = mask
    canonical = canonize.canonize(model, tuple(torch.randn(2, 4, 8) for _ in range(3)), forms=["open_attention"])
    assert reason in " ".join(canonical.report.notes) and canonical.report.verdict.passed


def test_weights_that_are_read_keep_attention_closed() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            output, weights = self.inner(x, x, x)
            return output, weights

    canonical = canonize.canonize(Reading(), torch.randn(2, 4, 8), forms=["open_attention"])
    assert "its weights are read" in " ".join(canonical.report.notes)


def test_a_product_with_a_mask_of_the_length_stays() -> None:
    class Causal(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    report = canonize.canonize(Causal(), torch.randn(2, 5, 4), forms=["open_attention"]).report
    assert "its mask depends on the length" in " ".join(report.notes)


def test_a_mask_that_is_added_becomes_a_sum() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask, scale=0.3)

    canonical = canonize.canonize(
        Masked(), (torch.randn(2, 5, 4), torch.randn(2, 5, 5)), forms=["open_attention"]
    )  # fmt: skip
    assert sum(is_matrix_product(layer) for layer in canonical.modules()) == 2
    assert sum(type(layer).__name__ == "Sum" for layer in canonical.modules()) == 1


def test_the_model_is_not_changed() -> None:
    model = vit().eval()
    before = [(name, module, type(module)) for name, module in model.named_modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    canonize.canonize(model, torch.randn(2, 3, 32, 32), forms=["open_attention"], verify=False)
    assert before == [(name, module, type(module)) for name, module in model.named_modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
