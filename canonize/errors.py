"""What canonize raises: always what happened, where, and what to do next."""

from __future__ import annotations

import signal


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
    """

    def __init__(self, what: str, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        message = f"{self.where}: {self.what}" if self.where else self.what
        return f"{message}. {self.hint}" if self.hint else message


class LoadError(CanonizeError):
    """A model file, an architecture name or a factory could not become a module."""


class InputError(CanonizeError):
    """No example input fits the model, or the given one does not."""


class CaptureError(CanonizeError):
    """A model cannot be turned into a graph without losing a part of it."""


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

    def __init__(self, what: str, verdict: object = None, where: str | None = None, hint: str | None = None):
        super().__init__(what, where, hint)
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
