"""Planted faults and true equivalents, given to canonize and to tolerance checks as other tools make them.

    python benchmarks/verify_faults.py            # all; some minutes
    python benchmarks/verify_faults.py --seeds 1  # half of it
    python benchmarks/verify_faults.py --docs     # also writes the table into docs/verification.md

Exits with 1 where a fault is missed, an equivalent refused, or fewer than 95 % of the layers are named.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from canonize.compat import import_torchvision  # noqa: E402

import_torchvision()

import canonize  # noqa: E402
from tests.verify.campaign import equivalents, faults  # noqa: E402
from tests.verify.campaign.architectures import ARCHITECTURES  # noqa: E402

# rtol and atol of the two: Polygraphy's defaults, and onnxsim's.
TOLERANCES = ((1e-5, 1e-5), (1e-4, 1e-5))
PAGE = ROOT / "docs" / "verification.md"
MARKS = ("<!-- planted faults -->\n", "<!-- end -->\n")


@dataclass
class Row:
    """Counts of one kind."""

    total: int = 0
    failed: int = 0
    named: int = 0
    naive: list[int] = field(default_factory=lambda: [0, 0])
    misses: list[str] = field(default_factory=list)


def differs(model: nn.Module, candidate: nn.Module, inputs: tuple[Tensor, ...], rtol: float, atol: float) -> bool:
    """What a tolerance check says: float32, one row of uniform values, every element within atol + rtol * |value|."""
    generator = torch.Generator().manual_seed(0)
    fed = [torch.rand(t[:1].shape, generator=generator).to(t.dtype) if t.is_floating_point() else t[:1] for t in inputs]
    with torch.no_grad():
        try:
            expected, found = model(*fed), candidate(*fed)
        except Exception:
            return True
    return not torch.allclose(found.float(), expected.float(), rtol=rtol, atol=atol)


def run_faults(seeds: int) -> dict[str, Row]:
    rows: dict[str, Row] = defaultdict(Row)
    for kind in faults.KINDS:
        for architecture in ARCHITECTURES:
            for form in ("plain", "canonical"):
                for seed in range(seeds):
                    fault = faults.plant(kind, architecture, form, seed)
                    if fault is not None:
                        _judge(rows[kind], fault, seed)
        print(f"{kind}: {rows[kind].total} planted, {rows[kind].failed} caught, {rows[kind].named} named", flush=True)
        print(*(f"    {miss}\n" for miss in rows[kind].misses), end="", flush=True)
    return rows


def _judge(row: Row, fault: faults.Fault, seed: int) -> None:
    verdict = canonize.check_equivalence(fault.model, fault.candidate, fault.inputs)
    named = verdict.divergence.layer if verdict.divergence is not None else None
    row.total += 1
    row.failed += not verdict.passed
    row.named += named in fault.layers
    for i, (rtol, atol) in enumerate(TOLERANCES):
        row.naive[i] += differs(fault.model, fault.candidate, fault.inputs, rtol, atol)
    if verdict.passed or named not in fault.layers:
        about = f"{fault.architecture}, {fault.form}, seed {seed}: planted in {sorted(fault.layers)}"
        row.misses.append(f"{about}, {'missed' if verdict.passed else f'named {named!r}'}")


def run_equivalents(seeds: int) -> dict[str, Row]:
    rows: dict[str, Row] = defaultdict(Row)
    for kind in equivalents.KINDS:
        for architecture in ARCHITECTURES:
            for seed in range(seeds):
                model, candidate, inputs = equivalents.build(kind, architecture, seed)
                options: dict[str, Any] = {"locate": False}
                verdict = canonize.check_equivalence(model, candidate, inputs, **options)
                row = rows[kind]
                row.total += 1
                row.failed += not verdict.passed
                for i, (rtol, atol) in enumerate(TOLERANCES):
                    row.naive[i] += differs(model, candidate, inputs, rtol, atol)
                if not verdict.passed:
                    row.misses.append(f"{architecture}, seed {seed}: {verdict.reason}")
        print(f"{kind}: {rows[kind].total}, refused {rows[kind].failed}", flush=True)
        print(*(f"    {miss}\n" for miss in rows[kind].misses), end="", flush=True)
    return rows


def table(planted: dict[str, Row], equal: dict[str, Row]) -> str:
    """Both campaigns as Markdown."""
    lines = ["| planted fault | number | caught | right layer named | rtol 1e-5, atol 1e-5 | rtol 1e-4, atol 1e-5 |"]
    lines += ["|---|---|---|---|---|---|"]
    total = _sum(planted)
    for kind, row in (*planted.items(), ("**all**", total)):
        cells = [row.failed, row.named, *row.naive]
        shares = " | ".join(f"{100 * cell / row.total:.0f} %" for cell in cells)
        lines.append(f"| {kind} | {row.total} | {shares} |")
    lines += ["", "| the same function | number | refused | rtol 1e-5, atol 1e-5 | rtol 1e-4, atol 1e-5 |"]
    lines += ["|---|---|---|---|---|"]
    for kind, row in (*equal.items(), ("**all**", _sum(equal))):
        lines.append(f"| {kind} | {row.total} | {row.failed} | {row.naive[0]} | {row.naive[1]} |")
    return "\n".join(lines) + "\n"


def _sum(rows: dict[str, Row]) -> Row:
    total = Row()
    for row in rows.values():
        total.total += row.total
        total.failed += row.failed
        total.named += row.named
        total.naive = [a + b for a, b in zip(total.naive, row.naive, strict=True)]
    return total


def main() -> int:
    """Run both campaigns and print the table."""
    parser = argparse.ArgumentParser(description="Planted faults against verdicts.")
    parser.add_argument(
        "--seeds", type=int, default=2, help="draws of every kind, network and form; two more of the equivalents"
    )
    parser.add_argument("--docs", action="store_true", help="write the table into docs/verification.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    planted, equal = run_faults(arguments.seeds), run_equivalents(arguments.seeds + 2)
    text = table(planted, equal)
    print(f"\n{text}\n{time.perf_counter() - start:.0f} s")
    if arguments.docs:
        before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        PAGE.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")
    faults_found, equals = _sum(planted), _sum(equal)
    good = faults_found.failed == faults_found.total and not equals.failed
    return 0 if good and faults_found.named >= 0.95 * faults_found.total else 1


if __name__ == "__main__":
    raise SystemExit(main())
