"""stdout and stderr that cannot change what a command finds out: a closed pipe, a terminal that only knows ASCII.

Exit codes are verdicts. What cannot be shown is shown worse, or not at all; the work goes on, and its verdict stands.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

# What the commands print beyond ASCII, in characters that every terminal has.
PLAIN = {
    **dict(zip("▁▂▃▄▅▆▇█", "_.-~=+*#", strict=True)),
    "↑": "^",
    "↓": "v",
    "→": "->",
    "←": "<-",
    "±": "+-",
    "×": "x",
    "·": ".",
    "≤": "<=",
    "≥": ">=",
    "∞": "inf",
    "–": "-",
    "—": "-",
    "…": "...",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "•": "*",
    "✓": "+",
    "✗": "x",
    **dict(zip("─│┌┐└┘├┤┬┴┼━", "-|+++++++++=", strict=True)),
}


def spelled(text: str, encoding: str) -> str:
    """A text with every character that `encoding` lacks written in characters that it has."""
    if _holds(text, encoding):
        return text
    return "".join(c if _holds(c, encoding) else PLAIN.get(c) or _escaped(c) for c in text)


def _holds(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _escaped(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")


class Steady(io.TextIOBase):
    """A stream that spells what its encoding lacks, and drops what nobody reads any more.

    Parameters
    ----------
    stream : TextIO or None
        None is how Python names a stream that was closed before it started.

    Attributes
    ----------
    failure : OSError or None
        Why something could not be written, other than that its reader has gone: a full disk.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.failure: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """Nothing is ever left for the stream to complain about."""
        return "strict"

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        """Of the stream."""
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()

    def writable(self) -> bool:
        """Always: what cannot be written is dropped."""
        return True

    def write(self, text: str) -> int:
        """Write what can be written."""
        if self.stream is not None:
            with self._dropping(self.stream) as stream:
                stream.write(spelled(text, self.encoding))
        return len(text)

    def flush(self) -> None:
        """Pass on what is held back."""
        if self.stream is not None:
            with self._dropping(self.stream) as stream:
                stream.flush()

    @contextlib.contextmanager
    def _dropping(self, stream: TextIO) -> Iterator[TextIO]:
        try:
            yield stream
        except TimeoutError:  # somebody's time limit, not the stream
            raise
        except OSError as error:
            if not _reader_has_gone(error):
                self.failure = error
            self.stream = None
            _silence(stream)
        except ValueError:  # it was closed
            self.stream = None


def _reader_has_gone(error: OSError) -> bool:
    windows = os.name == "nt" and error.errno == errno.EINVAL
    return isinstance(error, BrokenPipeError) or error.errno in (errno.EPIPE, errno.ESHUTDOWN) or windows


def _silence(stream: TextIO) -> None:
    """Send what the stream still holds to nowhere: Python flushes it once more at its end, and would fail again."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


@contextlib.contextmanager
def steady() -> Iterator[tuple[Steady, Steady]]:
    """Stdout and stderr, for the length of a command."""
    out, err = Steady(sys.stdout), Steady(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield out, err
        finally:
            out.flush()
            err.flush()
