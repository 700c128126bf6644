"""For which operations DeepLIFT has a rule that makes contributions add up."""

from __future__ import annotations

from torch import nn

from canonize import nn as cnn
from canonize.explain.paired import WINDOWS
from canonize.graph.relevance import RelevantOperation
from canonize.vocabulary.kinds import MAXIMA, Kind, chooses, kind_of


def has_deep_lift_rule(operation: RelevantOperation) -> bool:
    """Whether DeepLIFT, as it is here, has a rule for an operation that makes contributions add up."""
    module = operation.module
    if module is None:
        return operation.has_rule or operation.operator in _AFFINE_FUNCTIONS
    kind = kind_of(module)
    if kind in (Kind.UNKNOWN, Kind.CLOSED, Kind.SOFTMAX, Kind.NORMALISATION) or isinstance(module, nn.GLU):
        return False
    if kind is Kind.BATCH_NORM:  # an affine
        return True
    if kind is Kind.COPY and isinstance(module, (cnn.Call, *MAXIMA)):  # which element it is depends on the input
        return isinstance(module, WINDOWS) or not chooses(module)
    return operation.has_rule


_AFFINE_FUNCTIONS = {
    *("convolution", "addmm", "add", "sub", "neg", "mean", "sum", "native_batch_norm", "cudnn_batch_norm"),
    *("avg_pool2d", "avg_pool1d", "avg_pool3d", "adaptive_avg_pool2d", "mkldnn_convolution", "thnn_conv2d"),
}
