r"""Linear layers with pending rescalings: the weights are read and written once, when the canonical model is built.

Whatever an absorption does to a linear layer :math:`y = W x + b` is a scale per input channel, a scale per output
channel and a new bias:

.. math:: W' = \mathrm{diag}(s_o)\, W\, \mathrm{diag}(s_i)

The vectors are kept in float64, so that many absorptions into one layer still round its weight once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from canonize.affine import EXACT
from canonize.bake import exact_value

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
CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class PendingWeights:
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
        self.weight: Tensor = exact_value(weight)
        self.baked = self.weight.dtype != self.dtype
        self.transposed = isinstance(module, TRANSPOSED)
        self.groups = int(getattr(module, "groups", 1))
        bias = module.bias
        self.bias: Tensor | None = exact_value(bias).to(EXACT) if isinstance(bias, Tensor) else None
        self.in_scale: Tensor | None = None
        self.out_scale: Tensor | None = None
        self.bias_touched = False

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

    def _blocks(self, weight: Tensor) -> Tensor:
        """View as (groups, outputs per group, inputs per group, kernel positions)."""
        if self.transposed:
            per_group = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
            return per_group.transpose(1, 2)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)

    def _unblocks(self, blocks: Tensor) -> Tensor:
        return (blocks.transpose(1, 2) if self.transposed else blocks).reshape(self.weight.shape)

    def _per_input(self, vector: Tensor) -> Tensor:
        return vector.reshape(self.groups, 1, -1, 1)

    def _per_output(self, vector: Tensor) -> Tensor:
        return vector.reshape(self.groups, -1, 1, 1)

    def exact_weight(self) -> Tensor:
        """The weight with everything pending applied, float64, in the layer's own layout."""
        blocks = self._blocks(self.weight.to(EXACT))
        if self.in_scale is not None:
            blocks = blocks * self._per_input(self.in_scale)
        if self.out_scale is not None:
            blocks = blocks * self._per_output(self.out_scale)
        return self._unblocks(blocks)

    def response_to(self, shift: Tensor) -> Tensor:
        r"""What a constant input :math:`t` per channel adds to each output, :math:`\sum_{i,k} W_{oik} t_i`."""
        blocks = self._blocks(self.exact_weight())
        return (blocks * self._per_input(shift)).sum((2, 3)).reshape(-1)

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

    def set(self, weight: Tensor, bias: Tensor | None) -> None:
        """Exchange weight and bias (float64) for others."""
        self.weight, self.bias = weight, bias
        self.in_scale = self.out_scale = None
        self.baked, self.bias_touched = True, bias is not None

    def write(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        """Give ``module`` new parameters with everything pending applied, rounded once to ``dtype``."""
        if self.rescaled:
            module.weight = self._parameter(self.exact_weight(), dtype)
        if self.bias_touched and self.bias is not None:
            module.bias = self._parameter(self.bias, dtype)

    def _parameter(self, exact: Tensor, dtype: torch.dtype | None) -> nn.Parameter:
        tensor = exact.to(dtype or self.dtype).to(self.weight.device).contiguous()
        original = self.module.weight
        return nn.Parameter(tensor, requires_grad=bool(getattr(original, "requires_grad", False)))

    def clone(self, module: nn.Module) -> PendingWeights:
        """The same pending weights for a duplicate of the layer."""
        copy = PendingWeights(module)
        copy.weight, copy.bias = self.weight, self.bias
        copy.in_scale, copy.out_scale, copy.bias_touched = self.in_scale, self.out_scale, self.bias_touched
        return copy
