"""The rows as a page of the documentation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.coverage.measure import Row

INTRODUCTION = """# Coverage

What canonize does to the architectures of torchvision and timm, measured by

    python -m benchmarks.coverage

with random weights; BatchNorm scales positive, negative, zero and tiny; running statistics fitted to random input and
then disturbed. *Error* is the largest difference of the outputs in float64 over the largest output, at a batch size and
at a range of inputs that canonize did not see; canonize's own verification is not used for it. Where a model casts to
float32 within (marked \\*), nothing of it could be exact in float64: there both models are run with these casts read as
casts to float64. Where a model's own answer moves by more than 1e-13 when its input moves by one rounding, nothing of
it could be told from rounding: there the statistics are disturbed less (*disturbance* in the rows), and where that does
not help, the weights are scaled down (*gain*). Images are 64x64 pixels where the model takes any size. Every row is in
[coverage.jsonl](coverage.jsonl), which the command goes on from when it was interrupted.

*Absorbed* counts frozen affines of every kind (BatchNorm, the affine of LayerNorm, LayerScale, fixed factors) that
disappeared into other layers; *explicit* those that became a linear layer of their own, the last resort; *left* those
that stayed.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1) -> list[str]:
    """Lines of a Markdown table, of which the first ``words`` columns are text and the others numbers."""
    rule = ["---" if i < words else "--:" for i in range(len(head))]
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in (head, rule, *rows)]


def write(rows: list[Row], path: Path, peers: str = "") -> None:
    """Write the page.

    Parameters
    ----------
    rows : list of Row
    path : Path
    peers : str
        The comparison with other tools, as Markdown.
    """
    path.write_text("\n".join([INTRODUCTION, summary(rows), peers, _unabsorbed(rows), _by_family(rows), _all(rows)]))


def summary(rows: list[Row]) -> str:
    """Totals."""
    done = [row for row in rows if row.outcome == "exact"]
    outcomes = Counter(row.outcome for row in rows)
    norms, absorbed = sum(row.norms for row in done), sum(row.norms_absorbed for row in done)
    captured = Counter(row.captured_by for row in done)
    total = {name: sum(getattr(row, name) for row in done) for name in ("affines", "absorbed", "last_resort", "left")}
    lines = [
        "## In short",
        "",
        f"- {len(rows)} architectures tried, of {_counted(rows, 'torchvision')} in torchvision and "
        f"{_counted(rows, 'timm')} in timm: " + ", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common()),
        "- captured by " + ", ".join(f"{tracer} {n}" for tracer, n in captured.most_common()),
        f"- {norms} BatchNorms, {absorbed} absorbed ({_percent(absorbed, norms)}), "
        f"{sum(row.batch_norms_left for row in done)} still executed",
        f"- {total['affines']} frozen affines of all kinds: {total['absorbed']} absorbed, "
        f"{total['last_resort']} explicit, {total['left']} left",
        f"- {sum(row.canonical for row in done)} of {len(done)} canonical by `canonize inspect`'s rules",
        f"- largest float64 error {max((row.error for row in done), default=math.nan):.1e}",
        "",
    ]
    return "\n".join(lines)


def _counted(rows: Iterable[Row], library: str) -> int:
    return sum(row.key.startswith(library + ":") for row in rows)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"


def _unabsorbed(rows: list[Row]) -> str:
    kept = [row for row in rows if row.outcome == "exact" and row.norms != row.norms_absorbed]
    head = ("architecture", "why", "BatchNorms", "explicit or left")
    cells = [(row.key, _why(row), row.norms, row.norms - row.norms_absorbed) for row in kept]
    lines = ["## BatchNorms that became an explicit layer, and why", "", *table(head, cells, 2)]
    bad = [row for row in rows if row.outcome not in ("exact", "skipped")]
    if bad:
        cells = [(row.key, row.outcome, _cell(row.reason or f"error {row.error:.1e}")) for row in bad]
        lines += ["", "## Not exact, refused, or not run", "", *table(("architecture", "what", "why"), cells, 3)]
    skipped = [row.key for row in rows if row.outcome == "skipped"]
    if skipped:
        lines += ["", f"Skipped for their size ({len(skipped)}): {', '.join(skipped)}."]
    return "\n".join([*lines, ""])


def _why(row: Row) -> str:
    reasons = [reason.split(": ", 2) for reason in row.unabsorbed]
    return next((_cell(said) for _, kind, said in reasons if "batch" in kind.lower()), "")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())[:300]


def _by_family(rows: list[Row]) -> str:
    families: dict[str, list[Row]] = {}
    for row in rows:
        if row.outcome == "exact":
            families.setdefault(f"{row.key.partition(':')[0]} {row.family}", []).append(row)
    fields = ("norms", "norms_absorbed", "affines", "absorbed", "last_resort", "left")
    head = ("family", "models", "BatchNorms", "absorbed", "all affines", "absorbed", "explicit", "left", "worst error")
    cells = [
        (
            family,
            len(members),
            *(sum(getattr(row, name) for row in members) for name in fields),
            f"{max(row.error for row in members):.0e}",
        )
        for family, members in sorted(families.items())
    ]
    return "\n".join(["## By family", "", *table(head, cells), ""])


def _all(rows: list[Row]) -> str:
    head = (
        "architecture", "captured by", "million parameters", "BatchNorms run before", "after", "affines", "absorbed",
        "explicit", "left", "error", "seconds",
    )  # fmt: skip
    cells = [
        (
            row.key,
            {"symbolic_trace": "torch.fx"}.get(row.captured_by, row.captured_by),
            f"{row.parameters / 1e6:.1f}",
            row.batch_norms,
            row.batch_norms_left,
            row.affines,
            row.absorbed,
            row.last_resort,
            row.left,
            f"{row.error:.0e}" + ("\\*" if row.casts_undone else ""),
            f"{row.seconds:.1f}",
        )
        for row in rows
        if row.outcome == "exact"
    ]
    return "\n".join(["## Every architecture", "", *table(head, cells, 2), ""])
