"""Make an environment: ``python -m tests.environments.make FOLDER [--python P] [--torch 2.15.0] [--lowest] ...``.

Versions are chosen by uv, the newest or the lowest that ``pyproject.toml`` allows; torch comes without the CUDA
libraries of its wheel, for which stand-ins are written (`tests.environments.stubs`). canonize itself is installed from
a wheel that is built of this checkout.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.environments.stubs import write_stubs

ROOT = Path(__file__).resolve().parents[2]
# Libraries for a GPU, and torch itself, which is installed first and alone.
LEFT_OUT = re.compile(r"(nvidia-|cuda-|triton\b|pytorch-triton|torch==)")
EXTRAS = "zoo,onnx,explain,evaluate,search"


def main() -> int:
    """Make the environment that the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    parser.add_argument("--torch", default="", help="version; what is chosen with all others where not given")
    parser.add_argument("--lowest", action="store_true", help="the lowest versions of all direct requirements")
    parser.add_argument("--extras", default=EXTRAS, help="with commas; empty for a base installation")
    parser.add_argument("--with", dest="more", action="append", default=[], help="further requirement, or a bound")
    parser.add_argument("--wheel", type=Path, help="canonize's wheel, where it is built already")
    given = parser.parse_args()
    make(given.folder, given.python, given.torch, given.lowest, given.extras, given.more, given.wheel)
    return 0


def make(
    folder: Path, python: str, torch: str, lowest: bool, extras: str, more: list[str], wheel: Path | None = None
) -> None:
    """Make an environment in a new folder; the arguments are those of the command line."""
    run(python, "-m", "venv", str(folder))
    inside = str(folder / "bin" / "python")
    chosen = resolve(inside, torch, lowest, extras, more)
    # An environment without pip's own configuration: it may hold bounds of the machine.
    install(inside, *[line for line in chosen if line.startswith("torch==")])
    write_stubs(site_of(inside))
    install(inside, *[line for line in chosen if not LEFT_OUT.match(line)])
    with tempfile.TemporaryDirectory() as scratch:
        if wheel is None:
            run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", scratch, str(ROOT))
            wheel = next(Path(scratch).glob("*.whl"))
        install(inside, str(wheel))


def resolve(inside: str, torch: str, lowest: bool, extras: str, more: list[str]) -> list[str]:
    """What is to be installed, ``name==version``; all of it, with torch's own requirements but those for a GPU."""
    wanted = [*more, *([f"torch=={torch}"] if torch else [])]
    options = ["--resolution", "lowest-direct"] if lowest else []
    for extra in filter(None, extras.split(",")):
        options += ["--extra", extra]
    with tempfile.TemporaryDirectory() as scratch:
        further = Path(scratch) / "further.in"
        further.write_text("\n".join(wanted) + "\n")
        command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python", inside, *options]
        text = run(*command, str(ROOT / "pyproject.toml"), str(further))
    return [line.split(";")[0].strip() for line in text.splitlines() if line and not line.startswith("#")]


def install(inside: str, *requirements: str) -> None:
    """Install exactly these, without what they require."""
    if requirements:
        command = [inside, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        run(*command, *requirements)


def site_of(inside: str) -> Path:
    """Where packages of an environment lie."""
    return Path(run(inside, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())


def run(*command: str) -> str:
    """Run a program and give what it prints."""
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
