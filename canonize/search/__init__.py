"""Searching the rules of an explainer, and the canonical form itself, for explanations that measure best."""

from __future__ import annotations

from canonize.search.configure import Configuration
from canonize.search.space import SPACES, Choice, Range, Space, read_space
from canonize.search.study import Found, Search, search

__all__ = ["SPACES", "Choice", "Configuration", "Found", "Range", "Search", "Space", "read_space", "search"]
