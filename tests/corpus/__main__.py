"""``python -m tests.corpus [NAME ...]``: all of torch's samples; what did not come out exact, and figures.

With ``--heatmaps`` each operator stands between two linear layers, and its relevance is judged.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.testing._internal.common_methods_invocations import op_db

from tests.corpus.heatmaps import explained
from tests.corpus.judge import Result, judge
from tests.corpus.known import reason
from tests.corpus.page import write

warnings.simplefilter("ignore")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="operators; by default all")
    parser.add_argument("--samples", type=int, default=2, help="of each operator")
    parser.add_argument("--heatmaps", action="store_true", help="judge relevance instead of outputs")
    parser.add_argument("--part", default="1/1", help="I/N: every N-th operator, from the I-th")
    parser.add_argument("--write", type=Path, help="a page of the documentation: docs/operators.md")
    given = parser.parse_args()
    part, parts = (int(number) for number in given.part.split("/"))
    torch.set_num_threads(1)
    chosen = [op for op in op_db if not given.names or op.name in given.names][part - 1 :: parts]
    if given.heatmaps:
        sys.exit(_heatmaps(chosen, given.samples))
    results: list[Result] = []
    accepted: Counter[tuple[str, str]] = Counter()
    started = time.time()
    for op in chosen:
        for result in judge(op, given.samples):
            results.append(result)
            why = reason(result)
            if why is None:
                print(f"{result.outcome}: {result.operator} ({result.spelling}): {result.detail}", flush=True)
            elif why:
                accepted[result.operator, why] += 1
    for (name, why), count in sorted(accepted.items()):
        print(f"{name} ({count}): {why}")
    outcomes = Counter(result.outcome for result in results)
    canonical = sum(result.canonical for result in results)
    operators = len({result.operator for result in results})
    print(f"{len(results)} spellings of {operators} operators in {time.time() - started:.0f} s, {canonical} canonical")
    print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()))
    if given.write is not None:
        share = "" if parts == 1 and not given.names else f" (part {given.part}, not all)"
        write(given.write, operators, outcomes, accepted, share)
    sys.exit(any(reason(result) is None for result in results))


def _heatmaps(chosen: list[Any], samples: int) -> bool:
    """Print what is silently wrong, and figures; whether there was any."""
    torch.manual_seed(0)
    outcomes: Counter[str] = Counter()
    for op in chosen:
        for judged in explained(op, samples):
            outcomes[judged.outcome] += 1
            if judged.outcome == "wrong":
                print(f"wrong: {judged.operator}: {judged.detail}", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()))
    return outcomes["wrong"] > 0


if __name__ == "__main__":
    main()
