"""``.pt2``: what holds tensors and operators alone is read, what could run something is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import canonize
from canonize.errors import LoadError
from canonize.loading import load


class Sizes(nn.Module):
    """Computes with its sizes, has a buffer and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.register_buffer("shift", torch.randn(2, 1, 1))

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        y = self.conv(x) + self.shift
        return {"flat": y.reshape(y.shape[0] * 2, -1), "list": [y * scale][0]}


def saved(path: Path) -> nn.Module:
    torch.manual_seed(0)
    model = Sizes().eval()
    shapes = {"x": {0: torch.export.Dim("batch", min=1)}, "scale": {0: torch.export.Dim("batch", min=1)}}
    inputs = (torch.randn(2, 1, 5, 5), torch.randn(2, 1, 1, 1))
    torch.export.save(torch.export.export(model, inputs, dynamic_shapes=shapes), path)
    return model


def rewrite(path: Path, edit: Callable[[dict[str, bytes]], Any]) -> None:
    """Change the entries of an archive, by their names without the folder in front."""
    with zipfile.ZipFile(path) as old:
        entries = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    edit(entries)
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            new.writestr(f"m/{name}", content)


def in_model(change: Callable[[Any], Any]) -> Callable[[dict[str, bytes]], Any]:
    def edit(entries: dict[str, bytes]) -> None:
        data = json.loads(entries["models/model.json"])
        change(data)
        entries["models/model.json"] = json.dumps(data).encode()

    return edit


def replaced(old: str, new: str) -> Callable[[dict[str, bytes]], Any]:
    def edit(entries: dict[str, bytes]) -> None:
        text = entries["models/model.json"].decode()
        assert old in text
        entries["models/model.json"] = text.replace(old, new).encode()

    return edit


class Touches:
    """Makes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_what_torch_exports_is_read(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.pt2")
    loaded = load(tmp_path / "m.pt2")
    for batch in (1, 4):
        x, scale = torch.randn(batch, 1, 5, 5), torch.randn(batch, 1, 1, 1)
        assert all(torch.equal(a, b) for a, b in zip(loaded(x, scale).values(), model(x, scale).values(), strict=True))


@pytest.mark.parametrize("trust", [False, True])
def test_other_sizes_than_those_of_the_program_are_refused(trust: bool, tmp_path: Path) -> None:
    saved(tmp_path / "m.pt2")
    loaded = load(tmp_path / "m.pt2", trust=trust)
    with pytest.raises(AssertionError, match="size 5 along dimension 2"):
        loaded(torch.randn(2, 1, 7, 5), torch.randn(2, 1, 1, 1))
    canonical = canonize.canonize(loaded, (torch.randn(2, 1, 5, 5), torch.randn(2, 1, 1, 1)))
    assert canonical(torch.randn(3, 1, 5, 5), torch.randn(3, 1, 1, 1))["flat"].shape == (6, 9)
    with pytest.raises(AssertionError):
        canonical(torch.randn(2, 1, 7, 5), torch.randn(2, 1, 1, 1))


def test_what_canonize_exports_is_read_and_can_be_verified(tmp_path: Path) -> None:
    x = torch.randn(2, 1, 8, 8)
    model = nn.Sequential(
        nn.ReLU(), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2)
    ).eval()
    canonical = canonize.canonize(model, x)
    canonize.save(canonical, tmp_path / "m.pt2", example_inputs=x)
    assert canonize.check_equivalence(model, load(tmp_path / "m.pt2"), x).passed
    extra = {"canonize.json": ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=extra)
    assert json.loads(extra["canonize.json"])["names"]["1"] is None


@pytest.mark.parametrize(
    "edit",
    [
        replaced("torch.ops.aten.conv2d.default", "torch.hub.load"),
        replaced("torch.ops.aten.conv2d.default", "torch.load"),
        replaced("torch.ops.aten.conv2d.default", "#custom"),
        replaced("torch.ops.aten.conv2d.default", "_operator.methodcaller"),
        replaced("torch.ops.aten.conv2d.default", "torch.ops.aten.set_.source_Tensor"),
        replaced("torch.ops.aten.conv2d.default", "torch.ops.higher_order.cond"),
        replaced(
            '"as_expr": {"expr_str": "', '"as_expr": {"expr_str": "__import__(\'os\').system(\'touch canary\') + '
        ),
        replaced('"as_expr": {"expr_str": "', '"as_expr": {"expr_str": "9**9**9 + '),
        replaced('"as_expr": {"expr_str": "', '"as_expr": {"expr_str": "().__class__ + '),
        replaced("conv.weight", "conv.weight;import os"),
        replaced("p_conv_weight", "x = open('canary', 'w')\\n    y"),
        replaced("builtins.dict", "collections.defaultdict"),
        replaced('"forward_arg_names": ["x"', '"forward_arg_names": ["x=open(1)"'),
        in_model(lambda data: data.update(surprise="import os; os.system('touch canary')")),
        in_model(lambda data: data["graph_module"]["signature"].update({"a b;": "c"})),
        lambda entries: entries.update({"data/aotinductor/model/x.so": b"\x7fELF"}),
        lambda entries: entries.update({"../canary": b"x"}),
        lambda entries: entries.update({"serialized_state_dict.pt": pickle.dumps(1)}),
        lambda entries: entries.update({"models/other.json": entries["models/model.json"]}),
        lambda entries: entries.update({"models/model.json": b"[" * 100_000}),
        lambda entries: entries.pop("models/model.json"),
        lambda entries: entries.pop("data/weights/weight_0"),
    ],
)
def test_what_could_run_something_is_refused(edit: Any, tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "m.pt2")
    rewrite(tmp_path / "m.pt2", edit)
    with pytest.raises(LoadError) as caught:
        load("m.pt2")
    assert "\n" not in str(caught.value) and os.listdir() == ["m.pt2"]
    assert capfd.readouterr().err == ""


def hostile(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Touches(path), buffer)
    return buffer.getvalue()


def as_pickle(entries: dict[str, bytes], content: bytes) -> None:
    name = next(n for n in entries if n.endswith("weights_config.json"))
    config = json.loads(entries[name])
    next(iter(config["config"].values()))["use_pickle"] = True
    entries[name] = json.dumps(config).encode()
    entries["data/weights/weight_0"] = content


@pytest.mark.parametrize("place", ["inputs", "weights"])
def test_pickles_inside_run_only_with_trust(place: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    saved(tmp_path / "m.pt2")

    def plant(entries: dict[str, bytes]) -> None:
        if place == "inputs":
            entries["data/sample_inputs/model.pt"] = hostile(canary)
        else:
            as_pickle(entries, hostile(canary))

    rewrite(tmp_path / "m.pt2", plant)
    with pytest.raises(LoadError):
        load(tmp_path / "m.pt2")
    assert not canary.exists()
    with pytest.raises(LoadError):
        load(tmp_path / "m.pt2", trust=True)  # the planted code is real: it runs, and gives no tensor
    assert canary.exists()
