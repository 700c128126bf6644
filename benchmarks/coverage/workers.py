"""Processes that measure one model after another, each under a limit of time and memory."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil  # resident memory of another process, on every system

from benchmarks.coverage.measure import Row, measure
from benchmarks.coverage.zoo import Architecture

RENEWED_AFTER = 40
"""Models that one process measures before a fresh one takes over: what libraries leave behind adds up."""


@dataclass(frozen=True)
class Limits:
    """Of one model: seconds of processor time (a busy machine is nobody's fault), gigabytes resident, and millions of
    parameters.
    """

    seconds: float
    gigabytes: float
    parameters: float


def measured(todo: Sequence[Architecture], jobs: int, limits: Limits, seed: int) -> Iterator[Row]:
    """Measure models in several processes; a row is yielded when it is ready.

    A process that takes too long or too much is ended, its model's row says so, and another takes its place.
    """
    waiting = list(reversed(todo))
    crew = [_Worker(limits, seed) for _ in range(min(jobs, len(todo)))]
    try:
        while crew:
            for worker in list(crew):
                if worker.current is None and not waiting:
                    worker.stop()
                    crew.remove(worker)
                elif worker.current is None:
                    worker.start(waiting.pop())
            wait([worker.pipe for worker in crew if worker.current], timeout=0.5)
            for worker in crew:
                row = worker.poll()
                if row is not None:
                    yield row
    finally:
        for worker in crew:
            worker.stop()


class _Worker:
    def __init__(self, limits: Limits, seed: int) -> None:
        self.limits, self.seed = limits, seed
        self.current: Architecture | None = None
        self._begin()

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.limits.parameters, self.seed), daemon=True)
        self.process.start()
        theirs.close()
        self.done = 0

    def start(self, architecture: Architecture) -> None:
        if self.done >= RENEWED_AFTER:
            self.stop()
            self._begin()
        self.current, self.since = architecture, self._seconds()
        self.pipe.send(architecture)

    def poll(self) -> Row | None:
        if self.current is None:
            return None
        try:
            answer: Any = self.pipe.recv() if self.pipe.poll() else None
        except EOFError:
            return self._lost("refused", "the process died")
        if answer == "ready":
            self.since = self._seconds()
            return None
        if answer is not None:
            self.current, self.done = None, self.done + 1
            return answer  # type: ignore[no-any-return]
        if self._seconds() - self.since > self.limits.seconds:
            return self._lost("out of time", f"more than {self.limits.seconds:g} s of processor time")
        if self._gigabytes() > self.limits.gigabytes:
            return self._lost("out of memory", f"more than {self.limits.gigabytes:g} GB")
        return None

    def _seconds(self) -> float:
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)

    def _gigabytes(self) -> float:
        try:
            return float(psutil.Process(self.process.pid).memory_info().rss / 1e9)
        except psutil.NoSuchProcess:
            return 0.0

    def _lost(self, outcome: str, reason: str) -> Row:
        assert self.current is not None
        row = Row(self.current.key, self.current.family, outcome, reason=reason)
        self.current = None
        self.stop()
        self._begin()
        return row

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, parameters: float, seed: int) -> None:
    import torch

    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    pipe.send("ready")
    while True:
        try:
            architecture = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        pipe.send(measure(architecture, parameters, seed))
