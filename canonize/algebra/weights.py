r"""Linear layers with pending rescalings: the weights are read and written once, when the canonical model is built.

Whatever an absorption does to a linear layer :math:`y = W x + b` is a scale per input channel, a scale per output
channel and a new bias:

.. math:: W' = \mathrm{diag}(s_o)\, W\, \mathrm{diag}(s_i)

The vectors are kept in float64, so that many absorptions into one layer still round its weight once.
"""

from __future__ import annotations

import contextlib
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from canonize.algebra.affine import EXACT
from canonize.algebra.exact import exact_value

LINEAR = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Elements converted at a time. Below torch's grain (32,768) an operation stays in the calling thread: larger ones open
# thousands of short parallel regions, and beside a busy neighbour each waits for a thread that is not running (measured
# on ResNet-50: ten times as long). A quarter of a megabyte in float64 also fits any second-level cache.
_CHUNK = (1 << 15) - 1
CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A float64 tensor in another precision.

    Raises
    ------
    OverflowError
        If a finite number is none any more.
    """
    result = tensor.detach().to(dtype)
    if not bool(torch.isfinite(result).all()) and bool(torch.isfinite(tensor).all()):
        raise OverflowError(f"what it adds, or what it is compared with, overflows in {str(dtype)[6:]}")
    return result


class _Pool(threading.local):
    """Float64 memory for pieces of weights: fresh pieces would each land on, and keep, other pages."""

    def __init__(self) -> None:
        self.free: list[Tensor] = []


_pool = _Pool()


@contextlib.contextmanager
def _float64(shape: Sequence[int], device: torch.device) -> Iterator[Tensor]:
    """Memory for a piece of a weight; what it holds at first is anything."""
    count = math.prod(shape)
    if device.type != "cpu" or count > _CHUNK:
        yield torch.empty(shape, dtype=EXACT, device=device)
        return
    buffer = _pool.free.pop() if _pool.free else None
    if buffer is None or buffer.numel() < count:
        with torch.inference_mode(False):  # to be written to in and out of that mode
            buffer = torch.empty(_CHUNK, dtype=EXACT, device="cpu")
    try:
        yield buffer[:count].view(shape)
    finally:
        _pool.free.append(buffer)


class Kernel(ABC):
    """A weight that is worked out when it is written: what other layers' weights add up or multiply to.

    Attributes
    ----------
    shape : torch.Size
        As a layer has it: output channels (features), input channels of a group, kernel positions.
    device : torch.device
    at_once : bool
        Whether all rows are asked for together, because each of them costs what all of them cost.
    """

    shape: torch.Size
    device: torch.device
    at_once: bool = False

    @abstractmethod
    def add_to(self, target: Tensor, part: slice, factor: float) -> None:
        """Add some of the rows, times a factor, to a float64 tensor of their shape."""

    def rows(self, part: slice) -> Tensor:
        """Some of the rows, in float64; a tensor that the caller may write to."""
        count = len(range(*part.indices(self.shape[0])))
        rows = torch.zeros((count, *self.shape[1:]), dtype=EXACT, device=self.device)
        self.add_to(rows, part, 1.0)
        return rows


class PendingWeights(Kernel):
    """The weights of one linear layer, with what is to be done to them.

    Parameters
    ----------
    module : nn.Module
        One of ``LINEAR``; not changed before ``write``.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        weight = module.weight
        assert isinstance(weight, Tensor)
        self.dtype = weight.dtype
        self.weight: Tensor | Kernel = exact_value(weight)
        # Not as the layer has it: known better than its own dtype can say, or the layer has none yet.
        self.baked = self.weight.dtype != self.dtype
        self.transposed = isinstance(module, TRANSPOSED)
        self.groups = int(getattr(module, "groups", 1))
        bias = module.bias
        self.bias: Tensor | None = exact_value(bias).to(EXACT) if isinstance(bias, Tensor) else None
        self.in_scale: Tensor | None = None
        self.out_scale: Tensor | None = None
        self.bias_touched = False

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        """The weight's shape."""
        return self.weight.shape

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the weight is."""
        return self.weight.device

    @property
    def out_channels(self) -> int:
        """Number of output channels (features)."""
        return self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]

    @property
    def in_channels(self) -> int:
        """Number of input channels (features)."""
        return self.weight.shape[0] if self.transposed else self.weight.shape[1] * self.groups

    @property
    def touched(self) -> bool:
        """Whether anything is pending."""
        return self.rescaled or self.bias_touched

    @property
    def rescaled(self) -> bool:
        """Whether the weight itself has to be written."""
        return self.in_scale is not None or self.out_scale is not None or self.baked

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Pieces of the weight as (rows, columns, kernel positions) in float64, small enough to stay in the cache.

        Rows are output channels, columns the inputs of their group; the other way round in a transposed convolution.
        A piece is the caller's to write to, and only until the next one is asked for.
        """
        rows, size = self.shape[0], self.shape[1:].numel()
        all_at_once = self.device.type != "cpu" or self.at_once
        step = max(1, rows if all_at_once else _CHUNK // max(1, size))
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            with self._piece(part) as piece:
                yield part, piece

    @contextlib.contextmanager
    def _piece(self, part: slice) -> Iterator[Tensor]:
        rows = part.stop - part.start
        with _float64((rows, *self.shape[1:]), self.device) as piece:
            if isinstance(self.weight, Tensor):
                piece.copy_(self.weight[part])
            else:
                self.weight.add_to(piece.zero_(), part, 1.0)
            yield piece.view(rows, self.shape[1], self.shape[2:].numel())

    @property
    def at_once(self) -> bool:  # type: ignore[override]
        """See `Kernel`."""
        return isinstance(self.weight, Kernel) and self.weight.at_once

    def add_to(self, target: Tensor, part: slice, factor: float) -> None:
        """Add some of the rows with everything pending applied; see `Kernel`."""
        with self._piece(part) as piece:
            target.add_(self._rescale(part, piece).reshape(target.shape), alpha=factor)

    def _groups_of(self, part: slice) -> Tensor:
        per_group = self.weight.shape[0] // self.groups
        return torch.arange(part.start, part.stop, device=self.weight.device) // per_group

    def _per_row(self, vector: Tensor, part: slice) -> Tensor:
        return vector.reshape(-1)[part, None, None]

    def _per_column(self, vector: Tensor, part: slice) -> Tensor:
        if self.groups == 1:
            return vector.reshape(1, -1, 1)
        return vector.reshape(self.groups, -1)[self._groups_of(part)][:, :, None]

    def _rescale(self, part: slice, piece: Tensor) -> Tensor:
        """Apply everything pending to a piece; the input side first."""
        of_inputs, of_outputs = self._per_column, self._per_row
        if self.transposed:
            of_inputs, of_outputs = of_outputs, of_inputs
        if self.in_scale is not None:
            piece.mul_(of_inputs(self.in_scale, part))
        if self.out_scale is not None:
            piece.mul_(of_outputs(self.out_scale, part))
        return piece

    def rounded_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight with everything pending applied, rounded once, in the layer's own layout.

        The memory it takes beside its result is that of a small piece in float64.

        Raises
        ------
        OverflowError
            If a finite weight is none any more in this precision.
        """
        result = torch.empty(self.weight.shape, dtype=dtype, device=self.weight.device)
        rows = result.view(*self.weight.shape[:2], self.weight.shape[2:].numel())
        sums = []
        for part, piece in self._chunks():
            written = rows[part].copy_(self._rescale(part, piece))
            sums.append(written.sum())  # while it is in the cache
        # One number says whether all are numbers.
        if sums and not math.isfinite(float(torch.stack(sums).sum())):
            self._refuse_overflow(result)
        return result

    def _refuse_overflow(self, rounded: Tensor) -> None:
        """Sums of finite numbers may overflow; and what was no number before may stay none."""
        known = isinstance(self.weight, Tensor) and not bool(torch.isfinite(self.weight).all())
        if not known and not bool(torch.isfinite(rounded).all()):
            raise OverflowError(f"its weights, with what they take up, overflow in {str(rounded.dtype)[6:]}")

    def exact_weight(self) -> Tensor:
        """The weight with everything pending applied, float64, in the layer's own layout."""
        return self.rounded_weight(EXACT)

    def response_to(self, shift: Tensor) -> Tensor:
        r"""What a constant input :math:`t` per channel adds to each output, :math:`\sum_{i,k} W_{oik} t_i`."""
        inputs = shift.reshape(-1) if self.in_scale is None else (shift * self.in_scale).reshape(-1)
        if self.transposed:
            response = inputs.new_zeros(self.groups, self.weight.shape[1])
            for part, piece in self._chunks():
                response.index_add_(0, self._groups_of(part), piece.sum(2) * inputs[part, None])
        else:
            response = inputs.new_empty(self.weight.shape[0])
            for part, piece in self._chunks():
                sums = piece.sum(2) if piece.shape[2] > 1 else piece[:, :, 0]
                if self.groups == 1:
                    response[part] = sums @ inputs
                else:
                    response[part] = (sums * inputs.reshape(self.groups, -1)[self._groups_of(part)]).sum(1)
        response = response.reshape(-1)
        return response if self.out_scale is None else response * self.out_scale.reshape(-1)

    def absorb_output(self, scale: Tensor, shift: Tensor) -> None:
        r"""Take :math:`s y + t` behind the layer: :math:`W' = s W`, :math:`b' = s b + t` (Eq. 3)."""
        self.out_scale = scale if self.out_scale is None else self.out_scale * scale
        self.bias = shift if self.bias is None else self.bias * scale + shift
        self.bias_touched = True

    def absorb_input(self, scale: Tensor, shift: Tensor) -> None:
        r"""Take :math:`s x + t` before the layer: :math:`W' = W s`, :math:`b' = b + \sum W t` (Eq. 4)."""
        if bool(shift.any()):
            response = self.response_to(shift)
            self.bias = response if self.bias is None else self.bias + response
            self.bias_touched = True
        self.in_scale = scale if self.in_scale is None else self.in_scale * scale

    def set(self, weight: Kernel, bias: Tensor | None) -> None:
        """Exchange the weight and the bias (float64) for others."""
        self.weight, self.bias = weight, bias
        self.in_scale = self.out_scale = None
        self.baked, self.bias_touched = True, bias is not None

    def write(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        """Give ``module`` new parameters with everything pending applied, rounded once to ``dtype``."""
        if self.rescaled:
            module._parameters["weight"] = self._parameter(self.rounded_weight(dtype or self.dtype))
        if self.bias_touched and self.bias is not None:
            bias = rounded(self.bias, dtype or self.dtype).to(self.weight.device).contiguous()
            module._parameters["bias"] = self._parameter(bias)

    def _parameter(self, tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor, requires_grad=bool(getattr(self.module.weight, "requires_grad", False)))

    def clone(self, module: nn.Module) -> PendingWeights:
        """The same pending weights for a duplicate of the layer."""
        copy = PendingWeights(module)
        copy.weight, copy.bias, copy.baked = self.weight, self.bias, self.baked
        copy.in_scale, copy.out_scale, copy.bias_touched = self.in_scale, self.out_scale, self.bias_touched
        return copy
