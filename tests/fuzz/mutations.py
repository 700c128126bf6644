"""Small model files in every format, and ways to break them: blindly, and knowing what is inside."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import onnx
import safetensors.torch
import torch
from torch import nn

import canonize
from canonize.export import pt, pt2

Mutation = Callable[[bytes, random.Random], bytes]
# Words that stand in model files, and words that ought not to.
WORDS = [
    *(b"os", b"posix", b"system", b"eval", b"exec", b"builtins", b"__builtin__", b"__import__", b"torch.load"),
    *(b"_forward_hooks", b"torch.nn.modules.conv", b"Conv2d", b"canonize.saved", b"rebuild", b"functools", b"partial"),
    *(b"..", b"/", b"-1", b"NaN", b"", b"\xff\xff", b"{}", b"null", b"a" * 300, b"call_function", b"forward"),
]


def model() -> nn.Module:
    """A model that is small in every format."""
    torch.manual_seed(0)
    layers = OrderedDict(conv=nn.Conv2d(1, 2, 3), bn=nn.BatchNorm2d(2), act=nn.ReLU(), flat=nn.Flatten())
    return nn.Sequential(layers).eval()


def seeds(folder: Path) -> dict[str, bytes]:
    """A well-formed file of every format, by name."""
    x = torch.randn(2, 1, 5, 5)
    net = model()
    canonical = canonize.canonize(net, x, verify=False)
    folder.mkdir(exist_ok=True)
    torch.save(net, folder / "module.pt")
    torch.save(net.state_dict(), folder / "state.pt")
    torch.save(net.state_dict(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    pt.write(canonical, folder / "canonical.pt", None, folder / "canonical.pt")
    pt2.write(canonical, folder / "program.pt2", canonize.inputs.normalise(x), folder / "program.pt2")
    safetensors.torch.save_file(net.state_dict(), folder / "weights.safetensors")
    silence = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), folder / "graph.onnx", dynamo=False, input_names=["x"])
    numpy.savez(folder / "x.npz", a=x.numpy())
    torch.save((x, {"y": x}), folder / "x.pt")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ------------------------------------------------------------------------------------------------------------ blindly


def flip(content: bytes, dice: random.Random) -> bytes:
    """Change a few bits."""
    broken = bytearray(content)
    for _ in range(dice.randint(1, 8)):
        broken[dice.randrange(len(broken))] ^= 1 << dice.randrange(8)
    return bytes(broken)


def cut(content: bytes, dice: random.Random) -> bytes:
    """End too early."""
    return content[: dice.randrange(len(content))]


def splice(content: bytes, dice: random.Random) -> bytes:
    """Put a piece of the file somewhere else."""
    start, length, to = (dice.randrange(len(content)), dice.randint(1, 64), dice.randrange(len(content)))
    return content[:to] + content[start : start + length] + content[to:]


def word(content: bytes, dice: random.Random) -> bytes:
    """Write a word over what is there, or between."""
    place, what = dice.randrange(len(content)), dice.choice(WORDS)
    return content[:place] + what + content[place + (len(what) if dice.random() < 0.5 else 0) :]


def number(content: bytes, dice: random.Random) -> bytes:
    """Write a number that sizes do not expect."""
    values = (0, -1, 2**31 - 1, -(2**31), 2**63 - 1, 255, 1 << 20)
    raw = struct.pack("<q", dice.choice(values))[: dice.choice((1, 2, 4, 8))]
    place = dice.randrange(len(content))
    return content[:place] + raw + content[place + len(raw) :]


BLIND: tuple[Mutation, ...] = (flip, cut, splice, word, number)

# ----------------------------------------------------------------------------------------------- knowing what is inside


def _stamped(name: str) -> zipfile.ZipInfo:
    """An entry of no particular time: a name alone is stamped with the clock's, and no run is like another."""
    return zipfile.ZipInfo(name)


def inside_zip(content: bytes, dice: random.Random) -> bytes:
    """Break one entry of an archive and write sums that fit."""
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        entries = [(info.filename, old.read(info)) for info in old.infolist()]
    likely = [i for i, (name, _) in enumerate(entries) if name.endswith((".pkl", ".json", "model.pt"))]
    chosen = dice.choice(likely) if likely and dice.random() < 0.8 else dice.randrange(len(entries))
    target = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w") as new:
        warnings.simplefilter("ignore")
        for index, (name, entry) in enumerate(entries):
            if index != chosen:
                new.writestr(_stamped(name), entry)
            elif dice.random() < 0.05:
                new.writestr(_stamped(dice.choice([name + "x", "../" + name, name.upper()])), entry)
            elif entry:
                broken = in_json(entry, dice) if name.endswith(".json") else dice.choice(BLIND)(entry, dice)
                new.writestr(_stamped(name), broken, dice.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED]))
    return target.getvalue()


def in_json(content: bytes, dice: random.Random) -> bytes:
    """Exchange one value of a JSON document."""
    try:
        data = json.loads(content)
    except ValueError:
        return dice.choice(BLIND)(content, dice)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in pairs:
            places.append((value, key))
            walk(item)

    walk(data)
    if places:
        owner, key = dice.choice(places)
        odd: list[Any] = [None, -1, 2**70, 1e400, "", [], {}, True, *(w.decode("latin1") for w in WORDS)]
        owner[key] = dice.choice(odd)
    return json.dumps(data).encode()


def in_safetensors(content: bytes, dice: random.Random) -> bytes:
    """Exchange one value of the header, its length right."""
    (length,) = struct.unpack("<Q", content[:8])
    header = in_json(content[8 : 8 + length], dice)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def in_onnx(content: bytes, dice: random.Random) -> bytes:
    """Change one thing of a graph."""
    proto = onnx.ModelProto.FromString(content)
    graph = proto.graph
    node = dice.choice(graph.node)
    weight = dice.choice(graph.initializer)
    text = dice.choice(WORDS).decode("latin1")
    changes: list[Callable[[], Any]] = [
        lambda: setattr(node, "op_type", dice.choice(["Relu", "Add", "Loop", "If", "Reshape", text])),
        lambda: setattr(node, "domain", text),
        lambda: node.input.append(dice.choice([text, weight.name])),
        lambda: node.input.pop() if node.input else None,
        lambda: node.output.append(text),
        lambda: setattr(weight, "name", text),
        lambda: weight.dims.append(dice.choice([0, -1, 2, 2**40])),
        lambda: weight.dims.pop() if weight.dims else None,
        lambda: setattr(weight, "data_type", dice.randint(-1, 30)),
        lambda: setattr(weight, "raw_data", weight.raw_data[: dice.randint(0, 8)]),
        lambda: setattr(weight, "data_location", 1),
        lambda: graph.input[0].type.tensor_type.shape.dim.pop(),
        lambda: setattr(graph.input[0].type.tensor_type, "elem_type", dice.randint(0, 25)),
        lambda: setattr(proto.opset_import[0], "version", dice.randint(-1, 40)),
        lambda: graph.node.append(node),
        lambda: graph.node.remove(node),
        lambda: [setattr(a, "i", dice.choice([-1, 0, 2**40])) for a in node.attribute],
        lambda: [a.ints.append(dice.choice([-1, 0, 3, 2**40])) for a in node.attribute],
        lambda: [setattr(a, "name", text) for a in node.attribute],
    ]
    with contextlib.suppress(ValueError, TypeError, IndexError, UnicodeError):
        dice.choice(changes)()
    return proto.SerializeToString()


def mutate(name: str, content: bytes, dice: random.Random) -> bytes:
    """A broken version of a file, one or several ways at once."""
    aware: dict[str, Mutation] = {".pt": inside_zip, ".pt2": inside_zip, ".npz": inside_zip, ".onnx": in_onnx}
    aware[".safetensors"] = in_safetensors
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        known = aware.get(Path(name).suffix)
        with contextlib.suppress(Exception):  # what is broken already may be beyond knowing
            if known is not None and name != "legacy.pt" and dice.random() < 0.7:
                content = known(content, dice)
                continue
        content = dice.choice(BLIND)(content or b"x", dice)
    return content
