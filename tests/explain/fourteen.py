"""``python -m tests.explain.fourteen``: ours beside the published canonizations, 64 pixels, float64.

VGG-16-BN, ResNet-18, EfficientNet-B0 and DenseNet-121 by three methods, a Relation Network by two, and the untangled
DenseNet-121. Weights are drawn, statistics are hard ones.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import canonize
from canonize.explain import attribute
from canonize.explain.libraries import require
from tests.statistics import calibrate, harden
from tests.zoo.relation_network import RelationNetwork, Sizes

ARCHITECTURES = {
    "VGG": "vgg16_bn",
    "ResNet": "resnet18",
    "EfficientNet": "efficientnet_b0",
    "DenseNet": "densenet121",
}
TARGETS = torch.tensor([3, 7])


def classifiers(published: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name of a cell, our heatmap, theirs."""
    architectures = importlib.import_module("torchvision.models")
    for family, name in ARCHITECTURES.items():
        torch.manual_seed(0)
        model = getattr(architectures, name)(weights=None).double().eval()
        harden(model, zero=False, tiny=False)
        images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        calibrate(model, images)
        forms = [("threshold", published.CANONIZED[family](model), {})]
        if family == "DenseNet":
            forms.append(("untangle", published.Untangled(model), {"pool": "gradient"}))
        for strategy, theirs, choices in forms:
            ours = canonize.canonize(model, images, strategy=strategy, verify=False)
            for method, composite in published.METHODS.items():
                found = attribute(ours, images, TARGETS, method=method, choices=choices).relevance
                assert isinstance(found, Tensor)
                yield f"{name} {strategy}", found, published.relevance(theirs, composite(), images, TARGETS)


def relation_networks(published: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The same of the network of questions."""
    torch.manual_seed(0)
    sizes = Sizes(image=64)
    model = harden(RelationNetwork(sizes).double().eval(), zero=False, tiny=False)
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    asked = torch.randint(0, sizes.vocabulary, (2, 7)), torch.tensor([7, 4])
    ours = canonize.canonize(model, (image, *asked), verify=False)
    low, high = torch.zeros(1, 3, 1, 1).double(), torch.ones(1, 3, 1, 1).double()
    for padding in ("layer", "added"):
        theirs = published.relation_network(model, padding == "added")
        for method, composite, options in (
            ("excitation-backprop", published.METHODS["excitation-backprop"](), {}),
            ("lrp-custom", published.lrp_custom(low, high), {"low": low, "high": high}),
        ):
            choices = {"padding": padding}
            found = attribute(ours, (image, *asked), TARGETS, method=method, choices=choices, **options).relevance[0]
            assert found is not None
            name = f"relation network, padding {padding}, {method}"
            yield name, found, published.relevance(theirs, composite, image, TARGETS, *asked)


def main() -> None:
    """Print a line for each."""
    require("zennit")  # before what imports it
    alike = importlib.import_module("tests.explain.heatmaps")
    published = importlib.import_module("tests.explain.published")
    for cells in (classifiers(published), relation_networks(published)):
        for name, ours, theirs in cells:
            print(
                f"{name}: cosine {alike.cosine(ours, theirs):.9f}, difference {alike.difference(ours, theirs):.1e}",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
