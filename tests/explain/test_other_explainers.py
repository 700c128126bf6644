"""Blocks have a layer that gives what they returned; the lines of docs/other-explainers.md run where the package is."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor, nn

import canonize
from canonize.errors import ExplainError
from canonize.explain.captum import LayerDeepLift
from canonize.explain.libraries import require
from tests.explain.families import FAMILIES, hardened
from tests.explain.heatmaps import difference

PAGE = Path(__file__).parents[2] / "docs" / "other-explainers.md"
PACKAGES = {
    "Grad-CAM and its kin": "pytorch_grad_cam",
    "Concept relevance (zennit-crp)": "crp",
    "LXT": "lxt",
    "Quantus": "quantus",
}


@pytest.mark.parametrize("title", PACKAGES)
def test_the_lines_of_the_page_run(title: str) -> None:
    if importlib.util.find_spec(PACKAGES[title]) is None:
        pytest.skip(f"{PACKAGES[title]} is not installed")
    text = PAGE.read_text(encoding="utf-8")
    first = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    section = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = re.search(r"^```py\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert first and lines
    names: dict[str, Any] = {}
    require("zennit")
    exec(first[1], names)
    exec(lines[1], names)


@pytest.mark.parametrize("strategy", ["threshold", "untangle"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_container_is_mapped_to_the_layer_that_gives_its_value(family: str, strategy: Any) -> None:
    model, images = hardened(FAMILIES[family], 32)
    canonical = canonize.canonize(model, images, strategy=strategy, verify=False)
    wanted, found = {}, {}

    def keeping(values: dict[str, Tensor], name: str) -> Callable[[Any, Any, Tensor], None]:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            values[name] = output.clone()  # what comes later may write into it

        return keep

    mapped = {name: layer for name, layer in canonical.report.containers.items() if layer is not None}
    holders = {name for name, module in model.named_modules() if name and list(module.children())}
    assert set(canonical.report.containers) == holders
    for name, layer in mapped.items():
        model.get_submodule(name).register_forward_hook(keeping(wanted, name))
        canonical.get_submodule(layer).register_forward_hook(keeping(found, name))
    with torch.no_grad():
        model(images)
        canonical(images)
    for name in wanted:
        assert found[name].shape == wanted[name].shape and difference(found[name], wanted[name]) < 1e-9, name
    if strategy == "threshold" and family in ("ResNet", "EfficientNet"):
        assert len(mapped) == len(holders), holders - set(mapped)


def test_layer_attributions_take_a_block_by_its_name() -> None:
    model, images = hardened(FAMILIES["ResNet"], 16)
    canonical = canonize.canonize(model, images, verify=False)
    found = LayerDeepLift(canonical, "layer2").attribute(images, torch.zeros_like(images), 1)
    layer = str(canonical.report.containers["layer2"])
    assert torch.equal(found, LayerDeepLift(canonical, layer).attribute(images, torch.zeros_like(images), 1))
    for one, own in ((model, "layer2"), (canonical, layer)):
        cam = captum.attr.LayerGradCam(one, one.get_submodule(own)).attribute(images, 1)
        assert cam.shape[1] == 1
    with pytest.raises(ExplainError, match="no layer nowhere"):
        LayerDeepLift(canonical, "nowhere")
