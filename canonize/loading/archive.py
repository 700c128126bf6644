"""Archives that are not what they say: bombs, names that lead out, entries that lie over each other."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

from canonize.errors import LoadError

# A model of a hundred thousand tensors is beyond anything known.
ENTRIES = 200_000


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive, complete to its end."""
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, OSError):
        return False


def entries_of(path: Path) -> list[str]:
    """Names of the entries of a zip archive.

    Raises
    ------
    LoadError
        If it is damaged.
    """
    return [entry.filename for entry in _entries(path)]


def check_archive(path: Path) -> None:
    """Refuse a zip archive that torch cannot have written.

    torch stores its records as they are: an archive that unpacks to more than it holds was made by something else.

    Raises
    ------
    LoadError
        If entries are compressed, overlap, share a name, or have a name that leads out of the archive.
    """
    entries = _entries(path)
    size = path.stat().st_size
    if len(entries) > ENTRIES:
        raise _refusal(path, f"holds {len(entries)} entries")
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise _refusal(path, "holds two entries of one name")
    for entry in entries:
        if _leads_out(entry.filename):
            raise _refusal(path, f"holds an entry called {entry.filename!r}, which leads out of the archive")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise _refusal(path, f"holds a compressed entry ({entry.filename}, {entry.file_size:,} bytes unpacked)")
    if sum(entry.file_size for entry in entries) > size:
        raise _refusal(path, "holds entries that lie over each other")


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise LoadError(f"is a damaged archive ({error})", where=str(path), hint="Save or download it again") from error


def _leads_out(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return ".." in parts or ".." in PureWindowsPath(name).parts or name.startswith(("/", "\\")) or ":" in name[:2]


def _refusal(path: Path, what: str) -> LoadError:
    return LoadError(what, where=str(path), hint="torch.save writes no such archive; save the model with it again")
