"""torch's layers and the operators that they call: one table for both ways.

A functional call of one of these is as good as the layer; explainers have rules for layers, by their classes.
"""

from __future__ import annotations

from typing import Any

from torch import nn

# The arguments of the operator are those of the layer, by name.
ACTIVATIONS: dict[str, Any] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "leaky_relu": nn.LeakyReLU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "softshrink": nn.Softshrink,
    "hardshrink": nn.Hardshrink,
    "tanhshrink": nn.Tanhshrink,
    "log_sigmoid": nn.LogSigmoid,
    "threshold": nn.Threshold,
    "glu": nn.GLU,
}
POOLINGS: dict[str, Any] = {
    "avg_pool1d": nn.AvgPool1d,
    "avg_pool2d": nn.AvgPool2d,
    "avg_pool3d": nn.AvgPool3d,
    "max_pool1d": nn.MaxPool1d,
    "max_pool2d": nn.MaxPool2d,
    "max_pool3d": nn.MaxPool3d,
    "adaptive_avg_pool1d": nn.AdaptiveAvgPool1d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "adaptive_avg_pool3d": nn.AdaptiveAvgPool3d,
    "adaptive_max_pool1d": nn.AdaptiveMaxPool1d,
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d,
    "adaptive_max_pool3d": nn.AdaptiveMaxPool3d,
}
# Layers with other arguments than their operators; what builds them stands in ``normalize``.
_OTHERS: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "conv1d": (nn.Conv1d,),
    "conv2d": (nn.Conv2d,),
    "conv3d": (nn.Conv3d,),
    "conv_transpose1d": (nn.ConvTranspose1d,),
    "conv_transpose2d": (nn.ConvTranspose2d,),
    "conv_transpose3d": (nn.ConvTranspose3d,),
    "batch_norm": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    "instance_norm": (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    "layer_norm": (nn.LayerNorm,),
    "group_norm": (nn.GroupNorm,),
    "local_response_norm": (nn.LocalResponseNorm,),
    "softmax": (nn.Softmax, nn.Softmax2d),
    "log_softmax": (nn.LogSoftmax,),
    "softmin": (nn.Softmin,),
    "elu": (nn.ELU,),
    "gelu": (nn.GELU,),
    "prelu": (nn.PReLU,),
    "rrelu": (nn.RReLU,),
    "embedding": (nn.Embedding,),
    "embedding_bag": (nn.EmbeddingBag,),
    "dropout": (nn.Dropout,),
    "dropout1d": (nn.Dropout1d,),
    "dropout2d": (nn.Dropout2d,),
    "dropout3d": (nn.Dropout3d,),
    "alpha_dropout": (nn.AlphaDropout,),
    "feature_alpha_dropout": (nn.FeatureAlphaDropout,),
    "flatten": (nn.Flatten,),
    "unflatten": (nn.Unflatten,),
    "pixel_shuffle": (nn.PixelShuffle,),
    "pixel_unshuffle": (nn.PixelUnshuffle,),
    "channel_shuffle": (nn.ChannelShuffle,),
    "interpolate": (nn.Upsample,),
    "bilinear": (nn.Bilinear,),
    "multi_head_attention_forward": (nn.MultiheadAttention,),
}
# In the order in which a class is looked up: subclasses first (``nn.ReLU6`` is an ``nn.Hardtanh``).
_CLASSES: list[tuple[type[nn.Module], str]] = sorted(
    (
        *((cls, name) for name, cls in (*ACTIVATIONS.items(), *POOLINGS.items())),
        *((cls, name) for name, classes in _OTHERS.items() for cls in classes),
    ),
    key=lambda entry: -len(entry[0].__mro__),
)


def layer_operator(module: object) -> str | None:
    """The name of the operator that one of torch's layers is; ``None`` for other modules."""
    return next((name for cls, name in _CLASSES if isinstance(module, cls)), None)
