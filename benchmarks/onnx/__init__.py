"""The ONNX standard's own backend tests, read by canonize, canonized and run: ``python -m benchmarks.onnx``."""
