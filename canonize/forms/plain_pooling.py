r"""Adaptive pooling as plain pooling, where its windows are all alike.

Along a dimension of :math:`n` positions an adaptive pooling to :math:`m` takes window :math:`i` from
:math:`\lfloor i n / m \rfloor` to :math:`\lceil (i + 1) n / m \rceil`; where :math:`m` divides :math:`n` these are the
windows of a plain pooling of size and stride :math:`n / m`.

::

    have   x (n positions) -> AdaptiveAvgPool(m) -> y
    want   x (n positions) -> AvgPool(n/m, stride=n/m) -> y

A plain pooling is the same function for this :math:`n` only: where the model takes images of any size, the canonical
model checks the size and refuses others.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from canonize.capture.captured import GUARD
from canonize.graph.network import Network
from canonize.report.record import Refusal, Rewrite
from canonize.rewrite.form import Form
from canonize.rewrite.journal import Journal

_PLAIN: dict[type, Any] = {
    nn.AdaptiveAvgPool1d: nn.AvgPool1d,
    nn.AdaptiveAvgPool2d: nn.AvgPool2d,
    nn.AdaptiveAvgPool3d: nn.AvgPool3d,
    nn.AdaptiveMaxPool1d: nn.MaxPool1d,
    nn.AdaptiveMaxPool2d: nn.MaxPool2d,
    nn.AdaptiveMaxPool3d: nn.MaxPool3d,
}


class PlainPooling(Form):
    """Write adaptive pooling as plain pooling."""

    name = "plain_pooling"
    summary = "adaptive pooling as plain pooling, for one image size"

    def after(self, network: Network, journal: Journal) -> None:
        """Exchange each adaptive pooling whose windows are alike."""
        for node in list(network.graph.nodes):
            module = network.module(node)
            if type(module) not in _PLAIN or getattr(module, "return_indices", False):
                continue
            source = node.args[0]
            assert isinstance(source, fx.Node)
            sizes, windows = self._windows(network, source, module)
            if windows is None:
                reason = f"its windows over {'x'.join(map(str, sizes))} positions are not all alike"
                journal.refuse(Refusal(self.name, str(node.target), reason))
                continue
            if journal.full:
                return
            self._check_size(network, node, source, sizes)
            network.replace(node, _PLAIN[type(module)](windows, stride=windows))
            journal.add(Rewrite(self.name, str(node.target), (str(node.target),)))

    def _windows(
        self, network: Network, source: fx.Node, module: Any
    ) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        dims = int(type(module).__name__[-2])
        shape = network.shapes.shape(source)
        if shape is None:
            return (), None
        sizes = shape[-dims:]
        asked = module.output_size if isinstance(module.output_size, tuple | list) else (module.output_size,) * dims
        outputs = [size if wanted is None else wanted for size, wanted in zip(sizes, asked, strict=True)]
        if any(not wanted or size % wanted for size, wanted in zip(sizes, outputs, strict=True)):
            return sizes, None
        return sizes, tuple(size // wanted for size, wanted in zip(sizes, outputs, strict=True))

    def _check_size(self, network: Network, node: fx.Node, source: fx.Node, sizes: tuple[int, ...]) -> None:
        shape = network.shapes.shape(source)
        assert shape is not None
        free = network.shapes.free_dims(source)
        first = len(shape) - len(sizes)
        for dim, size in enumerate(sizes, first):
            if dim not in free:
                continue
            said = f"this canonical model holds where {node.target} pools over {'x'.join(map(str, sizes))} positions"
            with network.graph.inserting_before(node):
                found = network.graph.call_method("size", (source, dim))
                holds = network.graph.call_function(operator.eq, (found, size))
                message = f"{GUARD}: {said}. Canonize again with an input like yours, or without --form {self.name}."
                network.graph.call_function(torch._assert, (holds, message))
            if said not in network.notes:
                network.notes.append(said)
