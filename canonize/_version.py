"""The version: read by the build, written into reports and files."""

__version__ = "0.1.0"
