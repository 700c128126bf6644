"""``python -m benchmarks.onnx [--every 6] [--jobs 2] [--only NAME ...] [-o FILE.jsonl]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from benchmarks.onnx.cases import Case, cases
from benchmarks.onnx.measure import OUTCOMES, Outcome, measure

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "onnx.jsonl"


def main() -> int:
    """Measure, write, and print the counts; 1 where a test came out wrong or crashed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="of the tests of single operators, one in so many")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--only", nargs="*", default=[], help="names of tests")
    parser.add_argument("-o", "--output", type=Path, help="where to write, a line of JSON for each test")
    given = parser.parse_args()
    found = sorted(measured(cases(given.every, given.only), given.jobs), key=lambda o: (o.kind, o.name))
    if given.output:
        given.output.write_text("".join(json.dumps(o.as_dict()) + "\n" for o in found))
    for outcome in found:
        if outcome.outcome not in ("right", "not for us"):
            print(f"{outcome.outcome:8} {outcome.name}: {outcome.reason}")
    counts = Counter(outcome.outcome for outcome in found)
    print(", ".join(f"{counts[name]} {name}" for name in OUTCOMES))
    return 1 if counts["wrong"] + counts["crashed"] else 0


def measured(wanted: list[Case], jobs: int = 1) -> list[Outcome]:
    """The outcomes of tests, over processes where `jobs` is more than 1."""
    if jobs == 1:
        return [one(case) for case in wanted]
    found: list[Outcome] = []
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {pool.submit(one, case): case for case in wanted}
        for done in as_completed(waiting):
            try:
                found.append(done.result())
            except BrokenProcessPool:
                case = waiting[done]
                found.append(Outcome(case.name, case.kind, "", "crashed", "the process died"))
            if sys.stderr.isatty():
                print(f"\r{len(found)}/{len(wanted)}", end="", file=sys.stderr)
    return found


def one(case: Case) -> Outcome:
    """Measure on one thread, from a fixed seed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return measure(case)


if __name__ == "__main__":
    raise SystemExit(main())
