"""ONNX files: read and checked (`file`), shapes computed (`shapes`), translated (`converter`), compared (`read`)."""

from __future__ import annotations

from canonize.loading.onnx.read import read_onnx

__all__ = ["read_onnx"]
