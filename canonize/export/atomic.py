"""A file, or a folder of files, appears whole and checked, or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import platform
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from canonize.errors import ExportError

# Who writes: a name of this machine, and the process, so that others can tell whether it is still at it.
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
# What a folder of canonize holds, and what running it leaves there.
OWN = ("model.py", "model.safetensors", "__pycache__")


def check_destination(path: Path, whole_folder: bool = False) -> None:
    """Refuse a path that cannot be written, before any work is done.

    Parameters
    ----------
    path : Path
    whole_folder : bool
        Whether `path` is to be a folder, which then takes the place of an empty one or of one written before.

    Raises
    ------
    ExportError
        If the folder around it is missing or closed, or something else is there.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    folder = path.parent
    if not folder.is_dir():
        raise ExportError(f"there is no folder {folder}", where=str(path), hint=f"Make it first: mkdir -p {folder}")
    if path.is_dir() and not whole_folder:
        raise ExportError("is a folder", where=str(path), hint="Give a file name inside it")
    if whole_folder and path.exists():
        _refuse_foreign(path)
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ExportError("may not be written", where=str(path), hint="Choose another place, or change permissions")


def _refuse_foreign(path: Path) -> None:
    """Refuse to replace anything but an empty folder, or one that was written by canonize."""
    if not path.is_dir():
        raise ExportError("is a file, not a folder", where=str(path), hint="Choose another name")
    foreign = sorted(p.name for p in path.iterdir() if p.name not in OWN)
    if foreign:
        raise ExportError(
            f"the folder holds {', '.join(foreign[:3])}, which is not canonize's",
            where=str(path),
            hint="Choose a new folder: the whole of it is replaced",
        )


def write_whole(path: Path, write: Callable[[Path], None], check: Callable[[Path], None]) -> None:
    """Write beside `path` under a passing name, check what lies there, and only then give it its name.

    Parameters
    ----------
    path : Path
        Replaced at once if it exists.
    write, check : callable
        Called with the passing name, which has the same ending. An exception from either (Ctrl-C too) leaves nothing.

    Notes
    -----
    Where `path` is a symbolic link, the file that it leads to is replaced, and the link stays. What a killed process
    has left under a passing name of this file is removed.
    """
    real = Path(os.path.realpath(path)) if path.is_symlink() else path
    _remove_leftovers(real, path)
    passing = real.with_name(f".{path.stem}.canonize-{_MACHINE}-{os.getpid()}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        try:
            write(passing)
        except Exception as error:
            if not is_disk_error(error):
                raise
            told = getattr(error, "strerror", None) or str(error).strip().splitlines()[0][-100:]
            raise ExportError(f"writing failed ({told})", where=str(path), hint=_way_on(path, error)) from error
        check(passing)
        _put(passing, real)
    finally:
        # Exporters may put weights beside the file, under its name with something behind it.
        for left in real.parent.glob(f"{glob.escape(passing.name)}*"):
            _remove(left)


def _remove_leftovers(real: Path, path: Path) -> None:
    """Remove what writers of the same file, on this machine, have left that are no more."""
    pattern = re.compile(
        rf"\.{re.escape(path.stem)}\.canonize-{_MACHINE}-(\d+)-[0-9a-f]{{8}}{re.escape(path.suffix)}.*"
    )
    with contextlib.suppress(OSError):
        for left in list(real.parent.iterdir()):
            match = pattern.fullmatch(left.name)
            if match is None or _is_running(int(match[1])):
                continue
            if left.name.endswith(".older") and not real.exists():
                os.replace(left, real)  # killed between taking the older folder away and putting the new one there
            else:
                _remove(left)


def _is_running(process: int) -> bool:
    if os.name != "posix":  # there, signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_disk_error(error: BaseException) -> bool:
    """Whether an exception says that the disk, not the model, is at fault; each library has its own way to say it."""
    text = str(error)
    signs = ("inline_container", "PytorchStreamWriter", "No space left", "File too large", "I/O error", "os error")
    return isinstance(error, OSError) or (not isinstance(error, ExportError) and any(sign in text for sign in signs))


def _way_on(path: Path, error: BaseException) -> str:
    """What to do where writing failed: a full disk is asked for, and not guessed."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    disk = False
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(path.parent)
        disk = usage.total > 0
        full = full or (disk and usage.free < 2**20)
    if full or "No space left" in str(error):
        return f"The disk that holds {path.parent} is full: make room, or choose another place"
    if "File too large" in str(error):
        return "The place takes no file so large: choose another"
    if disk and not isinstance(error, OSError):  # a library that says in its own words that it could not
        return "Is the disk full? Make room, or choose another place"
    return f"{path.parent} takes no such file: choose another place"


def _put(passing: Path, path: Path) -> None:
    """Give what was written its name, in place of what has it."""
    if not passing.is_dir() or not path.is_dir():
        os.replace(passing, path)
        return
    older = passing.with_name(f"{passing.name}.older")  # a folder cannot be replaced in one step
    os.replace(path, older)
    try:
        os.replace(passing, path)
    except BaseException:
        os.replace(older, path)
        raise
