"""What may come out other than exact, and why a reader accepts it."""

from __future__ import annotations

from tests.corpus.judge import Result

# Operators by the beginning of their names.
_REFUSED = {
    "as_strided": "how a tensor lies in memory is not kept",
    "_batch_norm_with_update": "it writes running statistics in evaluation",
    "__r": "by this name Python alone calls it, and tracers do not follow",
    "_native_batch_norm_legit": "it writes running statistics in evaluation",
}
_PINNED = {"geqrf": "torch.export alone captures it, and fixes the number of rows"}
_OTHERWISE = {
    (f"logical_{name}", "in place"): "torch's own gradient passes the value that is overwritten"
    for name in ("not", "and", "or", "xor")
}


def reason(result: Result) -> str | None:
    """Why a result is accepted; None where it is a fault."""
    if result.outcome == "exact":
        return ""
    if result.outcome == "random":
        return "random numbers, and not called canonical"
    listed = {"refused": _REFUSED, "pinned": _PINNED}.get(result.outcome, {})
    told = next((why for name, why in listed.items() if result.operator.startswith(name)), None)
    return told or _OTHERWISE.get((result.operator, result.spelling))
