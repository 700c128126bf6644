"""Peak memory of one conversion in this process: what `benchmarks.speed.memory` starts afresh for each figure."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from benchmarks.speed.growth import chain
from benchmarks.speed.row import Settings
from benchmarks.speed.subjects import build
from benchmarks.speed.timing import quiet
from canonize import canonize

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(asked: str) -> None:
    """Measure, and print the figures as JSON."""
    subject, case, tool, edge, seed = json.loads(asked)
    torch.set_num_threads(1)
    with quiet():
        model, x = build(subject, Settings(edge=edge, seed=seed))
        convert = _convert if tool == "canonize" else _fuse
        # What is imported and cached on first use is no part of a conversion.
        convert(chain(2, 4), torch.randn(1, 4, 8, 8))
        measure = allocator_peak if case == "allocator" else resident_peak
        converted, peak = measure(lambda: convert(model, x))
    sys.stdout.write(json.dumps({"peak": peak, "folded": new_bytes(converted, model)}) + "\n")


def _convert(model: nn.Module, x: Tensor) -> nn.Module:
    return canonize(model, x, verify=False)


def _fuse(model: nn.Module, x: Tensor) -> nn.Module:
    return fuse(model)


def new_bytes(converted: nn.Module, model: nn.Module) -> int:
    """Bytes of the tensors of a result that are not the model's own."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    new = {t.untyped_storage().data_ptr(): t.nbytes for t in (*converted.parameters(), *converted.buffers())}
    return sum(size for place, size in new.items() if place not in own)


def allocator_peak(run: Callable[[], Any]) -> tuple[Any, int]:
    """Most bytes that PyTorch's allocator had given out at once, beyond those before."""
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        result = run()
    results = profile.profiler.kineto_results
    changes = [(it.start_ns(), it.nbytes()) for it in results.events() if it.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda it: it[0]):
        held += change
        peak = max(peak, held)
    return result, peak


def resident_peak(run: Callable[[], Any]) -> tuple[Any, int]:
    """Most resident bytes beyond those before.

    Where the kernel keeps a high-water mark that can be set back (Linux) it is that; else what a thread sees.
    """
    gc.collect()
    _return_free_memory()
    before = psutil.Process().memory_info().rss
    if _set_back():
        result = run()
        return result, _high_water() - before
    with _Sampler() as sampler:
        result = run()
    return result, sampler.peak - before


def _return_free_memory() -> None:
    """What the allocator holds free would be used again without being seen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _set_back() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return _high_water() > 0


def _high_water() -> int:
    (line,) = (it for it in _STATUS.read_text().splitlines() if it.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class _Sampler:
    """Looks every millisecond, in a thread of its own."""

    def __enter__(self) -> _Sampler:
        self.process, self.done, self.peak = psutil.Process(), threading.Event(), 0
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.done.wait(0.001):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()
        self.peak = max(self.peak, self.process.memory_info().rss)


if __name__ == "__main__":
    main(sys.argv[1])
