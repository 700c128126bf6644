"""Files that try to run something: none does, each is refused with a reason. A canary file tells."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import canonize
from canonize import nn as cnn
from canonize.cli import main
from canonize.errors import LoadError
from canonize.inputs import load_inputs
from canonize.loading import load
from canonize.loading.graph_as_data import describe, rebuild
from canonize.vocabulary.safe_calls import callable_named
from tests.test_export import graph


class Reduces:
    """Calls a function when unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def touch(path: Path) -> str:
    return f"open({str(path)!r}, 'w').close()"


def module_with(value: Any) -> nn.Module:
    model = nn.Conv2d(1, 1, 1)
    vars(model)["extra"] = value
    return model


def nested(canary: Path) -> Any:
    inner = Reduces(compile, touch(canary), "x", "exec")
    return Reduces(exec, inner)


def build_with_state(canary: Path) -> Any:
    """An instance of an allowed class whose state is made by a call."""
    return nn.Sequential(OrderedDict(a=module_with(Reduces(os.system, f"touch {canary}"))))


CALLS = {
    "os.system": lambda p: Reduces(os.system, f"touch {p}"),
    "builtins.eval": lambda p: Reduces(eval, touch(p)),
    "builtins.exec": lambda p: Reduces(exec, touch(p)),
    "a nested reduce": nested,
    "partial over a callable": lambda p: functools.partial(exec, touch(p)),
    "partial called": lambda p: Reduces(functools.partial(exec, touch(p))),
    "getattr": lambda p: Reduces(getattr, Reduces(__import__, "os"), "system"),
    "state of a layer": build_with_state,
    "__import__": lambda p: Reduces(__import__, "os"),
    "torch.hub": lambda p: Reduces(torch.hub.load, "a/b", "c"),
    "torch.load": lambda p: Reduces(torch.load, str(p)),
    "torch.jit": lambda p: Reduces(torch.jit.load, str(p)),
    "map over a list": lambda p: Reduces(list, Reduces(map, eval, [touch(p)])),
}


@pytest.mark.parametrize("kind", list(CALLS))
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [module_with, lambda x: x, lambda x: {"state_dict": {"a": torch.ones(1)}, "x": x}])
def test_no_call_is_made(kind: str, legacy: bool, wrap: Any, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save(wrap(CALLS[kind](canary)), tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    for allow in ([], ["builtins", "os", "posix", "torch", "functools", "io"]):
        with pytest.raises(LoadError) as caught:
            load(tmp_path / "m.pt", "torchvision:resnet18", allow=allow)
        assert "\n" not in str(caught.value)
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["os.system", "builtins.eval", "builtins.exec", "a nested reduce", "state of a layer"])
def test_the_canary_can_sing(kind: str, tmp_path: Path) -> None:
    """The planted code is real: with trust it runs."""
    canary = tmp_path / "canary"
    torch.save(module_with(CALLS[kind](canary)), tmp_path / "m.pt")
    load(tmp_path / "m.pt", trust=True)
    assert canary.exists()


def test_at_the_command_line(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(module_with(CALLS["os.system"](tmp_path / "canary")), "m.pt")
    for command in (["m.pt", "-o", "out.pt"], ["inspect", "m.pt"], ["verify", "m.pt", "m.pt"]):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "--trust" in err
    assert os.listdir() == ["m.pt"]


def test_example_inputs_run_nothing_either(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save(Reduces(os.system, f"touch {canary}"), tmp_path / "x.pt")
    import numpy

    numpy.save(tmp_path / "x.npy", numpy.array([Reduces(os.system, f"touch {canary}")], dtype=object))
    for name in ("x.pt", "x.npy"):
        with pytest.raises(canonize.InputError):
            load_inputs(tmp_path / name)
    assert not canary.exists()


# ------------------------------------------------------------------------------------------- pickles written by hand


def archive(path: Path, program: bytes, **more: bytes) -> None:
    """A file of torch.save with another pickle in it."""
    torch.save(torch.ones(1), path)
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            new.writestr(name, program if name.endswith("/data.pkl") else content)
        for name, content in more.items():
            new.writestr(name, content)


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


CONV = name("torch.nn.modules.conv", "Conv2d")
PROGRAMS = {
    "a constructor is called": (CONV + b"K\x01K\x01K\x01\x87R", "calls torch.nn.modules.conv.Conv2d"),
    "a constructor is called from the memo": (CONV + b"q\x00h\x00K\x01K\x01K\x01\x87R", "calls torch.nn.modules.conv"),
    "an instance is called": (CONV + b")\x81)R", "made itself"),
    "a partial is called": (name("functools", "partial") + CONV + b"\x85R)R", "made itself"),
    "an instance from arguments": (CONV + b"K\x01\x85\x81", "from arguments"),
    "memory of its own choosing": (name("__builtin__", "bytearray") + b"J\xff\xff\xff\x7f\x85R", "memory of its own"),
    "a tensor of its own choosing": (name("torch", "Tensor") + b"J\xff\xff\xff\x7f\x85R", "memory of its own"),
    "a storage of its own choosing": (
        name("torch.storage", "UntypedStorage") + b"J\xff\xff\xff\x7f\x85R", "memory of its own",
    ),
    "os.system by its old name": (name("posix", "system") + text("true") + b"\x85R", "posix.system"),
    "a python 2 name": (name("__builtin__", "eval") + text("1") + b"\x85R", "builtins.eval"),
    "STACK_GLOBAL": (text("os") + text("system") + b"\x93" + text("true") + b"\x85R", "."),
    "INST": (b"(" + text("true") + b"ios\nsystem\n", "."),
    "OBJ": (b"(" + name("os", "system") + text("true") + b"o", "."),
    "EXT1": (b"\x82\x01", "."),
    "a persistent id of its own": (text("file") + b"Q", "."),
    "the stack runs dry": (b"R", "damaged"),
    "an endless mark": (b"((((((", "damaged"),
    "no end": (b"K\x01", "damaged"),
    "a string longer than the file": (b"X\xff\xff\xff\x7fabc", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(PROGRAMS))
def test_pickles_that_torch_never_writes(kind: str, tmp_path: Path) -> None:
    program, message = PROGRAMS[kind]
    archive(tmp_path / "m.pt", b"\x80\x02" + program + (b"" if "damaged" in message else b"."))
    with pytest.raises(LoadError, match=message):
        load(tmp_path / "m.pt")


def test_a_second_pickle_is_followed_too(tmp_path: Path) -> None:
    """Names beside ``data.pkl`` in the archive are not read, and not trusted."""
    archive(tmp_path / "m.pt", b"\x80\x02N.", **{"m/other/data.pkl": b"\x80\x02" + CONV + b"K\x01\x85R."})
    with pytest.raises(LoadError):
        load(tmp_path / "m.pt")


# ------------------------------------------------------------------------------------------------- what state can hide


def shadowed(attribute: str, value: Any) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
    vars(model[0])[attribute] = value
    return model


def hooked(table: str, hook: Any) -> nn.Module:
    model = nn.Conv2d(1, 1, 1)
    vars(model)[table] = OrderedDict({0: hook})
    return model


def wrong_table(table: str, value: Any) -> nn.Module:
    model = nn.Conv2d(1, 1, 1)
    vars(model)[table] = value
    return model


def expanded() -> nn.Module:
    model = nn.Conv2d(1, 1, 1)
    model.register_buffer("air", torch.zeros(1).expand(10**6, 10**6))
    return model


def empty_values() -> nn.Module:
    return nn.Linear(10**6, 10**6, device="meta")


STATES: dict[str, tuple[Any, str]] = {
    "forward": (lambda: shadowed("forward", nn.ReLU()), r"layer 0 \(Conv2d\) replaces its own method 'forward'"),
    "__call__": (lambda: shadowed("__call__", nn.ReLU()), "replaces its own method '__call__'"),
    "_conv_forward": (lambda: shadowed("_conv_forward", torch.nn.functional.relu), "'_conv_forward'"),
    "state_dict": (lambda: shadowed("state_dict", nn.ReLU()), "'state_dict'"),
    "partial": (lambda: shadowed("forward", functools.partial(nn.functional.relu, inplace=True)), "'forward'"),
    "forward hook": (lambda: hooked("_forward_hooks", nn.ReLU()), "carries a hook"),
    "pre hook": (lambda: hooked("_forward_pre_hooks", functools.partial(nn.functional.relu)), "carries a hook"),
    "backward hook": (lambda: hooked("_backward_hooks", nn.ReLU()), "carries a hook"),
    "load hook": (lambda: hooked("_load_state_dict_pre_hooks", nn.ReLU()), "carries a hook"),
    "a list as submodules": (lambda: wrong_table("_modules", []), "not what a module has"),
    "text as a submodule": (lambda: wrong_table("_modules", {"a": "b"}), "not what a module has"),
    "a layer as a weight": (lambda: wrong_table("_parameters", {"weight": nn.ReLU()}), "not what a module has"),
    "a tensor of air": (expanded, "holds a tensor of"),
    "tensors without values": (empty_values, "without values"),
    "os.system as a call": (lambda: cnn.Call("os.system", ("true",)), "calls 'os.system'"),
    "eval as a call": (lambda: cnn.Call("builtins.eval", ("1",)), "calls 'builtins.eval'"),
    "a dunder": (lambda: cnn.Call("builtins.getattr", (cnn.Slot(0), "__class__")), "calls 'builtins.getattr'"),
    "a method with a callback": (lambda: cnn.Call(".apply_", (cnn.Slot(0), nn.ReLU())), r"calls '\.apply_'"),
    "torch.load": (lambda: cnn.Call("torch.load", ("x",)), "calls 'torch.load'"),
    "torch.from_file": (lambda: cnn.Call("torch.ops.aten.from_file.default", ("x",)), "from_file"),
    "a function of its own": (lambda: cnn.Call(".relu", (cnn.Slot(0),), {}, nn.functional.relu), r"'\.relu'"),
    "a call in a partial": (lambda: module_with(functools.partial(nn.ReLU, cnn.Call("os.system", ()))), "os.system"),
    "a call in a list": (lambda: module_with([{"a": cnn.Call("os.system", ())}]), "os.system"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(STATES))
def test_state_that_hides_something(kind: str, tmp_path: Path) -> None:
    make, message = STATES[kind]
    torch.save(make(), tmp_path / "m.pt")
    with pytest.raises(LoadError, match=message):
        load(tmp_path / "m.pt")


def deep(levels: int) -> nn.Module:
    model: nn.Module = nn.ReLU()
    for _ in range(levels):
        model = nn.Sequential(model)
    return model


def test_depth_is_no_weapon(tmp_path: Path) -> None:
    """A module nested a hundred thousand times, written without recursion."""
    layer = name("torch.nn.modules.activation", "ReLU") + b")\x81}" + text("_modules") + b"}sb"
    wrap = name("torch.nn.modules.container", "Sequential") + b")\x81}" + text("_modules") + b"}" + text("0")
    archive(tmp_path / "m.pt", b"\x80\x02" + wrap * 100_000 + layer + b"ssb" * 100_000 + b".")
    with pytest.raises(LoadError):
        load(tmp_path / "m.pt")
    torch.save(deep(20), tmp_path / "fine.pt")
    assert isinstance(load(tmp_path / "fine.pt"), nn.Module)


# --------------------------------------------------------------------------------------------------- graphs as data


def described() -> tuple[dict[str, Any], dict[str, Any]]:
    content, parts = describe(graph())
    return json.loads(content), parts


def edited(edit: Any) -> tuple[str, dict[str, Any]]:
    data, parts = described()
    edit(data)
    return json.dumps(data), parts


def node(data: dict[str, Any], op: str) -> list[Any]:
    found: list[Any] = next(n for n in data["nodes"] if n[1] == op)
    return found


def call(target: str, op: str = "call_function", args: Any = None) -> Any:
    def edit(data: dict[str, Any]) -> None:
        data["nodes"].insert(1, ["planted", op, target, {"tuple": args or []}, {"dict": []}])

    return edit


INJECTED = "x): __import__('os').system('touch canary')\n    def f("
GRAPHS: dict[str, Any] = {
    "a function": call("os.system"),
    "eval": call("builtins.eval", args=["1"]),
    "operator.methodcaller": call("operator.methodcaller", args=["system"]),
    "torch.hub": call("torch.hub.load"),
    "an in-place operator": call("torch.ops.aten.set_.source_Tensor"),
    "a method": call("apply_", "call_method"),
    "a method made of code": call("relu();print", "call_method"),
    "a layer that is not there": call("absent", "call_module"),
    "a kind that is none": call("x", "call_code"),
    "a dunder attribute": call("builtins.getattr", args=[{"node": "input_1"}, "__class__"]),
    "code as a name": lambda d: d["nodes"][1].__setitem__(0, INJECTED),
    "code as an input": lambda d: d["nodes"][0].__setitem__(2, INJECTED),
    "code as the class": lambda d: d.update(name=INJECTED),
    "code as a keyword": lambda d: d["nodes"][1].__setitem__(4, {"dict": [[INJECTED, 1]]}),
    "a keyword as a name": lambda d: d["nodes"][1].__setitem__(0, "class"),
    "an unknown argument": lambda d: d["nodes"][1].__setitem__(3, {"tuple": [{"code": "1"}]}),
    "an unknown dtype": lambda d: d["nodes"][1].__setitem__(3, {"tuple": [{"dtype": "torch.load"}]}),
    "a node from nowhere": lambda d: d["nodes"][1].__setitem__(3, {"tuple": [{"node": "nowhere"}]}),
    "another format": lambda d: d.update(format=99),
    "no nodes": lambda d: d.pop("nodes"),
    "nodes of another shape": lambda d: d.update(nodes=[1, 2]),
}


@pytest.mark.parametrize("kind", list(GRAPHS))
def test_graphs_that_are_not_what_they_say(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    content, parts = edited(GRAPHS[kind])
    with pytest.raises(LoadError):
        rebuild(content, parts)
    torch.save(Reduces(rebuild, content, parts, None), "m.pt")
    with pytest.raises(LoadError):
        load("m.pt")
    assert os.listdir() == ["m.pt"]


@pytest.mark.parametrize("path", ["a b", "0;import os", "a..b", "", ".a", "x\n"])
def test_names_of_layers_are_names(path: str) -> None:
    content, parts = described()
    with pytest.raises(LoadError):
        rebuild(json.dumps(content), {**parts, path: nn.ReLU()})
    with pytest.raises(LoadError):
        rebuild(json.dumps(content), {**parts, "extra": "text"})


def test_depth_in_a_description_is_refused() -> None:
    content, parts = described()
    deepest = '{"tuple": [' * 20_000 + "]}" * 20_000
    broken = json.dumps(content).replace('{"tuple": []}', deepest, 1)
    with pytest.raises(LoadError):
        rebuild(broken if broken != json.dumps(content) else deepest, parts)


def test_code_of_graph_modules_is_not_run(tmp_path: Path) -> None:
    traced = fx.symbolic_trace(nn.Sequential(nn.ReLU()))
    torch.save(traced, tmp_path / "m.pt")
    with pytest.raises(LoadError, match="code is part of the file"):
        load(tmp_path / "m.pt")
    canonize.save(traced, tmp_path / "data.pt", example_inputs=torch.ones(1))
    assert b"def forward" not in (tmp_path / "data.pt").read_bytes()
    assert torch.equal(load(tmp_path / "data.pt")(-torch.ones(1)), torch.zeros(1))


# ---------------------------------------------------------------------------------------------------------- archives


def rewritten(path: Path, change: Any) -> None:
    torch.save(nn.Conv2d(1, 1, 1), path)
    with zipfile.ZipFile(path) as old:
        entries = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        change(new, entries)


def bomb(new: zipfile.ZipFile, entries: Any) -> None:
    for entry, content in entries:
        new.writestr(entry, content)
    new.writestr("m/data/9", b"\0" * 50_000_000, zipfile.ZIP_DEFLATED)


def climbing(new: zipfile.ZipFile, entries: Any) -> None:
    for entry, content in entries:
        new.writestr(entry, content)
    new.writestr("m/../../canary", b"x")


def twice(new: zipfile.ZipFile, entries: Any) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for entry, content in entries * 2:
            new.writestr(entry, content)


@pytest.mark.parametrize(
    ("change", "message"), [(bomb, "compressed entry"), (climbing, "leads out"), (twice, "two entries of one name")]
)
def test_archives_that_torch_never_writes(change: Any, message: str, tmp_path: Path) -> None:
    rewritten(tmp_path / "m.pt", change)
    with pytest.raises(LoadError, match=message):
        load(tmp_path / "m.pt")


def test_entries_that_lie_over_each_other(tmp_path: Path) -> None:
    """A thousand entries that all point at the same megabyte."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as new:
        new.writestr("m/data.pkl", b"\x80\x02N." + b"\0" * 1_000_000)
        first = new.infolist()[0]
        for number in range(1000):
            twin = zipfile.ZipInfo(f"m/data/{number}")
            twin.__dict__ if hasattr(twin, "__dict__") else None
            for field in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(twin, field, getattr(first, field))
            new.filelist.append(twin)
            new.NameToInfo[twin.filename] = twin
    (tmp_path / "m.pt").write_bytes(data.getvalue())
    with pytest.raises(LoadError, match="over each other"):
        load(tmp_path / "m.pt")


def test_safetensors_that_lie(tmp_path: Path) -> None:
    for header in (
        {"w": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4 * 10**15]}},
        {"../w": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}},
    ):
        raw = json.dumps(header).encode()
        (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * 4)
        with pytest.raises(LoadError, match="damaged"):
            load(tmp_path / "m.safetensors", "torchvision:resnet18")
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(LoadError, match="damaged"):
        load(tmp_path / "m.safetensors", "torchvision:resnet18")


def test_a_pickle_under_another_ending(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for ending in (".pt", ".pth", ".bin", ".pt2", ".onnx", ".safetensors", ".weird"):
        (tmp_path / f"m{ending}").write_bytes(pickle.dumps(Reduces(os.system, f"touch {canary}")))
        with pytest.raises(LoadError):
            load(tmp_path / f"m{ending}", "torchvision:resnet18")
    assert not canary.exists()


NAMED = {
    "a norm": lambda y: y / torch.linalg.vector_norm(y, dim=1, keepdim=True),
    "a spectrum": lambda y: torch.fft.rfft2(y).abs(),
    "a special function": lambda y: torch.special.erf(y),
    "a tensor made alike": lambda y: y * y.new_ones(y.shape) + y.new_zeros(1),
    "a tensor of a size": lambda y: y * torch.as_tensor(y.shape[-1]) + torch.tensor(y.shape[-1]),
    "limits": lambda y: y.masked_fill(y > 1, torch.finfo(y.dtype).min).softmax(1),
    "both": lambda y: y * ((y > 0) & (y < 1)),
    "a size rounded": lambda y: nn.functional.interpolate(y, size=(int(math.ceil(y.shape[2] / 2) * 2), 8)),
    "a root of a size": lambda y: y / math.sqrt(y.shape[1]) * max(y.shape[2], 3),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_only_computes_is_read_without_trust(name: str, tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return NAMED[name](self.conv(x))

    x = torch.randn(2, 3, 10, 10)
    found = canonize.canonize(Model().eval(), x)
    canonize.save(found, tmp_path / "model.pt")
    torch.testing.assert_close(canonize.load(tmp_path / "model.pt")(x), found(x))


@pytest.mark.parametrize(
    "name",
    ["builtins.eval", "builtins.open", "builtins.__import__", "math.nothing", "torch._C._linalg.nothing",
     "torch._C._fft.fft_fft2_", "torch.ops.aten.__class__.default", "builtins.exec", "torch.load"],
)  # fmt: skip
def test_what_reaches_further_is_not_named(name: str) -> None:
    with pytest.raises(LoadError):
        callable_named(name)
