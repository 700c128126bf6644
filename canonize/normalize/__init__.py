"""Graph -> one module per call: the one vocabulary that every pattern meets."""

from canonize.normalize.translate import normalize

__all__ = ["normalize"]
