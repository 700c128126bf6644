"""What canonize does to every architecture of torchvision and timm, measured: ``python -m benchmarks.coverage``."""
