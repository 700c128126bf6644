"""AttnLRP on a vision transformer with zennit's rules: attention opened, a rule on every part of it.

The model is a small torchvision ViT with random weights; give it yours.
"""

from __future__ import annotations

import torch
from torch import nn

import canonize
from canonize.compat import import_torchvision
from canonize.explain import Choices, attribute
from canonize.explain.structure import MatrixProduct


def vision_transformer() -> nn.Module:
    """A small ViT whose head is not zero, as a new one's is."""
    module = import_torchvision("torchvision.models.vision_transformer")
    model: nn.Module = module.VisionTransformer(
        32, 8, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    nn.init.normal_(model.get_submodule("heads.head").weight)  # type: ignore[arg-type]
    return model.eval()


def main() -> None:
    """Explain one image by AttnLRP, by CP-LRP, and by rules that leave attention to the gradient."""
    torch.manual_seed(0)
    model, images = vision_transformer(), torch.rand(1, 3, 32, 32)
    canonical = canonize.canonize(model, images, forms=["open_attention"])
    layers = [module for module in canonical.modules() if isinstance(module, MatrixProduct | nn.Softmax | nn.LayerNorm)]
    print(len(layers), "matrix products, softmaxes and normalisations, each a module; affines left:",
          sum(getattr(layer, "weight", None) is not None for layer in layers))  # fmt: skip

    # Gamma in the patch embedding and the linear layers (Achtibat et al. 2024), epsilon in the head.
    rules = {"conv_proj": ("gamma", {"gamma": 0.25}), "*mlp*": ("gamma", {"gamma": 0.05}), "heads.*": "epsilon"}
    for attention in ("attnlrp", "cplrp", "gradient"):
        found = attribute(canonical, images, method="epsilon", choices=Choices(attention=attention), layers=rules)
        print(f"{attention:8}  relevance that arrives: {float(found.heatmap().sum()):.3f}")


if __name__ == "__main__":
    main()
