"""The corpus's result as a page of the documentation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

_TITLE = "Operators: torch's own samples"
_ABOUT = """\
torch tests its operators on samples of its own. Here each of them stands, in every spelling that it has (function,
method, in place, operator, keywords, `axis`, ATen packet and overload), between a BatchNorm and a linear layer. The
model is converted and compared with the original in float64: on the sample, on other values, at another batch size,
with its gradients, and what the report says with what really runs.

This page is written by `python -m tests.corpus --samples 1 --write docs/operators.md`.
"""
_WORDS = {
    "exact": "the same to 1e-10",
    "refused": "refused, with the reason",
    "pinned": "the same, and refused at another batch size",
    "random": "random numbers, and not called canonical",
    "wrong": "not the same",
    "cannot run": "the canonical model does not run",
    "crash": "the conversion fails",
    "report": "the report says something else than what runs",
    "not judged": "could not be compared",
}


def write(
    path: Path, operators: int, outcomes: Counter[str], accepted: Counter[tuple[str, str]], share: str = ""
) -> None:
    """Write it.

    Parameters
    ----------
    path : Path
    operators : int
    outcomes : Counter of str
    accepted : Counter of (str, str)
        How many spellings of an operator came out other than exact, and why that is accepted.
    share : str
        Which part of the corpus it was, where it was not all of it.
    """
    lines = [f"# {_TITLE}", "", _ABOUT, f"{sum(outcomes.values())} spellings of {operators} operators{share}:", ""]
    lines += ["| outcome | spellings |", "|---|---:|"]
    lines += [f"| {_WORDS.get(outcome, outcome)} | {count} |" for outcome, count in outcomes.most_common()]
    lines += ["", "What is not exact, and why:", "", "| operator | spellings | why |", "|---|---:|---|"]
    lines += [f"| `{name}` | {count} | {why} |" for (name, why), count in sorted(accepted.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
