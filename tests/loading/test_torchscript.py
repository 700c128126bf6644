"""TorchScript: the canonical form of the module it was made from, or a reason why not; and nothing without trust."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import canonize
from canonize.cli import main
from canonize.compat import import_torchvision
from canonize.errors import CanonizeError, CaptureError, LoadError, NotEquivalentError
from canonize.loading import load
from canonize.twins.torchscript import interpreted, translated
from tests.statistics import harden

models = import_torchvision("torchvision.models")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

IMAGE = (2, 3, 16, 16)
Maker = Callable[[], nn.Module]


def scripted(model: nn.Module, inputs: Any) -> torch.jit.ScriptModule:
    return torch.jit.script(model)


def traced(model: nn.Module, inputs: Any) -> torch.jit.ScriptModule:
    return torch.jit.trace(model, inputs, check_trace=False, strict=False)


def reloaded(script: torch.jit.ScriptModule, path: Path) -> nn.Module:
    torch.jit.save(script, str(path))
    return load(path, trust=True)


class Net(nn.Module):
    """What the models below are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(4, 2)

    def features(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.features(x)).mean([2, 3]))


class Outputs(Net):
    def forward(self, x: Tensor, more: Tensor | None = None) -> dict[str, Tensor]:
        y = self.features(x)
        if more is not None:
            y = y + more
        pooled = y.mean([2, 3])
        return {"class": self.fc(pooled), "pooled": pooled}


class Twice(Net):
    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        y = self.features(x) * self.features(z)
        return self.fc(y.mean([2, 3])), [y, y * 2]


class Held(Net):
    """Has buffers, plain tensors and numbers beside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.randn(4, 1, 1))
        self.plain = torch.randn(4, 1, 1)
        self.scales = [1.5, 2.0]

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x) * self.shift + self.plain) * self.scales[1])


class Sizes(Net):
    """Computes with its sizes, the batch size among them."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        b, c, h, w = y.shape
        y = y.view(b, c, h * w).transpose(1, 2).reshape(b * h * w, c // 2, 2).flatten(1)
        return self.fc(y).view(b, -1)


class Loops(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        while y.size(2) > 6:
            y = F.avg_pool2d(y, 2)
        rows: list[Tensor] = []
        for i in range(y.size(1)):
            rows.append(y[:, i] * (i + 1))
        return torch.stack(rows, 1)


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        y += 1.5
        y[:, :2] *= 3
        return F.relu_(y)


class Kinds(nn.Module):
    """Layers of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 2, stride=2)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.PReLU(4)
        self.conv = nn.Conv2d(4, 4, 3, groups=2, padding=1)
        self.group = nn.GroupNorm(2, 4)
        self.instance = nn.InstanceNorm2d(4, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.instance(self.group(self.conv(self.act(self.bn(self.up(x))))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.lstm = nn.LSTM(8, 4, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.lstm(self.embed(x))[0]))


def image(*more: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape) for shape in (IMAGE, *more))


def tokens() -> tuple[Tensor, ...]:
    return (torch.randint(0, 10, (2, 7)),)


def small_densenet() -> nn.Module:
    return models.DenseNet(8, (2, 2), 8, num_classes=5)


def small_transformer() -> nn.Module:
    model = models.VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=3)
    nn.init.normal_(model.heads.head.weight)
    return model


# -------------------------------------------------------------------------------------------------- folds

# The model, its inputs, and how it may come.
FOLDS: dict[str, tuple[Maker, Callable[[], tuple[Tensor, ...]], tuple[Any, ...]]] = {
    "layers": (Net, image, (scripted, traced)),
    "an optional input, a dictionary": (Outputs, image, (scripted,)),
    "two inputs, a layer called twice": (Twice, lambda: image(IMAGE), (scripted, traced)),
    "buffers and numbers": (Held, image, (scripted,)),
    "sizes": (Sizes, image, (scripted, traced)),
    "loops": (Loops, image, (scripted,)),
    "in place": (InPlace, image, (traced,)),
    "other layers": (Kinds, image, (traced,)),
    "tokens": (Recurrent, tokens, (scripted,)),
    "attention": (small_transformer, image, (scripted, traced)),
}


@pytest.mark.parametrize(
    ("row", "make"), [(row, make) for row in FOLDS for make in FOLDS[row][2]], ids=lambda v: getattr(v, "__name__", v)
)
def test_folds(row: str, make: Any, tmp_path: Path) -> None:
    build, draw, _ = FOLDS[row]
    model, inputs = harden(build().eval()), draw()
    script = reloaded(make(model, inputs), tmp_path / "m.pt")
    direct, found = canonize.canonize(model, inputs), canonize.canonize(script, inputs)
    assert found.report.model == type(model).__name__
    folded = {(f.name, f.kind, f.outcome) for f in found.report.affines if "Norm" in f.kind}
    assert folded == {(f.name, f.kind, f.outcome) for f in direct.report.affines if "Norm" in f.kind}
    assert not folded or all(name for name, _, _ in folded)
    errors = [check.error for check in found.report.verdict.checks if check.precision == "float64"]
    assert errors and max(errors) <= 1e-10
    for batch in (1, 3):
        other = tuple(t[:1].expand(batch, *t.shape[1:]) for t in inputs)
        same(script(*other), found(*other))


def same(wanted: Any, found: Any) -> None:
    pairs = list(zip(pytree.tree_leaves(wanted), pytree.tree_leaves(found), strict=True))
    assert pairs
    for a, b in pairs:
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [scripted, traced])
def test_layers_keep_their_names(make: Any) -> None:
    model, inputs = harden(small_densenet().eval()), torch.randn(2, 3, 32, 32)
    direct, found = canonize.canonize(model, inputs), canonize.canonize(make(model, inputs), inputs)
    assert {n for n, _ in found.named_modules()} == {n for n, _ in direct.named_modules()}
    assert [type(m) for _, m in sorted(found.named_modules())[1:]] == [
        type(m) for _, m in sorted(direct.named_modules())[1:]
    ]


def test_a_size_that_the_program_branches_on_is_checked() -> None:
    class Branch(Net):
        def forward(self, x: Tensor) -> Tensor:
            if x.size(2) > 10:
                x = F.avg_pool2d(x, 2)
            return self.features(x)

    script = torch.jit.script(harden(Branch().eval()))
    found = canonize.canonize(script, torch.randn(IMAGE))
    larger, smaller = torch.randn(3, 3, 24, 20), torch.randn(2, 3, 8, 8)
    same(script(larger), found(larger))
    with pytest.raises(AssertionError, match="captured for other sizes"):
        found(smaller)


def test_a_part_of_a_model_may_be_torchscript() -> None:
    model = nn.Sequential(torch.jit.script(harden(Net().eval())), nn.BatchNorm1d(2), nn.Linear(2, 3)).eval()
    found = canonize.canonize(model, torch.randn(IMAGE))
    assert all(f.outcome == "absorbed" for f in found.report.affines) and len(found.report.affines) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    script = reloaded(torch.jit.script(harden(Net().eval()).to(dtype)), tmp_path / "m.pt")
    found = canonize.canonize(script, torch.randn(IMAGE, dtype=dtype))
    assert {p.dtype for p in found.parameters()} == {dtype}
    assert found.report.verdict.passed


def test_a_program_saved_in_training_mode_counts_as_in_eval_mode(tmp_path: Path) -> None:
    model, x = harden(Net().train()), torch.randn(IMAGE)
    script = reloaded(torch.jit.script(model), tmp_path / "m.pt")
    found = canonize.canonize(script, x)
    assert script.training and all(part.training for part in script.modules())
    same(model.eval()(x), found(x))


def test_a_frozen_program_has_no_names_left() -> None:
    """Its weights are constants in its code, and torch has folded what stood behind a convolution itself."""
    script, x = torch.jit.freeze(torch.jit.script(harden(Held().eval()))), torch.randn(IMAGE)
    found = canonize.canonize(script, x)
    assert "conv2d" in dict(found.named_modules())
    assert any("no float64 verdict" in note for note in found.report.verdict.notes)
    same(script(x), found(x))


def test_a_program_that_casts_is_judged_in_its_own_precision() -> None:
    class Casts(Net):
        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(self.features(x).float(), 1).to(x.dtype)

    found = canonize.canonize(torch.jit.script(harden(Casts().eval())), torch.randn(IMAGE))
    assert any("computes in float32 whatever it is fed" in note for note in found.report.verdict.notes)


def test_weights_are_shared_and_the_program_is_left_alone() -> None:
    script = torch.jit.script(harden(Recurrent().eval()))
    before = {name: tensor.clone() for name, tensor in script.state_dict().items()}
    found = canonize.canonize(script, tokens())
    assert found.get_parameter("embed.weight").data_ptr() == script.embed.weight.data_ptr()
    assert all(torch.equal(tensor, before[name]) for name, tensor in script.state_dict().items())
    assert canonize.canonize(script, tokens(), copy=True).get_parameter("embed.weight").data_ptr() != (
        script.embed.weight.data_ptr()
    )


def test_the_size_is_found_as_for_any_model() -> None:
    assert canonize.canonize(torch.jit.script(harden(Net().eval()))).report.verdict.passed


# ----------------------------------------------------------------------------------------- refuses because


class ByValue(Net):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            x = x * 2
        return self.features(x)


class Counts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.features(x)


class NoForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    @torch.jit.export
    def go(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Random(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.features(x) + torch.rand(1)


class Listed(Net):
    def forward(self, x: Tensor) -> Tensor:
        values: list[float] = torch.flatten(x).tolist()
        return self.features(x) + values[0]


REFUSES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "control flow by values": (
        lambda: torch.jit.script(ByValue().eval()),
        r"test_torchscript\.py:\d+: its control flow depends on the values of a tensor",
    ),
    "state of its own": (lambda: torch.jit.script(Counts().eval()), "writes into its own attribute calls"),
    "no forward": (lambda: torch.jit.script(NoForward().eval()), "has no forward"),
    "random": (lambda: torch.jit.script(Random().eval()), "not deterministic"),
    "no operator on tensors": (lambda: torch.jit.script(Listed().eval()), "uses prim::tolist|uses aten::tolist"),
    "traced in training mode": (lambda: traced(Net().train(), image()), "traced in training mode: its BatchNorm"),
    "dropout for ever": (lambda: traced(nn.Sequential(nn.Dropout()), image()), "its dropout is always on"),
}


@pytest.mark.parametrize("row", REFUSES)
def test_refuses_because(row: str) -> None:
    build, message = REFUSES[row]
    script = build()
    with pytest.raises(CanonizeError, match=message) as caught:
        canonize.canonize(script, torch.randn(IMAGE))
    assert "\n" not in str(caught.value)


def doubled(self, input: tuple[Tensor], output: Tensor) -> Tensor:
    return output * 2


def test_hooks_are_refused() -> None:
    model = Net().eval()
    model.register_forward_hook(doubled)
    script = torch.jit.script(model)
    with pytest.raises(CaptureError, match="forward hook"):
        canonize.canonize(script, torch.randn(IMAGE))


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], Any]] = {
    "another operator": lambda m: m.setattr(
        interpreted,
        "_overload",
        swapped(interpreted._overload, torch.ops.aten.relu_.default, torch.ops.aten.abs.default),
    ),
    "an argument dropped": lambda m: m.setattr(interpreted, "_same", lambda value, default: True),
}


def swapped(find: Any, old: Any, new: Any) -> Any:
    def overload(*arguments: Any) -> Any:
        found = find(*arguments)
        return new if found is old else found

    return overload


class Faulty(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        y = torch.add(y, y.flip(1), alpha=2)
        return self.fc(y.mean([2, 3])) * (y.size(1) * 2)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_translation_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = torch.jit.script(harden(Faulty().eval()))
    assert canonize.canonize(script, torch.randn(IMAGE)).report.verdict.passed
    FAULTS[fault](monkeypatch)
    with pytest.raises(NotEquivalentError, match="does not compute"):
        canonize.canonize(script, torch.randn(IMAGE))


# -------------------------------------------------------------------------------------------- leaves alone


def test_batch_statistics_without_running_ones_stay() -> None:
    """A BatchNorm that tracks nothing is no affine, traced or not."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    for x in image():
        direct, found = canonize.canonize(model, x), canonize.canonize(traced(model, x), x)
        assert [f.outcome for f in found.report.affines] == [f.outcome for f in direct.report.affines]


def test_the_translation_computes_what_the_program_computes() -> None:
    for build, draw, ways in FOLDS.values():
        model, inputs = harden(build().eval()), draw()
        for way in ways:
            script = way(model, inputs)
            with torch.no_grad():
                same(script(*inputs), translated(script)(*inputs))


# ---------------------------------------------------------------------------------------------- as a file


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(harden(Net().eval())), "m.pt")
    return tmp_path


def test_nothing_is_run_without_trust(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("torch read it")

    for place, name in ((torch.jit, "load"), (torch, "load"), (torch._C, "import_ir_module")):
        monkeypatch.setattr(place, name, never)
    with pytest.raises(LoadError, match="is TorchScript, a program"):
        load("m.pt")
    for command in (["m.pt", "-o", "out.pt"], ["inspect", "m.pt"], ["verify", "m.pt", "m.pt"]):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "--trust" in err
    assert os.listdir() == ["m.pt"]


def test_the_command_line(file: Path, capsys: Any) -> None:
    shape = ["--input", "2x3x16x16", "--trust"]
    assert main(["m.pt", "-o", "out.pt", *shape]) == 0
    assert "Net: 1 BatchNorm2d: 1 absorbed" in capsys.readouterr().out
    assert main(["verify", "m.pt", "out.pt", *shape]) == 0
    assert main(["inspect", "m.pt", *shape]) == 1
    assert main(["inspect", "out.pt", *shape]) == 0
    assert load("out.pt").report.source["name"] == "m.pt"  # which takes no trust: the canonical model is no program


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_files_that_torch_cannot_load(damage: str, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path = file / "m.pt"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    else:

        def unknown(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("\nUnknown builtin op: theirs::own.\nCould not find any similar ops")

        monkeypatch.setattr(torch.jit, "load", unknown)
    assert main(["m.pt", "-o", "out.pt", "--trust"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and ("is truncated" if damage == "cut" else "Unknown builtin op: theirs::own") in err
