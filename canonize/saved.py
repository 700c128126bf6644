"""The name under which written files know `canonize.loading.graph_as_data.rebuild`; kept for them alone."""

from canonize.loading.graph_as_data import rebuild

__all__ = ["rebuild"]
