"""Inputs: every spelling, every file kind, and inference that leaves the model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import Tensor, nn

from canonize.compat import import_torchvision
from canonize.errors import InputError
from canonize.inputs import Inputs, Shape, from_shapes, infer, load_inputs, normalise, parse_shape, random_inputs

X = torch.arange(12.0).reshape(2, 6)


class Pair(NamedTuple):
    """Two tensors with names."""

    left: Tensor
    right: Tensor


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        (X, 1, []),
        ((X, X), 2, []),
        ([X], 1, []),
        (((X,), {"mask": X}), 1, ["mask"]),
        (([], {"x": X}), 0, ["x"]),
        ({"x": X, "n": 3}, 0, ["x", "n"]),
        (X.numpy(), 1, []),
        (Inputs((X,)), 1, []),
    ],
)
def test_every_spelling_of_inputs(given: Any, args: int, kwargs: list[str]) -> None:
    found = normalise(given)
    assert len(found.args) == args and list(found.kwargs) == kwargs
    assert all(torch.equal(t, X) for t in found.tensors()) and found.tensors()


@pytest.mark.parametrize("given", [None, "1x3x8x8", (), {}, (3, "a"), {1: X}])
def test_what_is_no_input_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match="Pass"):
        normalise(given)


def test_nested_tensors_are_all_moved_and_only_floats_cast() -> None:
    inputs = Inputs((Pair(X, X.long()), [X, {"deep": X > 2}]), {"k": X, "flag": True})
    moved = inputs.to(dtype=torch.float64)
    assert [t.dtype for t in moved.tensors()] == [
        torch.float64,
        torch.int64,
        torch.float64,
        torch.bool,
        torch.float64,
    ]
    assert isinstance(moved.args[0], Pair) and moved.kwargs["flag"] is True
    assert X.dtype == torch.float32


@pytest.mark.parametrize(("size", "rows"), [(1, [0]), (2, [0, 1]), (5, [0, 1, 0, 1, 0])])
def test_batch_is_resized_by_repeating_rows(size: int, rows: list[int]) -> None:
    table = torch.ones(7, 2)
    resized = Inputs((X, table), {"ids": torch.tensor([4, 9])}).with_batch(size)
    assert resized is not None
    assert torch.equal(resized.args[0], X[rows]) and resized.args[1] is table
    assert resized.kwargs["ids"].tolist() == [[4, 9][r] for r in rows]


def test_no_batch_to_resize() -> None:
    assert Inputs((torch.tensor(3.0),)).with_batch(4) is None
    assert Inputs((torch.empty(0, 3),)).with_batch(4) is None


def test_description_reads_like_the_command_line() -> None:
    assert Inputs((torch.zeros(1, 3, 8, 8),)).describe() == "1x3x8x8 float32"
    assert Inputs((X.long(), None), {"s": torch.tensor(1.0)}).describe() == "2x6 int64, None, s: scalar float32"


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("1x3x224x224", Shape((1, 3, 224, 224))),
        ("x:1,3,224,224", Shape((1, 3, 224, 224), "x")),
        ("ids:2x16:int64", Shape((2, 16), "ids", torch.int64)),
        ("5", Shape((5,))),
        ("1, 10", Shape((1, 10))),
    ],
)
def test_shapes_as_written(text: str, shape: Shape) -> None:
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "x", "1x", "1x0x3", "-1x3", "1x3:flot32", "1x3:nn", "a:b:1", "1x3x224x224.pt"])
def test_what_is_no_shape_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="1x3x224x224"):
        parse_shape(text)


def test_random_inputs_are_reproducible_and_leave_the_global_state() -> None:
    state = torch.get_rng_state()
    first = random_inputs(["2x3", "ids:4:int64"], seed=3, below=9)
    again = random_inputs(["2x3", "ids:4:int64"], seed=3, below=9, dtype=torch.float64)
    assert torch.equal(first.args[0].double(), again.args[0])
    assert torch.equal(first.kwargs["ids"], again.kwargs["ids"]) and int(first.kwargs["ids"].max()) < 9
    assert not torch.equal(first.args[0], random_inputs("2x3", seed=4).args[0])
    assert torch.equal(state, torch.get_rng_state())


def test_inputs_from_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.save(((X,), {"mask": X}), tmp_path / "a.pt")
    numpy.save(tmp_path / "a.npy", X.numpy())
    numpy.savez(tmp_path / "one.npz", anything=X.numpy())
    numpy.savez(tmp_path / "two.npz", arg_1=X.numpy() + 1, arg_0=X.numpy(), mask=X.numpy())
    save_file({"x": X, "y": X + 1}, tmp_path / "a.safetensors")
    assert list(load_inputs(tmp_path / "a.pt").kwargs) == ["mask"]
    assert torch.equal(load_inputs(str(tmp_path / "a.npy")).args[0], X)
    assert torch.equal(load_inputs(tmp_path / "one.npz").args[0], X)
    two = load_inputs(tmp_path / "two.npz")
    assert torch.equal(two.args[0], X) and torch.equal(two.args[1], X + 1) and list(two.kwargs) == ["mask"]
    assert torch.equal(load_inputs(tmp_path / "a.safetensors").kwargs["y"], X + 1)


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def test_input_files_run_no_code_and_errors_name_the_file(tmp_path: Path) -> None:
    torch.save(Bomb(tmp_path / "boom"), tmp_path / "bomb.pt")
    numpy.save(tmp_path / "bomb.npy", numpy.array([Bomb(tmp_path / "boom")]), allow_pickle=True)
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save("words", tmp_path / "words.pt")
    (tmp_path / "a.jpg").write_bytes(b"")
    for name in ("bomb.pt", "bomb.npy", "empty.pt", "words.pt", "a.jpg", "absent.pt"):
        with pytest.raises(InputError, match=name):
            load_inputs(tmp_path / name)
    assert not (tmp_path / "boom").exists()


def image(channels: int, side: int) -> nn.Module:
    """A network for images of one size only."""
    return nn.Sequential(nn.Conv2d(channels, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * side**2, 4))


MODELS: list[tuple[nn.Module, str]] = [
    (image(3, 32), "2x3x32x32 float32"),
    (image(1, 28).double(), "2x1x28x28 float64"),
    (image(4, 84), "2x4x84x84 float32"),
    (nn.Sequential(nn.Conv2d(5, 2, 3)), "2x5x224x224 float32"),
    (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), "2x3x224x224 float32"),
    (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)).bfloat16(), "2x3x256 bfloat16"),
    (nn.Sequential(nn.ConvTranspose3d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 18**3, 2)), "2x2x16x16x16 float32"),
    (nn.Sequential(nn.Linear(7, 3), nn.BatchNorm1d(3)), "2x7 float32"),
    (nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(48, 2)), "2x16 int64"),
    (nn.LSTM(5, 6, batch_first=True), "2x16x5 float32"),
    (nn.TransformerEncoderLayer(8, 2, batch_first=True), "2x16x8 float32"),
    (nn.LayerNorm((3, 9)), "2x3x9 float32"),
    (nn.ReLU(), "2x3x224x224 float32"),
]


@pytest.mark.parametrize(("model", "expected"), MODELS, ids=[e for _, e in MODELS])
def test_inference(model: nn.Module, expected: str) -> None:
    found = infer(model)
    assert found.describe() == expected
    model.eval()(*found.args)


class Late(nn.Module):
    """Registers its classifier first, calls it last."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)
        self.stem = nn.Conv2d(3, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).mean((2, 3)))


class Weights(nn.Module):
    """A convolution written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.conv2d(x, self.weight)


class Two(nn.Module):
    """Compares two images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return self.stem(left) - scale * self.stem(right)


def test_registration_order_lies_hand_written_weights_and_two_inputs() -> None:
    assert infer(Late()).describe() == "2x3x224x224 float32"
    assert infer(Weights()).describe() == "2x6x224x224 float32"
    both = infer(Two())
    assert both.describe() == "2x3x224x224 float32, 2x3x224x224 float32"
    assert not torch.equal(both.args[0], both.args[1])


def test_what_the_model_says_of_itself_comes_first() -> None:
    timm = import_torchvision("timm")
    assert infer(timm.create_model("resnet10t")).describe() == "2x3x176x176 float32"
    assert infer(timm.create_model("resnet10t", in_chans=1)).describe() == "2x1x176x176 float32"
    models = import_torchvision("torchvision.models")
    vit = models.VisionTransformer(48, 16, 1, 2, 8, 16)
    assert infer(vit).describe() == "2x3x48x48 float32"


class Counter(nn.Module):
    """Counts its calls in a buffer and an attribute, draws random numbers, and complains in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("calls", torch.zeros(()))
        self.times = 0

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.calls += 1
        self.times += 1
        return self.norm(self.conv(x)) + torch.randn(())


def test_inference_leaves_the_model_and_the_random_state_alone() -> None:
    model = Counter().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    infer(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.times == 0 and model.training and model.norm.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_candidates_are_tried_before_anything_else() -> None:
    model = nn.Conv2d(3, 2, 1)
    assert infer(model, ["1x4x5x5", "1x3x5x5"]).describe() == "1x3x5x5 float32"
    assert infer(model, [torch.zeros(1, 3, 2, 2)]).describe() == "1x3x2x2 float32"


def test_no_guess_fits() -> None:
    with pytest.raises(InputError, match=r"example_inputs=torch\.zeros\(1, 3, 224, 224\)") as caught:
        infer(nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(51 * 77, 1)))
    assert "--input 1x3x224x224" in (caught.value.shell or "")
    with pytest.raises(InputError, match="lazy"):
        infer(nn.Sequential(nn.LazyConv2d(3, 1)))


def test_shapes_by_hand_take_the_types_of_the_model() -> None:
    assert from_shapes(nn.Conv2d(3, 1, 1).double(), ["1x3x8x8"]).describe() == "1x3x8x8 float64"
    tokens = from_shapes(nn.Sequential(nn.Embedding(3, 2)), ["1x99"])
    assert tokens.describe() == "1x99 int64" and tokens.args[0].max() == 2
    assert from_shapes(nn.Embedding(3, 2), ["1x4:float32", "x:1x2"]).describe() == "1x4 float32, x: 1x2 float32"
