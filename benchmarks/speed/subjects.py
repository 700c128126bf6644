"""The models that are measured, with statistics as a training leaves them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.speed.row import Settings
from canonize.compat import import_torchvision
from tests.statistics import batch_norms, calibrate

SUBJECTS: dict[str, str] = {
    "VGG16-BN": "torchvision:vgg16_bn",
    "ResNet-50": "torchvision:resnet50",
    "DenseNet-121": "torchvision:densenet121",
    "EfficientNet-B0": "torchvision:efficientnet_b0",
    "RepVGG-A0": "timm:repvgg_a0",
    "LeViT-128": "timm:levit_128",
}
"""What the tables call a model, and what ``canonize`` calls it. Any other key of torchvision or timm will do, too."""

IMAGES = 4
"""That statistics are fitted to: of one small image the last layers see a single value, whose variance is 0."""


def build(subject: str, settings: Settings) -> tuple[nn.Module, Tensor]:
    """A model in eval mode and one image for it.

    BatchNorm weights are positive, shifts are not zero, running statistics are nearly those of the data: with the
    initial ones (mean 0, variance 1) activations of deep models fade or blow up, and arithmetic on denormal numbers
    is slow.
    """
    library, _, name = SUBJECTS.get(subject, subject).partition(":")
    torch.manual_seed(settings.seed)
    if library == "timm":
        model: nn.Module = import_torchvision("timm").create_model(name, pretrained=False)
    else:
        model = import_torchvision().models.get_model(name, weights=None)
    images = torch.randn(IMAGES, 3, settings.edge, settings.edge)
    with torch.no_grad():
        for _, layer in batch_norms(model.eval()):
            if isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.1)
    return calibrate(model, images, seed=settings.seed, floor=0.05, disturbance=0.1), images[:1].clone()
