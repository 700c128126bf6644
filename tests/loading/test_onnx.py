"""ONNX files come in: the same function as ONNX Runtime computes, BatchNorm folded, nothing outside the folder read."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import canonize
from canonize.cli import main
from canonize.compat import import_torchvision
from canonize.errors import CanonizeError, LoadError
from canonize.loading import load, load_with_notes
from canonize.loading.onnx import protobuf as onnx_file
from canonize.loading.onnx import read as reader
from tests.statistics import harden

vision = import_torchvision("torchvision.models")


def bn_relu_conv() -> nn.Module:
    """The chain that ONNX optimisers leave."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)]
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4, eps=0.01), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), *head
    )


class Token(nn.Module):
    """Repeats a learnt row for every sample, and reshapes by numbers taken from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x.reshape(x.shape[0], 4, x.shape[2] * x.shape[3]).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head(self.norm(x[:, 0]))


def written(model: nn.Module, path: Path, dynamo: bool, side: int = 16) -> Path:
    """Export without any optimisation, the batch size free."""
    x = torch.randn(2, 3, side, side)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch", min=1)},)
            torch.onnx.export(
                model, (x,), path, dynamo=True, external_data=False, optimize=False, dynamic_shapes=shapes
            )
        else:
            names: dict[str, Any] = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
            mode = torch.onnx.TrainingMode.PRESERVE
            torch.onnx.export(model, (x,), path, dynamo=False, training=mode, do_constant_folding=False, **names)
    return path


def run(path: Path, x: Tensor) -> numpy.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: numpy.ndarray = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return result


def close(a: numpy.ndarray, b: numpy.ndarray) -> bool:
    return bool(numpy.abs(a - b).max() <= 1e-4 * numpy.abs(a).max())


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize(
    "build",
    [
        bn_relu_conv,
        Token,
        lambda: vision.DenseNet(4, (2, 1), 8, num_classes=3),
    ],
)
def test_in_and_out(build: Any, dynamo: bool, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    side = 32 if build not in (bn_relu_conv, Token) else 16
    path = written(harden(build().eval(), 0), tmp_path / "model.onnx", dynamo, side)
    assert main(["model.onnx", "-o", "out.onnx", "--input", f"2x3x{side}x{side}"]) == 0, capsys.readouterr().err
    assert "equivalent" in capsys.readouterr().out
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, side, side)
        assert close(run(path, x), run(tmp_path / "out.onnx", x))
    found = {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node}
    assert "BatchNormalization" not in found


def test_layers_keep_the_names_of_their_weights(tmp_path: Path) -> None:
    path = written(harden(vision.DenseNet(8, (2, 2), 8, num_classes=3).eval(), 0), tmp_path / "m.onnx", False, 32)
    model = load(path)
    assert "features.denseblock1.denselayer1.conv1.weight" in dict(model.named_parameters())
    canonical = canonize.canonize(model, torch.randn(2, 3, 32, 32))
    assert isinstance(canonical.get_submodule("features.denseblock1.denselayer1.conv1"), nn.Conv2d)
    assert {fate.name for fate in canonical.report.affines} >= {"features.denseblock1.denselayer1.norm1"}


def test_other_sizes_than_those_in_the_file_are_refused(tmp_path: Path) -> None:
    """Numbers computed for one size must never be used for another: a free batch size would swallow the difference."""
    model = load(written(harden(Token().eval(), 0), tmp_path / "m.onnx", False))
    with pytest.raises(AssertionError, match="size 16 along dimension 2"):
        model(torch.randn(2, 3, 32, 16))
    canonical = canonize.canonize(model, torch.randn(2, 3, 16, 16))
    assert canonical(torch.randn(7, 3, 16, 16)).shape == (7, 2)
    with pytest.raises(AssertionError):
        canonical(torch.randn(2, 3, 32, 16))
    with pytest.raises(CanonizeError, match="size 16 along dimension 2"):
        canonize.canonize(model, torch.randn(2, 3, 32, 16))


def test_sizes_are_found_or_given(tmp_path: Path) -> None:
    path = written(bn_relu_conv().eval(), tmp_path / "m.onnx", False)
    assert load(path).example_shapes[0].dims == (2, 3, 16, 16)  # type: ignore[union-attr,index]
    model = onnx.load(path)
    for place in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = f"side{place}"
    onnx.save(model, tmp_path / "open.onnx")
    assert load(tmp_path / "open.onnx").example_shapes[0].dims == (2, 3, 224, 224)  # type: ignore[union-attr,index]
    from canonize.inputs import parse_shape

    given = load_with_notes(tmp_path / "open.onnx", shapes=[parse_shape("2x3x20x24")]).model
    assert given.example_shapes[0].dims == (2, 3, 20, 24)  # type: ignore[union-attr,index]
    with pytest.raises(LoadError, match="takes 1 inputs, 2 are given"):
        load_with_notes(path, shapes=[parse_shape("2x3x20x24")] * 2)
    with pytest.raises(LoadError, match="no usual input fits"):
        load_with_notes(path, shapes=[parse_shape("2x5x20x24")])


def test_a_wrong_translation_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(bn_relu_conv().eval(), tmp_path / "m.onnx", False)
    real = reader.put

    def off(root: nn.Module, name: str, value: nn.Parameter) -> None:
        real(root, name, nn.Parameter(value * 1.01, requires_grad=False))

    monkeypatch.setattr(reader, "put", off)
    with pytest.raises(LoadError, match="something else than ONNX Runtime"):
        load(path)


def test_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = written(bn_relu_conv().eval(), tmp_path / "m.onnx", False)
    monkeypatch.setitem(sys.modules, "onnx2fx", None)
    with pytest.raises(LoadError, match=r"takes onnx2fx, which is not installed.*canonize\[onnx\]"):
        load(path)


# ------------------------------------------------------------------------------------------------- broken and hostile


def tiny(**options: Any) -> onnx.ModelProto:
    """y = x + w, with `w` stored as asked."""
    weight = numpy_helper.from_array(numpy.ones(3, numpy.float32), options.pop("name", "w"))
    node = helper.make_node("Add", [options.get("input", "x"), weight.name], ["y"])
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in (options.get("input", "x"), "y")
    )
    graph = helper.make_graph([node], "tiny", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def external(model: onnx.ModelProto, **entries: str) -> onnx.ModelProto:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    return model


def test_weights_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(numpy.arange(3, dtype=numpy.float32).tobytes())
    (tmp_path / "m.onnx").write_bytes(external(tiny(), location="w.bin").SerializeToString())
    assert torch.equal(load(tmp_path / "m.onnx")(torch.zeros(1, 3))[0], torch.arange(3.0))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../secret.bin"}, "outside its folder"),
        ({"location": "sub/../../secret.bin"}, "outside its folder"),
        ({"location": "/etc/hostname"}, "outside its folder"),
        ({"location": "..\\secret.bin"}, "outside its folder"),
        ({"location": "C:\\secret.bin"}, "outside its folder"),
        ({"location": "link.bin"}, "outside its folder"),
        ({"location": "folder_link/secret.bin"}, "outside its folder"),
        ({"location": ""}, "outside its folder"),
        ({"location": "absent.bin"}, "are missing"),
        ({"location": "w.bin", "offset": "8", "length": "12"}, "truncated"),
        ({"location": "w.bin", "length": "1000000000000"}, "truncated"),
        ({"location": "w.bin", "offset": "-4", "length": "12"}, "truncated"),
        ({"location": "w.bin", "offset": "x"}, "no place"),
    ],
)
def test_external_weights_stay_in_the_folder(entries: dict[str, str], message: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for place in (tmp_path / "secret.bin", home / "w.bin"):
        place.write_bytes(numpy.arange(3, dtype=numpy.float32).tobytes())
    (home / "link.bin").symlink_to(tmp_path / "secret.bin")
    (home / "folder_link").symlink_to(tmp_path)
    (home / "m.onnx").write_bytes(external(tiny(), **entries).SerializeToString())
    with pytest.raises(LoadError, match=message):
        load(home / "m.onnx")


def test_external_weights_of_attributes_are_looked_at_too(tmp_path: Path) -> None:
    model = tiny()
    constant = numpy_helper.from_array(numpy.ones(3, numpy.float32))
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="../secret.bin")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=constant))
    (tmp_path / "secret.bin").write_bytes(b"0" * 12)
    home = tmp_path / "home"
    home.mkdir()
    (home / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(LoadError, match="outside its folder"):
        load(home / "m.onnx")


@pytest.mark.parametrize(
    "name", ["x\n    import os", "x):\n  pass #", "class", "__import__('os').system('x')", "self", "ü", "v1", "0"]
)
def test_names_cannot_become_code(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(tiny(input=name, name=f"{name}.w").SerializeToString())
    model = load(tmp_path / "m.onnx")
    assert torch.equal(model(torch.zeros(2, 3)), torch.ones(2, 3))
    canonical = canonize.canonize(model, torch.randn(2, 3))
    assert torch.equal(canonical(torch.zeros(2, 3)), torch.ones(2, 3))


def test_all_names_are_plain_after_renaming() -> None:
    model = tiny(input="a b", name="v0")
    old = onnx_file.rename(model)
    names = [
        *(i.name for i in model.graph.input),
        *(n for node in model.graph.node for n in (*node.input, *node.output)),
    ]
    assert all(name.isidentifier() for name in names) and set(old.values()) >= {"a b", "v0", "y"}
    assert len(set(names)) == 3


def huge() -> onnx.ModelProto:
    model = tiny()
    model.graph.initializer[0].dims[:] = [10**9, 10**6]
    return model


def foreign() -> onnx.ModelProto:
    model = tiny()
    model.graph.node[0].domain = "com.evil"
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    return model


def unknown() -> onnx.ModelProto:
    model = tiny()
    model.graph.node[0].op_type = "Eval"
    return model


def expanding() -> onnx.ModelProto:
    """A few bytes that ask for a petabyte."""
    model = tiny()
    shape = numpy_helper.from_array(numpy.array([10**6, 10**6, 10**3], numpy.int64), "shape")
    model.graph.initializer.append(shape)
    model.graph.node[0].input[1] = "big"
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["big"]))
    return model


def texts() -> onnx.ModelProto:
    model = tiny()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    return model


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x", "no ONNX file"),
        (b"\x08\x07", "no ONNX file"),
        (tiny().SerializeToString()[:40], "ONNX"),
        (huge().SerializeToString(), "not valid ONNX"),
        (foreign().SerializeToString(), "com.evil::Add"),
        (unknown().SerializeToString(), "Eval"),
        (expanding().SerializeToString(), "cannot|fits"),
        (texts().SerializeToString(), "cannot|input"),
    ],
)
def test_what_is_no_model(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(LoadError, match=message) as caught:
        load(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


def test_a_batch_norm_in_training_mode_normalises_by_the_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = {"w": torch.randn(4, 3, 3, 3), "s": torch.randn(4), "b": torch.randn(4), "m": torch.randn(4)}
    parts |= {"v": torch.rand(4) + 0.5, "w2": torch.randn(2, 4, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", [*"csbmv"], ["y", "nm", "nv"], training_mode=1, epsilon=1e-3),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["z"]),
    ]
    sizes = {name: ["n", channels, "h", "w"] for name, channels in (("x", 3), ("z", 2))}
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items())
    weights = [numpy_helper.from_array(value.numpy(), name) for name, value in parts.items()]
    graph = helper.make_graph(nodes, "g", [x], [z], weights)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(file.SerializeToString())
    canonical = canonize.canonize(load(tmp_path / "m.onnx"), torch.randn(2, 3, 9, 9))
    assert any("batch_norm" in str(finding) for finding in canonical.report.findings)
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = torch.randn(5, 3, 9, 9)
    wanted = torch.from_numpy(session.run(["z"], {"x": inputs.numpy()})[0])
    for _ in range(2):
        assert (canonical(inputs) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("operator", ["Div", "Mod"])
def test_whole_numbers_that_divide_are_not_0(operator: str, tmp_path: Path) -> None:
    nodes = [helper.make_node(operator, ["a", "b"], ["c"]), helper.make_node("Cast", ["c"], ["d"], to=1)]
    nodes.append(helper.make_node("Add", ["d", "x"], ["y"]))
    kinds = {"x": TensorProto.FLOAT, "a": TensorProto.INT64, "b": TensorProto.INT64, "y": TensorProto.FLOAT}
    *given, found = (helper.make_tensor_value_info(name, kind, ["n", 3]) for name, kind in kinds.items())
    graph = helper.make_graph(nodes, "g", given, [found])
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(file.SerializeToString())
    model = load(tmp_path / "m.onnx")
    x, a, b = torch.randn(4, 3), torch.arange(12).reshape(4, 3), torch.arange(1, 13).reshape(4, 3)
    wanted = x + (a // b if operator == "Div" else a % b)
    assert torch.equal(model(x, a, b), wanted)
