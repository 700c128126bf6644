"""What may come out other than exact, and why a reader accepts it."""

from __future__ import annotations

from tests.corpus.judge import Result

_NO_SHAPE = "torch tells its shapes from values alone, and the forward around it asks what kind of thing it gave"
# Operators by the beginning of their names.
_REFUSED = {
    "as_strided": "how a tensor lies in memory is not kept",
    "_batch_norm_with_update": "it writes running statistics in evaluation",
    "tensor_split": "a tensor's values say how many pieces there are",
    "histogramdd": _NO_SHAPE,
    "geqrf": _NO_SHAPE,
    "linalg.lstsq": _NO_SHAPE,
}
_PINNED = {"unbind": "it gives as many values as there are rows, and a graph has a fixed number of outputs"}
_OTHERWISE = {
    (f"logical_{name}", "in place"): "torch's own gradient passes the value that is overwritten"
    for name in ("not", "and", "or", "xor")
}


_RANDOM = "random numbers, and not called canonical"


def reasons() -> set[str]:
    """All of them."""
    return {*_REFUSED.values(), *_PINNED.values(), *_OTHERWISE.values(), _RANDOM}


def reason(result: Result) -> str | None:
    """Why a result is accepted; None where it is a fault."""
    if result.outcome == "exact":
        return ""
    if result.outcome == "random":
        return _RANDOM
    listed = {"refused": _REFUSED, "pinned": _PINNED}.get(result.outcome, {})
    told = next((why for name, why in listed.items() if result.operator.startswith(name)), None)
    return told or _OTHERWISE.get((result.operator, result.spelling))
