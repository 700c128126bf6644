"""What models write out by hand is recognised by what it computes, not by the class that wrote it.

Each replacement is the same function; rules then meet one module where they met a handful of calls.
"""

from __future__ import annotations

from canonize.graph.network import Network
from canonize.normalize.recognise.activation_formulas import recognise_activations
from canonize.normalize.recognise.root_mean_square import recognise_normalisations


def recognise(network: Network) -> None:
    """Write what is recognised as one module each; what nobody reads any more goes."""
    recognise_normalisations(network)
    recognise_activations(network)


__all__ = ["recognise"]
