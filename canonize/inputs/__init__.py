"""What a model is fed: example inputs as one value, from a shape, from a file, or inferred from the model."""

from __future__ import annotations

from canonize.inputs.files import load_inputs
from canonize.inputs.infer import from_shapes, infer
from canonize.inputs.shape_wording import Shape, parse_shape, random_inputs
from canonize.inputs.values import Inputs, normalise

__all__ = [
    "Inputs",
    "Shape",
    "from_shapes",
    "infer",
    "load_inputs",
    "normalise",
    "parse_shape",
    "random_inputs",
]
