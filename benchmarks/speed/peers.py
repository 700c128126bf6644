"""What other tools do: each entry prepares outside of the measured time and returns what is measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from benchmarks.speed.timing import quiet
from canonize.compat import import_torchvision

Run = Callable[[], Any]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fuse(model: nn.Module, x: Tensor) -> Run:
    """Copies the model, traces it, folds BatchNorms into the convolutions in front of them."""
    from torch.fx.experimental.optimization import fuse

    return lambda: fuse(model)


def fuse_pairs(model: nn.Module, x: Tensor) -> Run:
    """The arithmetic alone: someone else has already traced the model and knows which layers belong together."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    pairs = convolution_batch_norm_pairs(model)
    if not pairs:
        raise ValueError("torch.fx sees no convolution that a BatchNorm follows")
    return lambda: [fuse_conv_bn_eval(convolution, norm) for convolution, norm in pairs]


def convolution_batch_norm_pairs(model: nn.Module) -> list[tuple[Any, Any]]:
    """Convolutions that only a BatchNorm reads, and that BatchNorm."""
    pairs = []
    # Of a copy: some models keep what a forward has made, and tracing would leave its proxies there.
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    for node in fx.symbolic_trace(model).graph.find_nodes(op="call_module"):
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        convolution, norm = modules[source.target], modules[node.target]
        if isinstance(convolution, _CONVOLUTIONS) and isinstance(norm, _BATCH_NORMS):
            pairs.append((convolution, norm))
    return pairs


def zennit(model: nn.Module, x: Tensor) -> Run:
    """Writes into the live model, and takes it back."""
    import_torchvision()
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer

    own = {"VGG": VGGCanonizer, "ResNet": ResNetCanonizer}.get(type(model).__name__, SequentialMergeBatchNorm)
    model = copy.deepcopy(model)

    def run() -> int:
        applied = own().apply(model)
        for canonizer in applied:
            canonizer.remove()
        return len(applied)

    if not run():
        raise ValueError("zennit finds no BatchNorm right behind a linear layer")
    return run


def exported(model: nn.Module, x: Tensor, optimize: bool = False) -> Any:
    """The model as an ONNX message, as PyTorch writes it."""
    with quiet():
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, optimize=optimize)
    assert program is not None
    return program.model_proto


def onnxsim(file: Any) -> Run:
    """Simplifies a graph by constant folding and fusion."""
    from onnxsim import simplify

    return lambda: simplify(file)[0]


def onnxslim(file: Any) -> Run:
    """Simplifies a graph in Python; it writes into what it is given."""
    from onnxslim import slim

    return lambda: slim(copy.deepcopy(file))


def onnxscript(file: Any) -> Run:
    """What PyTorch's exporter runs by default."""
    from onnxscript import optimizer

    return lambda: optimizer.optimize(file)


PEERS: dict[str, Callable[[nn.Module, Tensor], Run]] = {
    "torch.fx fuse": fuse,
    "fuse_conv_bn_eval": fuse_pairs,
    "zennit": zennit,
}
ON_FILES: dict[str, Callable[[Any], Run]] = {"onnxsim": onnxsim, "onnxslim": onnxslim, "onnxscript": onnxscript}
