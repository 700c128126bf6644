r"""Dense layers as convolutions, as tutorials of layer-wise relevance propagation write VGG's classifier.

.. math:: W\,\mathrm{vec}(x) + b = \mathrm{conv}(x;\, W \text{ viewed as } K \times C \times H \times W) + b

::

    have   x (C, H, W) -> Flatten -> Linear(C H W, K) -> ReLU -> Linear(K, L) -> y
    want   x (C, H, W) -> Conv(C, K, (H, W)) -> ReLU -> Conv1x1(K, L) -> Flatten -> y
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.algebra.exact import ExactTensor, exact_parameter
from canonize.graph.network import Network, keep_exact
from canonize.nn import ThreshReLU
from canonize.report.record import Refusal, Rewrite
from canonize.rewrite.form import Form
from canonize.rewrite.journal import Journal

_CONVOLUTIONS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Threshold,
)  # fmt: skip


class DenseAsConvolution(Form):
    """Write dense layers as convolutions."""

    name = "dense_as_convolution"
    summary = "dense layers behind a flattening as convolutions"

    def after(self, network: Network, journal: Journal) -> None:
        """Move each flattening behind the dense layers and activations that follow it."""
        for node in list(network.graph.nodes):
            if isinstance(network.module(node), nn.Linear):
                self._open(network, node)
        for node in list(network.graph.nodes):
            if isinstance(network.module(node), nn.Flatten):
                self._push(network, node, journal)
        for node in network.graph.nodes:
            if isinstance(network.module(node), nn.Linear):
                reason = "its input is no flattened image, or somebody else reads it too"
                journal.refuse(Refusal(self.name, str(node.target), reason))

    def _open(self, network: Network, dense: fx.Node) -> None:
        """A dense layer on plain vectors sees them as images of one pixel."""
        source = dense.args[0]
        shape = network.shapes.shape(source) if isinstance(source, fx.Node) else None
        if shape is None or len(shape) != 2 or 1 in network.shapes.free_dims(source):  # type: ignore[arg-type]
            return
        before: Any = source
        while isinstance(network.module(before), (*_ELEMENTWISE, nn.Linear)) and len(network.readers(before)) == 1:
            before = before.args[0]
        if isinstance(network.module(before), nn.Flatten) and len(network.readers(before)) == 1:
            return  # its flattening will come by
        image = network.insert_before(dense, 0, f"{dense.target}_image", nn.Unflatten(1, (shape[1], 1, 1)))
        with network.graph.inserting_after(image):
            flat = network.call(f"{dense.target}_flatten", nn.Flatten(1), (image,), dense)
        network.rewire(dense, image, flat)

    def _push(self, network: Network, flatten: fx.Node, journal: Journal) -> None:
        while True:
            source, readers = flatten.args[0], list(flatten.users)
            shape = network.shapes.shape(source) if isinstance(source, fx.Node) else None
            if (
                shape is None
                or len(shape) not in _CONVOLUTIONS
                or len(readers) != 1
                or not self._is_plain(network, flatten)
            ):
                return
            if set(range(1, len(shape))) & network.shapes.free_dims(source):  # type: ignore[arg-type]
                return
            (reader,) = readers
            layer = network.module(reader)
            if journal.full or not isinstance(layer, (nn.Linear, ThreshReLU, *_ELEMENTWISE)):
                return
            if isinstance(layer, nn.Linear):
                self._as_convolution(network, reader, shape)
            elif isinstance(layer, ThreshReLU):
                network.replace(reader, _reshaped(layer, shape))
            network.exchange(flatten, reader)
            if isinstance(layer, nn.Linear):
                journal.add(Rewrite(self.name, str(reader.target), (str(reader.target),)))

    def _is_plain(self, network: Network, flatten: fx.Node) -> bool:
        module: Any = network.module(flatten)
        return module.start_dim == 1 and module.end_dim in (-1, len(network.shapes.shape(flatten.args[0]) or ()) - 1)  # type: ignore[arg-type]

    def _as_convolution(self, network: Network, node: fx.Node, shape: tuple[int, ...]) -> None:
        dense: Any = network.module(node)
        weights = network.weights(node)
        kernel = shape[2:]
        convolution = _CONVOLUTIONS[len(shape)](
            shape[1], dense.out_features, kernel, bias=weights.bias is not None, device="meta"
        )
        full = (dense.out_features, *shape[1:])
        if weights.touched:
            convolution.weight = exact_parameter(weights.exact_weight().reshape(full), dense.weight)
            if weights.bias is not None:
                convolution.bias = exact_parameter(weights.bias, dense.weight)
        else:
            convolution.weight = nn.Parameter(dense.weight.detach().view(full), dense.weight.requires_grad)
            convolution.bias = dense.bias
        network.replace(node, convolution)


def _reshaped(layer: ThreshReLU, shape: tuple[int, ...]) -> ThreshReLU:
    """The same bounds for a value that is not flattened yet."""

    def reshaped(bound: Tensor | None) -> Tensor | None:
        if bound is None or bound.numel() == 1:
            return bound
        full = torch.broadcast_to(bound, (1, bound.shape[-1])).reshape(1, *shape[1:])
        return keep_exact(full, bound.rounding) if isinstance(bound, ExactTensor) else full

    return ThreshReLU(reshaped(layer.lower), reshaped(layer.upper))
