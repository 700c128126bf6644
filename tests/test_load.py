"""Loading: everything people save, and nothing that a file should not do."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from canonize.compat import import_torchvision
from canonize.errors import LoadError
from canonize.loading import load, load_with_notes
from canonize.loading.checkpoint import fit

models = import_torchvision("torchvision.models")
timm = import_torchvision("timm")


def small_densenet(classes: int = 7) -> nn.Module:
    torch.manual_seed(0)
    return models.DenseNet(8, (2, 2), 8, num_classes=classes)


def same(a: nn.Module, b: nn.Module, side: int = 32) -> None:
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert torch.equal(a.eval()(x), b.eval()(x))


@pytest.mark.parametrize(
    "build",
    [
        small_densenet,
        lambda: timm.create_model("resnet10t", num_classes=3),
        lambda: models.mobilenet_v3_small(num_classes=2),
        lambda: models.VisionTransformer(32, 16, 1, 2, 8, 16, norm_layer=partial(nn.LayerNorm, eps=1e-6)),
        lambda: nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))),
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3))),
        lambda: nn.DataParallel(nn.Conv2d(3, 4, 3)),
    ],
)
def test_whole_modules_load_without_trust(build: Any, tmp_path: Path) -> None:
    model = build()
    torch.save(model, tmp_path / "m.pt")
    loaded = load(tmp_path / "m.pt")
    assert not isinstance(loaded, nn.DataParallel)
    same(model, loaded)


def test_a_module_inside_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": nn.Conv2d(3, 4, 3)}, tmp_path / "m.pt")
    loaded = load_with_notes(tmp_path / "m.pt", "torchvision:resnet18")
    assert isinstance(loaded.model, nn.Conv2d)
    assert "'model'" in loaded.notes[0] and "not needed" in loaded.notes[1]


class Shell:
    """Runs a command when unpickled."""

    def __init__(self, mark: Path, via: str) -> None:
        self.mark, self.via = mark, via

    def __reduce__(self) -> Any:
        code = f"open({str(self.mark)!r}, 'w').close()"
        if self.via == "exec":
            return (exec, (code,))
        if self.via == "system":
            import os

            return (os.system, (f"touch {self.mark}",))
        return (partial(exec, code), ())


@pytest.mark.parametrize("via", ["exec", "system", "partial"])
@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_in_a_file_runs_without_trust(via: str, legacy: bool, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    model = nn.Conv2d(1, 1, 1)
    model.extra = Shell(mark, via)  # type: ignore[assignment]
    torch.save(model, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(LoadError, match="trust"):
        load(tmp_path / "m.pt", allow=["builtins", "os", "posix"])
    assert not mark.exists()
    load(tmp_path / "m.pt", trust=True)  # the planted code is real: with trust it runs
    assert mark.exists()


MODULE = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = act
    def forward(self, x):
        return self.conv(x)
class Plain(Net):
    def __init__(self):
        super().__init__()
        del self.act
def act(x):
    return x
def needs(argument):
    return Net()
def number():
    return 3
def broken():
    raise RuntimeError("no such luck")
ready = Net()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_nets_for_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_nets_for_tests", raising=False)
    return "own_nets_for_tests"


def test_packages_of_the_user(package: str, tmp_path: Path) -> None:
    plain = load(f"{package}:Plain")
    torch.save(plain, tmp_path / "m.pt")
    with pytest.raises(LoadError, match=f"{package}.Plain.*--allow {package}.*--arch.*--trust"):
        load(tmp_path / "m.pt")
    same(plain, load(tmp_path / "m.pt", allow=[package]))


def test_functions_of_allowed_packages_stay_out(package: str, tmp_path: Path) -> None:
    torch.save(load(f"{package}:Net"), tmp_path / "m.pt")
    with pytest.raises(LoadError, match=f"{package}.act"):
        load(tmp_path / "m.pt", allow=[package])
    assert isinstance(load(tmp_path / "m.pt", trust=True), nn.Module)


def test_graph_modules_need_trust(tmp_path: Path) -> None:
    graph = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    torch.save(graph, tmp_path / "m.pt")
    with pytest.raises(LoadError, match=r"graph module.*trust=True"):
        load(tmp_path / "m.pt")
    same(graph, load(tmp_path / "m.pt", trust=True))


def test_classes_of_a_script(tmp_path: Path) -> None:
    script = "import torch\nclass Net(torch.nn.Conv2d): pass\ntorch.save(Net(1, 1, 1), 'm.pt')"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    with pytest.raises(LoadError, match=r"__main__\.Net.*--arch"):
        load(tmp_path / "m.pt")
    with pytest.raises(LoadError, match="not installed"):
        load(tmp_path / "m.pt", trust=True)


def wrapped(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + k: v for k, v in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "best": 0.5},
        lambda s: {"model": wrapped(s, "module.")},
        lambda s: {"model_state_dict": wrapped(s, "module._orig_mod.")},
        lambda s: wrapped(s, "net."),
        lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    ],
)
def test_state_dictionaries_in_every_wrapping(wrap: Any, tmp_path: Path) -> None:
    model = models.resnet18(num_classes=5)
    torch.save(wrap(dict(model.state_dict())), tmp_path / "m.pth")
    loaded = load_with_notes(tmp_path / "m.pth", "torchvision:resnet18")
    same(model, loaded.model)
    assert loaded.notes == ("built with num_classes=5, as in the file",)


def test_classes_and_channels_are_those_of_the_file(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=3, in_chans=1)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    loaded = load_with_notes(tmp_path / "m.pth", "timm:resnet10t")
    assert "num_classes=3, in_chans=1" in loaded.notes[0]
    x = torch.randn(1, 1, 64, 64)
    assert torch.equal(model.eval()(x), loaded.model.eval()(x))


def test_densenet_files_in_the_old_spelling() -> None:
    model = models.densenet121(num_classes=2)
    old = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if len(parts) > 4 and parts[2].startswith("denselayer"):
            parts[3] = f"{parts[3][:-1]}.{parts[3][-1]}"
        old[".".join(parts)] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    loaded, _ = fit(old, "torchvision:densenet121", Path("old.pth"))
    assert torch.equal(
        loaded.state_dict()["features.denseblock1.denselayer1.norm1.weight"],
        old["features.denseblock1.denselayer1.norm.1.weight"],
    )


def test_versions_of_modules_survive(tmp_path: Path) -> None:
    torch.save(models.mnasnet0_5().state_dict(), tmp_path / "m.pth")
    load(tmp_path / "m.pth", "torchvision:mnasnet0_5")


def test_safetensors_and_factories(package: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = load(f"{package}:Plain")
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    same(model, load(tmp_path / "m.safetensors", f"{package}:Plain"))
    assert isinstance(load(f"{package}:ready"), nn.Module)


def test_exported_programs(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, 32, 32),)), tmp_path / "m.pt2")
    x = torch.randn(2, 3, 32, 32)
    for trust in (False, True):
        assert torch.equal(load(tmp_path / "m.pt2", trust=trust)(x), model(x))


def test_architectures_by_name_say_that_weights_are_random() -> None:
    loaded = load_with_notes("torchvision:resnet18")
    assert isinstance(loaded.model, models.ResNet) and "random" in loaded.notes[0]


@pytest.mark.parametrize(
    ("source", "arch", "message"),
    [
        ("torchvision:densnet121", None, "densenet121"),
        ("timm:resnet10q", None, "resnet10t"),
        ("torchvision:resnet18", "timm:resnet10t", "architecture already"),
        ("absent_package.net:build", None, "no module absent_package"),
        ("own_nets_for_tests:Nett", None, "Did you mean Net"),
        ("own_nets_for_tests:needs", None, "without arguments"),
        ("own_nets_for_tests:number", None, "gives a int"),
        ("own_nets_for_tests:broken", None, "no such luck"),
        ("absent.pt", None, "no such file"),
        ("nowhere/absent.pt", None, "nowhere does not exist"),
    ],
)
def test_names_that_lead_nowhere(source: str, arch: str | None, message: str, package: str) -> None:
    with pytest.raises(LoadError, match=message):
        load(source, arch)


def cut(path: Path) -> None:
    torch.save(small_densenet(), path)
    path.write_bytes(path.read_bytes()[:20_000])


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), str(path))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("m.pt", lambda p: p.write_bytes(b""), "is empty"),
        ("m.pt", lambda p: p.mkdir(), "is a folder"),
        ("m.pt", cut, "truncated"),
        ("m.pt", lambda p: p.write_text("not a model"), "cannot be read"),
        ("m.pt", scripted, "TorchScript"),
        ("m.pt", lambda p: torch.save({"lr": 0.1}, p), "keys 'lr'"),
        ("m.pt", lambda p: torch.save([1, 2], p), "a list"),
        ("m.pt", lambda p: torch.save(nn.Conv2d(1, 1, 1).state_dict(), p), "--arch"),
        ("m.onnx", lambda p: p.write_bytes(b"x"), "no ONNX file"),
        ("m.pt2", lambda p: p.write_bytes(b"x"), "no .pt2 archive"),
        ("m.safetensors", lambda p: p.write_bytes(b"x"), "damaged"),
    ],
)
def test_files_that_are_no_models(name: str, make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(LoadError, match=message) as caught:
        load(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    state: dict[str, Tensor] = dict(models.resnet18().state_dict())
    state["surplus.weight"] = torch.zeros(1)
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(LoadError, match=r"1 missing \(layer1.0.conv1.weight\), 1 unexpected \(surplus.weight\)"):
        load(tmp_path / "m.pth", "torchvision:resnet18")
    with pytest.raises(LoadError, match="of another shape"):
        load(tmp_path / "m.pth", "torchvision:resnet50")
