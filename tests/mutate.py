"""Plant one error at a time in a copy of the package; the tests must notice every one.

Not a test itself: it takes minutes. Run it after changing a pattern or a flow rule::

    python tests/mutate.py            # all of them
    python tests/mutate.py untangle   # those whose line contains the word
    python tests/mutate.py --part 1/4 # every fourth of them, from the first

With ``--certificate`` it is the checker of certificates, not the tests, that is to notice, without running a model
(``tests/proofs.py``): for those in the rooms that rewrite, each is caught, missed, loud (conversion itself fails) or
the same function::

    python tests/mutate.py --certificate

Prints one line a mutant and exits with 1 if one survives, or no longer applies to the code. A test that takes far
longer than it does without an error planted has noticed it as well: some errors are loops without an end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.anchors import AnchorError, planted  # noqa: E402
from tests.mutants import MUTANTS, Mutant  # noqa: E402

# Runs in a copy: the package that is tested must be the one beside the tests.
_PROBE = (
    "import pathlib, sys; sys.path.insert(0, '.'); import canonize; print(pathlib.Path(canonize.__file__).resolve())"
)
# Seconds that a test may take, over what it took without an error: a busy machine slows both down.
TIMES, SPARE = 8.0, 60.0
# Where a slip makes another function of a model: the rooms that rewrite.
REWRITING = ("patterns", "flow", "algebra", "rewrite", "forms")
# Seconds that the checker is given for all models, under one error.
LONGEST = 600.0


def main() -> int:
    """Run the mutants asked for; the number of those that were not noticed is in the last line."""
    parser = argparse.ArgumentParser(description="Plant errors in a copy of canonize; the tests must notice each.")
    parser.add_argument("words", nargs="*", help="only mutants whose description contains one of these")
    parser.add_argument("--certificate", action="store_true", help="ask the checker of certificates, not the tests")
    parser.add_argument("--list", action="store_true", help="print the mutants and whether they still apply")
    parser.add_argument("--part", default="1/1", help="I/N: every N-th of them, from the I-th")
    arguments = parser.parse_args()
    part, parts = (int(number) for number in arguments.part.split("/"))
    chosen = [m for m in MUTANTS if not arguments.words or any(word in _title(m) for word in arguments.words)]
    chosen = chosen[part - 1 :: parts]
    stale = []
    for mutant in chosen:
        try:
            planted(ROOT / "canonize", mutant.where, mutant.old, mutant.new)
        except AnchorError as error:
            stale.append(mutant)
            print(f"stale     {_title(mutant)}: {error}")
    if arguments.list:
        print(*(_title(m) for m in chosen if m not in stale), sep="\n")
        return int(bool(stale))
    if arguments.certificate:
        return _by_certificate([m for m in chosen if m not in stale])
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = _copy(Path(folder))
        limits: dict[str, float] = {}
        for test in sorted({test for mutant in chosen for test in mutant.tests}):
            start = time.perf_counter()
            failed = _first_failure(copy, test, None)
            if failed is not None:
                raise SystemExit(f"{failed} fails without any error planted; nothing can be learned from it")
            limits[test] = SPARE + TIMES * (time.perf_counter() - start)
        for mutant in chosen:
            if mutant not in stale:
                start = time.perf_counter()
                by = _killed_by(mutant, copy, limits)
                if by is None:
                    survivors.append(mutant)
                seconds = f"{time.perf_counter() - start:5.1f} s"
                print(f"{'killed' if by else 'SURVIVED':9} {seconds}  {_title(mutant)}  {by or ''}", flush=True)
    killed = len(chosen) - len(stale) - len(survivors)
    print(f"{len(chosen)} mutants: {killed} killed, {len(survivors)} survived, {len(stale)} stale")
    return int(bool(stale or survivors))


def _by_certificate(chosen: list[Mutant]) -> int:
    """Ask the checker of certificates about every error that a rewrite can have; 1 if it misses one."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = _copy(Path(folder))
        for mutant in chosen:
            path, text = planted(copy / "canonize", mutant.where, mutant.old, mutant.new)
            if path.relative_to(copy / "canonize").parts[0] not in REWRITING:
                continue
            original = path.read_text(encoding="utf-8")
            path.write_text(text, encoding="utf-8")
            try:
                said = _checked(copy)
            finally:
                path.write_text(original, encoding="utf-8")
            counts[said.partition(" ")[0]] += 1
            print(f"{said}  |  {_title(mutant)}", flush=True)
    changing = counts["caught"] + counts["missed"]
    share = f"{counts['caught'] / changing:.1%}" if changing else "none"
    print(f"{counts['caught']} of {changing} that change the function caught ({share}); {dict(counts)}")
    return int(bool(counts["missed"]))


def _checked(copy: Path) -> str:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.proofs"]
    try:
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return "loud it did not end"
    lines = run.stdout.strip().splitlines()
    return lines[-1] if lines and not run.returncode else f"loud {run.stderr.strip()[-80:]}"


def _title(mutant: Mutant) -> str:
    return f"{mutant.about} ({mutant.where}): {mutant.slip}"


def _copy(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("canonize", "tests", "benchmarks", "docs", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for path in (path for path in ROOT.iterdir() if path.is_file()):
        shutil.copy(path, folder)
    found = subprocess.run([sys.executable, "-c", _PROBE], cwd=folder, capture_output=True, text=True, check=True)
    if not Path(found.stdout.strip()).is_relative_to(folder.resolve()):
        raise SystemExit(f"the tests would import {found.stdout.strip()} instead of the copy")
    return folder


def _killed_by(mutant: Mutant, copy: Path, limits: dict[str, float]) -> str | None:
    """The first test that fails under the mutant, or None."""
    path, text = planted(copy / "canonize", mutant.where, mutant.old, mutant.new)
    original = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    try:
        for test in mutant.tests:
            failed = _first_failure(copy, test, limits[test])
            if failed is not None:
                return failed
        return None
    finally:
        path.write_text(original, encoding="utf-8")


def _first_failure(copy: Path, test: str, limit: float | None) -> str | None:
    path = f"tests/{test}"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", "--no-header", path]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"{path} (did not end)"
    if run.returncode == 0:
        return None
    # A mutant that cannot even be imported says nothing about the tests.
    if run.returncode != 1:
        raise SystemExit(f"pytest ended with {run.returncode} on {path}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    lines = [line for line in run.stdout.splitlines() if line.startswith("FAILED")]
    return lines[0].split(" - ")[0].removeprefix("FAILED ") if lines else path


if __name__ == "__main__":
    sys.exit(main())
