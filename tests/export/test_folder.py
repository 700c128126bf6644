"""A folder that a person can read and that loads without pickle and without canonize."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, fx, nn

import canonize
from canonize.compat import import_torchvision
from canonize.errors import ExportError
from canonize.export import pt, readable_folder, save
from canonize.export.constructors import expression
from canonize.export.literals import index, literal
from canonize.export.reload import compare, outputs_of
from canonize.inputs import normalise
from tests import checks, models
from tests.zoo.case import Case

vision = import_torchvision("torchvision.models")
timm = import_torchvision("timm")
ROOMS = [pytest.param(room, id=room.__name__.rpartition(".")[2]) for room in models.ROOMS]


def executed(where: Path) -> nn.Module:
    """What ``load()`` of a written folder gives, without a process of its own."""
    file = where / "model.py"
    names: dict[str, Any] = {"__name__": "model", "__file__": str(file)}
    exec(compile(file.read_text(), str(file), "exec"), names)
    loaded: nn.Module = names["load"]()
    return loaded


def written(case: Case, where: Path) -> None:
    example = checks.draw(case.inputs, 2)
    model = canonize.canonize(case.model(torch.float64), example, verify=False)
    readable_folder.write(model, where, None, where)
    loaded = executed(where)
    assert not [m for m in loaded.modules() if type(m).__module__.startswith("canonize")]
    file = where.with_suffix(".pt")
    notes = pt.write(model, file, None, file)
    # What calls functions or classes of the tests' own is read with trust, and says so; all else without.
    assert all("tests." in note for note in notes), notes
    again = canonize.load(file, trust=bool(notes))
    assert isinstance(again, fx.GraphModule) and str(again.graph) == str(model.graph)
    inputs = normalise(checks.draw(case.inputs, 3))
    expected = [outputs_of(model, inputs)]
    compare(expected, [outputs_of(loaded, inputs)], where)
    compare(expected, [outputs_of(again, inputs)], file)


@pytest.mark.parametrize("room", ROOMS)
def test_every_small_hard_model_can_be_written_and_read(room: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, case in enumerate(room.CASES):
            written(case, tmp_path / str(number))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: vision.DenseNet(8, (2, 2), 8, num_classes=3), (2, 3, 32, 32)),
        (lambda: vision.mobilenet_v3_small(num_classes=3), (2, 3, 32, 32)),
        (lambda: vision.shufflenet_v2_x0_5(num_classes=3), (2, 3, 32, 32)),
        (lambda: vision.VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=3), (2, 3, 32, 32)),
        (lambda: timm.create_model("resnet10t", num_classes=3), (2, 3, 32, 32)),
        (lambda: timm.create_model("test_convnext", num_classes=3), (2, 3, 32, 32)),
        (lambda: timm.create_model("test_efficientnet", num_classes=3), (2, 3, 32, 32)),
    ],
)
def test_models_of_the_zoos(build: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    model = canonize.canonize(build().double().eval(), x, verify=False)
    readable_folder.write(model, tmp_path / "out", None, tmp_path / "out")
    compare([outputs_of(model, normalise(x))], [outputs_of(executed(tmp_path / "out"), normalise(x))], tmp_path)


def small() -> fx.GraphModule:
    torch.manual_seed(0)
    block = nn.Sequential(nn.BatchNorm2d(4, eps=0.1), nn.ReLU(), nn.Conv2d(4, 4, 3))
    nn.init.normal_(block[0].bias)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), block, nn.Flatten(), nn.Linear(4 * 12 * 12, 2))
    return canonize.canonize(model.eval(), torch.randn(2, 3, 16, 16))


def test_a_stranger_loads_it_by_the_printed_lines(tmp_path: Path) -> None:
    model, x = small(), torch.randn(5, 3, 16, 16)
    saved = save(model, tmp_path / "out", example_inputs=x)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.py", "model.safetensors"]
    torch.save(x, tmp_path / "x.pt")
    script = (
        "import sys, torch; sys.modules['canonize'] = None; x = torch.load('x.pt'); torch.load = None\n"
        f"{saved.loader}\n"
        "assert not model.training; torch.save(model(x), 'y.pt')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    assert torch.allclose(torch.load(tmp_path / "y.pt"), model(x), atol=1e-6)


def test_a_proven_model_comes_back_without_trust_and_with_its_report(tmp_path: Path) -> None:
    """Whatever a verdict holds must be plain, or every canonical file would ask for trust."""
    model = small()
    assert save(model, tmp_path / "g.pt", example_inputs=torch.randn(2, 3, 16, 16)).notes == ()
    loaded = canonize.load(tmp_path / "g.pt")
    assert isinstance(loaded.report, canonize.Report) and isinstance(model.report, canonize.Report)
    assert loaded.report.to_dict() == model.report.to_dict() and loaded.report.verdict is not None


def test_a_person_can_read_it(tmp_path: Path) -> None:
    save(small(), tmp_path / "out", example_inputs=torch.randn(2, 3, 16, 16))
    text = (tmp_path / "out" / "model.py").read_text()
    for line in (
        'self["0"] = nn.Conv2d(3, 4, 3)',
        'self["2"]["1"] = ThreshReLU(lower=torch.empty(1, 4, 1, 1))',
        'self["2"]["2"] = nn.Conv2d(4, 4, 3)  # holds 0',
        'input = self["3"](input)',
        "return input",
    ):
        assert line in text, text
    assert max(map(len, text.splitlines())) <= 120
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        known = file.metadata()
    assert json.loads(known["names"])["2.0"] is None and json.loads(known["rewrites"])[0]["pattern"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    graph = fx.symbolic_trace(nn.Sequential(nn.Linear(3, 2)).to(dtype).eval())
    readable_folder.write(graph, tmp_path / "out", None, tmp_path / "out")
    loaded = executed(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), graph.parameters(), strict=True))
    assert {p.dtype for p in loaded.parameters()} == {dtype}


LAYERS = [
    nn.Conv2d(4, 6, (3, 5), (1, 2), (1, 0), (2, 1), 2, False, "reflect"),
    nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, True, 2),
    nn.Conv1d(2, 2, 2, padding="same"),
    nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True),
    nn.RNN(3, 4, nonlinearity="relu"),
    nn.GRUCell(3, 4, bias=False),
    nn.MultiheadAttention(8, 2, bias=False, add_bias_kv=True, kdim=3, vdim=5, batch_first=True),
    nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.2, "gelu", 1e-3, True), 2, nn.LayerNorm(8), False),
    nn.TransformerEncoderLayer(8, 2, norm_first=True, bias=False),
    nn.EmbeddingBag(5, 3, mode="sum"),
    nn.Embedding(5, 3, padding_idx=1),
    nn.LayerNorm((3, 4), 1e-3, bias=False),
    nn.GroupNorm(2, 4, affine=False),
    nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    nn.BatchNorm1d(3, momentum=None, affine=False),
    nn.Upsample(scale_factor=(2.0, 3.0), mode="bilinear", align_corners=True),
    nn.MaxPool2d((2, 2), ceil_mode=True, return_indices=True),
    nn.AdaptiveAvgPool2d((None, 3)),
    nn.FractionalMaxPool2d(2, output_size=(3, 4)),
    nn.PReLU(3),
    nn.Hardtanh(-2, 0.5),
    nn.Threshold(0.1, float("inf")),
    nn.CosineSimilarity(2, 1e-3),
    nn.Bilinear(2, 3, 4),
    canonize.nn.ChannelLinear(3, 2),
    canonize.nn.ChannelPad((1, 2), torch.zeros(1, 3, 1)),
    canonize.nn.ChannelPad((canonize.nn.Slot(1), 2), torch.zeros(1, 3, 1)),
    canonize.nn.Sum((1.0, -0.5)),
    canonize.nn.Offset(None, torch.zeros(2, 3)),
    canonize.nn.Constant(torch.tensor(3)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_constructors(layer: nn.Module) -> None:
    names = {"nn": nn, "torch": torch, **vars(canonize.nn)}
    built = eval(expression(layer, "layer"), names)
    built.load_state_dict(layer.state_dict(), assign=True)
    assert type(built) is type(layer) and repr(built) == repr(layer)


class Odd(nn.Module):
    """A layer of its own kind."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class OddLinear(nn.Linear):
    """Keeps something that its constructor knows nothing of."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.in_features = 7


@pytest.mark.parametrize("layer", [Odd(), OddLinear(), nn.Transformer(8, 2, 1, 1)])
def test_a_layer_without_a_constructor_is_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(ExportError, match=f"^block.odd: {type(layer).__name__} cannot be written as source"):
        expression(layer, "block.odd")


def test_literals() -> None:
    values = [
        None, True, -3, 1.5, 1e300, float("inf"), 2j, "a\"'\n", (), (1,), [1, (2, "x")], {"a": 1}, slice(1, None, 2),
        ..., torch.float16, torch.strided, torch.channels_last, torch.device("cpu"), torch.Size([2, 3]),
    ]  # fmt: skip
    for value in values:
        assert eval(literal(value), {"torch": torch}) == value
    assert literal(float("nan")) == 'float("nan")'
    assert index((slice(None), ..., None, slice(1, -1, 2), 3)) == ":, ..., None, 1:-1:2, 3"
    with pytest.raises(ExportError, match="a Odd cannot"):
        literal([Odd()])


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    """What a file or a model calls itself can end no docstring and begin no statement."""
    model = small()
    model.report.model = '"""\nimport os\nos.system("false")\n"""'  # type: ignore[union-attr]
    model.report.source = {"name": '"""; raise SystemExit(3) #\n', "sha256": '"""'}  # type: ignore[union-attr]
    readable_folder.write(model, tmp_path / "out", None, tmp_path / "out")
    assert isinstance(executed(tmp_path / "out"), nn.Module)


def closure(x: Tensor) -> Tensor:
    return x + 1


def test_functions_of_ones_own_are_imported_and_said(tmp_path: Path) -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(closure, (graph.placeholder("x"),)))
    notes = readable_folder.write(fx.GraphModule(nn.Module(), graph), tmp_path / "out", None, tmp_path / "out")
    assert __name__ in notes[0] and f"import {__name__}" in (tmp_path / "out" / "model.py").read_text()
    assert executed(tmp_path / "out")(torch.zeros(1)) == 1


def test_folders_replace_only_their_own_kind(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 16, 16)
    save(small(), tmp_path / "out", example_inputs=x)
    save(small(), tmp_path / "out", example_inputs=x)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match=r"holds thesis\.tex"):
        save(small(), tmp_path / "out", example_inputs=x)
    (tmp_path / "plain").write_text("a file")
    with pytest.raises(ExportError, match="is a file, not a folder"):
        save(small(), tmp_path / "plain", example_inputs=x)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "plain"]


def test_a_folder_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = readable_folder._alone
    monkeypatch.setattr(readable_folder, "_alone", lambda tensor: real(tensor) * 1.01)
    with pytest.raises(ExportError, match="something else"):
        save(small(), tmp_path / "out", example_inputs=torch.randn(2, 3, 16, 16))
    assert list(tmp_path.iterdir()) == []


def test_only_graphs_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="only a canonical model"):
        save(nn.Linear(2, 2), tmp_path / "out", example_inputs=torch.randn(1, 2))
