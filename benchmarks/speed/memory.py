"""Peak of what conversion holds beyond the model, each figure from a fresh process."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

from benchmarks.speed import marks
from benchmarks.speed.row import Row, Settings
from benchmarks.speed.timing import fill_ratio

PART = "memory"
ROOT = Path(__file__).parents[2]
ROUNDS = {"allocator": 1, "resident": 3}
"""The allocator counts the same bytes every time."""


def measure(subject: str, settings: Settings) -> list[Row]:
    """Peak of the allocator's bytes and of resident ones, over the bytes of folded weights."""
    rows = []
    for case, most in ROUNDS.items():
        row = Row(PART, subject, case, unit="MB", mark=marks.MEMORY)
        rows.append(row)
        rounds = min(most, settings.rounds)
        ours = [_peak(subject, case, "canonize", settings) for _ in range(rounds)]
        failed = [it["failed"] for it in ours if "failed" in it]
        if failed:
            row.note = str(failed[0])
            continue
        peaks, folded = [float(it["peak"]) for it in ours], float(ours[0]["folded"])
        row.other = folded / 1e6
        row.canonize = sorted(peaks)[len(peaks) // 2] / 1e6
        fill_ratio(row, [peak / folded for peak in peaks])
        fuse = _peak(subject, case, "fuse", settings)
        peak = float(fuse.get("peak", math.nan))
        row.more = {"fuse": peak / 1e6, "fuse_ratio": peak / folded} if "peak" in fuse else {}
    return rows


def _peak(subject: str, case: str, tool: str, settings: Settings) -> dict[str, float | str]:
    asked = json.dumps([subject, case, tool, settings.edge, settings.seed])
    command = [sys.executable, "-m", "benchmarks.speed.peak", asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["it died"])[-1][:160]}
    found: dict[str, float | str] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
