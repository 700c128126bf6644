"""The libraries that only evaluating needs: pandas, joblib, matplotlib, ..., imported when first needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from canonize.compat import need
from canonize.compat import require as require_extra
from canonize.explain.methods import find

# What generated data are made of.
DATA = {"digits": ("sklearn", "skimage", "PIL")}
# What every evaluation takes, whatever is measured.
ALWAYS = ("zennit", "jinja2", "joblib", "matplotlib", "pandas", "pyarrow")


def need_all(data: Sequence[str], metrics: Sequence[str], methods: Sequence[str], extra: str = "evaluate") -> None:
    """Refuse before the work where a library is missing that evaluating these takes.

    Parameters
    ----------
    data, metrics, methods : sequence of str
        Names as the command line takes them.
    extra : {"evaluate", "search"}

    Raises
    ------
    InputError
        With how to install it.
    """
    modules = list(ALWAYS)
    for name in data:
        modules += [module for start, needed in DATA.items() if name.startswith(start) for module in needed]
        modules += ["PIL"] if ":" in name else []
    modules += ["cv2"] if any("inpainting" in name for name in metrics) else []
    modules += ["captum"] if any(find(name.partition(":")[0]).kind == "captum" for name in methods) else []
    modules += ["optuna"] if extra == "search" else []
    need(modules, "searching" if extra == "search" else "evaluating", extra=extra)


def require(name: str, extra: str = "evaluate") -> Any:
    """Import a library of an extra.

    Raises
    ------
    InputError
        If it is not installed; with how to install it.
    """
    return require_extra(name, "searching" if extra == "search" else "evaluating", extra=extra)
