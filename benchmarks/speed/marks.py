"""What each ratio is to stay at or below."""

from __future__ import annotations

CONVERT = {"VGG16-BN": 0.2, "ResNet-50": 1.0, "DenseNet-121": 0.6, "EfficientNet-B0": 1.0}
"""Conversion without proof, over ``torch.fx.experimental.optimization.fuse``."""

VERIFY = 8.0
"""The proof, over one float32 forward of the original."""

FORWARD = {"DenseNet-121": 0.95, "ResNet-50": 0.95}
FORWARD_OTHERS = 1.0
"""One forward of the canonical model, over one of the original."""

ONNX = 1.0
"""One run in ONNX Runtime, over that of the fastest of the other tools' files."""

MEMORY = 1.3
"""Peak of extra memory, over the bytes of the weights that were folded."""

DEPTH = 2.2
"""Conversion of 2000 layers, over that of 1000."""
