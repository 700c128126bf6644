"""A file appears whole and checked, or not at all."""

from __future__ import annotations

import glob
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from canonize.errors import ExportError


def check_destination(path: Path) -> None:
    """Refuse a path that cannot be written, before any work is done.

    Raises
    ------
    ExportError
        If the folder is missing or closed, or the path is a folder.
    """
    folder = path.parent
    if not folder.is_dir():
        raise ExportError(f"there is no folder {folder}", where=str(path), hint=f"Make it first: mkdir -p {folder}")
    if path.is_dir():
        raise ExportError("is a folder", where=str(path), hint="Give a file name inside it")
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ExportError("may not be written", where=str(path), hint="Choose another place, or change permissions")


def write_whole(path: Path, write: Callable[[Path], None], check: Callable[[Path], None]) -> None:
    """Write beside `path` under a passing name, check what lies there, and only then give it its name.

    Parameters
    ----------
    path : Path
        Replaced at once if it exists.
    write, check : callable
        Called with the passing name, which has the same ending. An exception from either (Ctrl-C too) leaves nothing.
    """
    passing = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        try:
            write(passing)
        except OSError as error:
            raise ExportError(
                f"writing failed ({error.strerror or error})", where=str(path), hint="Is the disk full?"
            ) from error
        check(passing)
        os.replace(passing, path)
    finally:
        # Exporters may put weights beside the file, under its name with something behind it.
        for left in path.parent.glob(f"{glob.escape(passing.name)}*"):
            left.unlink(missing_ok=True)
