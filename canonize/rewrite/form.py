"""What an optional form is."""

from __future__ import annotations

from typing import ClassVar

from canonize.graph.network import Network
from canonize.rewrite.journal import Journal


class Form:
    """Another way to write some layers, exact, and off unless asked for.

    Each layer that it writes anew is one rewrite in the journal.

    Attributes
    ----------
    name : str
        What ``--form`` calls it.
    summary : str
        One line for the catalogue.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    def before(self, network: Network, journal: Journal) -> None:
        """What to do before the affines are absorbed."""

    def after(self, network: Network, journal: Journal) -> None:
        """What to do when everything else is done."""
