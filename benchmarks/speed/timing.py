"""Medians of interleaved runs, by processor time: what other programs do to the machine hits all contestants alike."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.speed.row import Row, Settings

Times = dict[str, list[float]]
LEAST_ROUNDS = 3
SHORT = 0.05
_PATH = re.compile(r"(?:/[\w.\-]+){2,}")


def interleaved(
    contestants: Mapping[str, Callable[[], Any]],
    settings: Settings,
    clock: Callable[[Callable[[], Any]], float] | None = None,
) -> Times:
    """Run contestants in turn, A B A B, after one run of each that does not count.

    Parameters
    ----------
    contestants : mapping of str to callable
    settings : Settings
    clock : callable, optional
        Says how many seconds a callable takes. By default the processor time of this process: contestants are
        single-threaded, and a busy machine stretches wall-clock time but hardly that.

    Returns
    -------
    dict of str to list of float
        Seconds of each round.
    """
    clock = clock or processor_time
    times: Times = {name: [] for name in contestants}
    with quiet():
        for run in contestants.values():
            run()
        start = time.process_time()
        for done in range(settings.rounds):
            if done >= LEAST_ROUNDS and time.process_time() - start > settings.seconds:
                break
            for name, run in contestants.items():
                times[name].append(clock(run))
    return times


def processor_time(run: Callable[[], Any]) -> float:
    """Seconds of processor time; what the run leaves behind is collected before and after, outside of them."""
    gc.collect()
    start = time.process_time()
    result = run()
    seconds = time.process_time() - start
    del result
    return seconds


def shortest_time(run: Callable[[], Any]) -> float:
    """The shortest of several runs in a row, for what takes milliseconds and leaves nothing to collect behind.

    The first run after another contestant's finds the caches cold.
    """
    times: list[float] = []
    while len(times) < 2 or sum(times) < SHORT:
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def compare(row: Row, ours: list[float], others: list[float], scale: float = 1e3) -> Row:
    """Fill in a row's figures from the rounds of both."""
    ratios = [a / b for a, b in zip(ours, others, strict=True)]
    row.canonize, row.other = statistics.median(ours) * scale, statistics.median(others) * scale
    fill_ratio(row, ratios)
    return row


def fill_ratio(row: Row, ratios: list[float]) -> Row:
    """Fill in a row's ratio and its quartiles."""
    row.ratio, row.rounds = statistics.median(ratios), len(ratios)
    row.low, _, row.high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return row


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Tools write warnings and progress to the terminal whatever they are told."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def said(error: BaseException) -> str:
    """An error in one line, without what is peculiar to this machine."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {_PATH.sub('...', ' '.join(lines[0].split()))}"[:160]
