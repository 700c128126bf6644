"""What canonize raises: always what happened, where, and what to do next."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Collection, Iterable
from pathlib import Path


class CanonizeError(Exception):
    """Base class of every error that canonize raises on purpose.

    Parameters
    ----------
    what : str
        What happened, as one sentence without a full stop.
    where : str, optional
        Qualified name of the layer concerned (``features.norm5``), or of the file.
    hint : str, optional
        What the reader can do next.
    shell : str, optional
        The same for a reader at the command line, where that differs: an option instead of an argument.
    """

    def __init__(
        self, what: str, where: str | None = None, hint: str | None = None, *, shell: str | None = None
    ) -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint
        self.shell = shell

    def __str__(self) -> str:
        return self._sentence(self.hint)

    def at_a_shell(self) -> str:
        """The message for a reader who types commands, not Python."""
        return self._sentence(self.shell or self.hint)

    def _sentence(self, hint: str | None) -> str:
        message = f"{self.where}: {self.what}" if self.where else self.what
        return f"{message}. {hint}" if hint else message


class LoadError(CanonizeError):
    """A model file, an architecture name or a factory could not become a module."""


class InputError(CanonizeError):
    """No example input fits the model, or the given one does not."""


class CaptureError(CanonizeError):
    """A model cannot be turned into a graph without losing a part of it."""


class StatisticsError(CaptureError):
    """A normalisation whose numbers are no affine: a NaN, an infinity, a division by 0. No other tracer helps."""


class ConformanceError(CaptureError):
    """A captured graph does not do what the model does."""


class StatefulError(CaptureError):
    """A model's eval-mode forward writes into the model: it may be another function the next time."""


class RewriteError(CanonizeError):
    """A rewrite cannot be carried out: weights would overflow, or canonize broke an invariant of its own (a bug)."""


class ExportError(CanonizeError):
    """A canonical model could not be written in the format asked for."""


class NotEquivalentError(CanonizeError, AssertionError):
    """Two models do not compute the same function.

    Attributes
    ----------
    verdict : canonize.report.Verdict
        The numbers behind the statement.
    """

    def __init__(
        self,
        what: str,
        verdict: object = None,
        where: str | None = None,
        hint: str | None = None,
        *,
        shell: str | None = None,
    ):
        super().__init__(what, where, hint, shell=shell)
        self.verdict = verdict


class ExplainError(CanonizeError):
    """A model cannot be explained as asked: no such method, no rule for a layer, a library that is missing."""


def cuts_in(error: BaseException) -> bool:
    """Whether an exception is the caller's own, which stops whatever runs: a time limit, or what a signal raised.

    It says nothing about a model, and no other way is tried because of it.
    """
    if isinstance(error, TimeoutError):
        return True
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()} - {None}
    trace = error.__traceback__
    while trace is not None and handlers:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def first_line(error: BaseException, most: int = 160) -> str:
    """What another's error says in its first line; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:most] if lines else type(error).__name__


def kind_and_line(error: BaseException, most: int = 200) -> str:
    """Another's error with its class: ``ValueError: no such thing``."""
    kind = type(error).__name__
    return f"{kind}: {first_line(error, most)}" if str(error).strip() else kind


def closest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The names that a mistyped one was probably meant to be, likeliest first; none where nothing is near."""
    by_lower = {name.lower(): name for name in known}
    word = word.lower()
    begun = sorted(name for name in by_lower if len(word) > 1 and name.startswith(word))
    near = difflib.get_close_matches(word, by_lower, n=count)
    return [by_lower[name] for name in dict.fromkeys([*near, *begun])][:count]


def nearby(path: Path, endings: Collection[str]) -> str:
    """A hint for a file that is not there: files with a name like it, else what its folder holds.

    Parameters
    ----------
    path : Path
    endings : collection of str
        Of the files that would do, in lower case; with none given, every file would.
    """
    folder = path.parent
    if not folder.is_dir():
        above = folder.parent
        beside = closest(folder.name, (p.name for p in above.iterdir() if p.is_dir())) if above.is_dir() else []
        meant = f". Did you mean {above / beside[0] / path.name}?" if beside else ""
        return f"The folder {folder} does not exist either{meant}"
    try:
        visible = (p for p in folder.iterdir() if not p.name.startswith("."))
        names = sorted(p.name for p in visible if not endings or p.suffix.lower() in endings)
    except OSError:
        return "Check the path"
    near = closest(path.name, names)
    if near:
        return f"Did you mean {' or '.join(str(folder / name) for name in near)}?"
    stem = [name for name in names if path.stem and path.stem.lower() in name.lower()][:3]
    shown = stem or names[:3]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"Its folder holds {', '.join(shown)}{more}" if shown else "Check the path"
