"""The package as it is released: a wheel and an sdist of this checkout, and a clean environment with the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[2]
# Hides what extras bring, as if a base installation were all there is.
BLOCK = "import sys\nsys.modules.update(dict.fromkeys({names!r}))\n"


def wheel_in(folder: Path) -> Path:
    """Build the wheel."""
    return Path(next(iter(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))))


def sdist_in(folder: Path) -> Path:
    """Build the sdist."""
    return Path(next(iter(SdistBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))))


def clean_room(folder: Path, wheel: Path, blocked: list[str]) -> Path:
    """The interpreter of a new environment: the wheel installed as pip does it, and what it requires.

    The requirements are this environment's own, so that nothing is downloaded; canonize's checkout is not among them.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    installed = [path for path in sys.path if path.endswith("site-packages")]
    inside = next((folder / "lib").glob("python*/site-packages"))
    (inside / "shared.pth").write_text("\n".join(installed) + "\n")
    (inside / "sitecustomize.py").write_text(BLOCK.format(names=blocked))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel)],
        check=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    return python


def metadata_of(wheel: Path) -> str:
    """The text of METADATA."""
    with zipfile.ZipFile(wheel) as opened:
        return opened.read(next(n for n in opened.namelist() if n.endswith("METADATA"))).decode()
