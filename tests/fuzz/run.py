"""Load mutated model files, and keep those that end in anything but a module or a refusal.

    python -m tests.fuzz.run --runs 10000 --seed 0

A crash of the interpreter itself shows as a missing last line; the file at fault lies in the folder that is printed.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from canonize.errors import CanonizeError
from canonize.inputs import load_inputs
from canonize.loading import load
from tests.fuzz.mutations import model, mutate, seeds

# What no model file may bring about, by the names that Python's audit hooks give it.
FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "os.remove"),
    *("os.rename", "os.rmdir", "shutil"),
)
_watching: list[str] = []


def _watch(event: str, arguments: Any) -> None:
    if _watching and event.startswith(FORBIDDEN):
        _watching.append(event)


sys.addaudithook(_watch)


def attempt(path: Path) -> str:
    """What loading a file comes to: ``module``, ``refused``, or what went wrong."""
    _watching[:] = ["watching"]
    try:
        if path.name.startswith("x."):
            load_inputs(path)
            outcome = "module"
        else:
            arch = f"{__name__ if __name__ != '__main__' else 'tests.fuzz.run'}:model"
            outcome = "module" if isinstance(load(path, arch), nn.Module) else "no module"
    except CanonizeError as error:
        outcome = "refused" if "\n" not in str(error) and str(error) else f"an odd message: {error!r}"
    except Exception as error:  # what this program looks for
        where = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in where if "canonize" in f.filename]
        outcome = f"{type(error).__name__} at {' '.join(ours[-2:])}: {str(error)[:100]}"
    events, _watching[:] = _watching[1:], []
    return f"ran {events}" if events else outcome


def fuzz(runs: int, seed: int, folder: Path, only: str = "") -> collections.Counter[str]:
    """Load `runs` mutated files; every file at fault stays in `folder`.

    Returns
    -------
    Counter
        Outcomes; all but ``module`` and ``refused`` are faults.
    """
    files = {name: content for name, content in seeds(folder / "seeds").items() if only in name}
    outcomes: collections.Counter[str] = collections.Counter()
    for number in range(runs):
        dice = random.Random(f"{seed}-{number}")
        name = dice.choice(list(files))
        path = folder / name
        path.write_bytes(mutate(name, files[name], dice))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = attempt(path)
        outcomes[f"{outcome}" if outcome in ("module", "refused") else f"{name} {outcome}"] += 1
        if outcome not in ("module", "refused"):
            path.rename(folder / f"fault-{seed}-{number}-{name}")
    return outcomes


def main() -> int:
    """Run at the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a seed file's name")
    options = parser.parse_args()
    # A file that asks for more memory than there is must be refused like any other.
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    print(f"seed {options.seed}, {options.runs} runs, files in {folder}", flush=True)
    os.chdir(folder)
    start = time.monotonic()
    outcomes = fuzz(options.runs, options.seed, folder, options.only)
    for outcome, count in outcomes.most_common():
        print(f"{count:7d}  {outcome}")
    faults = sum(count for outcome, count in outcomes.items() if outcome not in ("module", "refused"))
    print(f"{faults} faults in {options.runs} runs, {time.monotonic() - start:.0f} s")
    return 1 if faults else 0


__all__ = ["attempt", "fuzz", "model"]

if __name__ == "__main__":
    raise SystemExit(main())
