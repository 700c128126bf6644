"""Libraries that only some features take: which extra brings each, and what to run where one is missing.

A feature asks for what it takes (`need`) before any other work, so that nobody waits for half an hour to read that a
library is missing; it imports (`require`) where it uses it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from canonize.compat.torchvision import import_torchvision
from canonize.errors import CanonizeError, InputError

# The module that is imported, and the extra of pyproject.toml that brings it: the smallest, where several do.
EXTRA_OF = {
    "timm": "zoo",
    "torchvision": "zoo",
    "onnx": "onnx",
    "onnx2fx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "PIL": "explain",
    "captum": "explain",
    "h5py": "explain",
    "matplotlib": "explain",
    "zennit": "explain",
    "cv2": "evaluate",
    "jinja2": "evaluate",
    "joblib": "evaluate",
    "pandas": "evaluate",
    "pyarrow": "evaluate",
    "skimage": "evaluate",
    "sklearn": "evaluate",
    "optuna": "search",
}
# Where the name of the package is another than that of the module.
PACKAGE = {"PIL": "pillow", "cv2": "opencv-python-headless", "skimage": "scikit-image", "sklearn": "scikit-learn"}
PACKAGE["dask"] = "distributed"
# What no version of a package on the index supports.
FIRST_PYTHON = {"onnx2fx": (3, 11)}


def need(
    modules: Sequence[str],
    purpose: str,
    *,
    where: str | None = None,
    error: type[CanonizeError] = InputError,
    extra: str | None = None,
) -> None:
    """Refuse at once, in one line, where libraries that a feature takes are missing.

    Parameters
    ----------
    modules : sequence of str
        Names as they are imported.
    purpose : str
        What takes them, as the subject of a sentence: "reading ONNX files".
    where : str, optional
        File or name concerned.
    error : type of CanonizeError
    extra : str, optional
        The extra to name; by default the one that brings the first missing module.

    Raises
    ------
    CanonizeError
        Of the type `error`, with the command that installs what is missing.
    """
    missing = [name for name in dict.fromkeys(_package(m) for m in modules) if not is_installed(name)]
    if not missing:
        return
    for name in missing:
        first = FIRST_PYTHON.get(name, (3, 0))
        if sys.version_info < first:
            running = ".".join(map(str, sys.version_info[:2]))
            raise error(
                f"{purpose} takes {name}, which needs Python {first[0]}.{first[1]} or newer (this is {running})",
                where=where,
                hint="Use a newer Python for it",
            )
    names = [PACKAGE.get(name, name) for name in missing]
    text = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    are, which = ("are", "them") if len(names) > 1 else ("is", "it")
    extra = (extra or EXTRA_OF[missing[0]]) if missing[0] in EXTRA_OF else None
    if extra is None:
        command, brings = f"pip install {' '.join(names)}", "Run"
    else:
        command, brings = install_command(extra), f"The extra canonize[{extra}] brings {which}; run"
    raise error(f"{purpose} takes {text}, which {are} not installed", where=where, hint=f"{brings}: {command}")


def require(
    module: str,
    purpose: str,
    *,
    where: str | None = None,
    error: type[CanonizeError] = InputError,
    extra: str | None = None,
) -> Any:
    """Import a library of an extra; the parameters are those of `need`.

    Returns
    -------
    module

    Raises
    ------
    CanonizeError
        Of the type `error`, where it is not installed, or does not import.
    """
    need([module], purpose, where=where, error=error, extra=extra)
    try:
        found: ModuleType = import_torchvision(module)  # timm, zennit and others import torchvision themselves
    except ImportError as failure:
        first = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        raise error(
            f"{purpose} takes {PACKAGE.get(_package(module), _package(module))}, which does not import ({first[:200]})",
            where=where,
            hint=f"Run: pip install {failure.name.partition('.')[0]}" if failure.name else "Install it again",
        ) from failure
    return found


def is_installed(package: str) -> bool:
    """Whether a package can be found; it is not imported."""
    if package in sys.modules:
        return sys.modules[package] is not None
    return importlib.util.find_spec(package) is not None


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation, quoted for a shell.

    An installation from an index is extended by name. One from a checkout, a file or a repository is extended from
    there: the name on the index may be of another version, or of nobody yet.
    """
    origin = _origin()
    url = str(origin.get("url", ""))
    if not url:
        return f"pip install 'canonize[{extra}]'"
    folder = origin.get("dir_info")
    if folder is not None and urlsplit(url).scheme == "file":
        path = url2pathname(urlsplit(url).path)
        return f"pip install {'-e ' if folder.get('editable') else ''}'{path}[{extra}]'"
    version = origin.get("vcs_info", {})
    if version:
        url = f"{version.get('vcs', 'git')}+{url}" + (f"@{version['commit_id']}" if "commit_id" in version else "")
    return f"pip install 'canonize[{extra}] @ {url}'"


def _origin() -> dict[str, Any]:
    """What pip wrote down of where canonize came from (PEP 610); empty for an index."""
    try:
        text = importlib.metadata.distribution("canonize").read_text("direct_url.json")
        found: dict[str, Any] = json.loads(text) if text else {}
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return {}
    return found


def _package(module: str) -> str:
    return module.partition(".")[0]
