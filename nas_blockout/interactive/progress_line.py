"""Progress in one line that is written anew: in a terminal or a notebook; elsewhere a line every few seconds."""

import sys
import time
from types import TracebackType
from typing import TextIO

_SECONDS = 5.0  # between lines where a line cannot be written anew
_AT_ONCE = 0.1  # between changes of a line that can


class ProgressLine:
    """A line of progress, left as it was last; used in a ``with`` statement.

    Args:
        stream: Where it is written; None for the standard output of a notebook, else the standard error.
        enabled: Whether anything is written.
    """

    def __init__(self, stream: TextIO | None = None, *, enabled: bool = True) -> None:
        notebook = "ipykernel" in sys.modules  # its standard error has a background of alarm
        self._stream = stream or (sys.stdout if notebook else sys.stderr)
        self._enabled = enabled
        self._renews = notebook or self._stream.isatty()
        self._length, self._last, self._text = 0, 0.0, ""

    def __enter__(self) -> "ProgressLine":
        return self

    def show(self, text: str) -> None:
        """Show a text in place of the one before, unless that was a moment ago."""
        self._text = " ".join(text.split())
        if self._enabled and time.monotonic() - self._last >= (_AT_ONCE if self._renews else _SECONDS):
            self._write()

    def _write(self) -> None:
        text, self._text, self._last = self._text, "", time.monotonic()
        self._stream.write(f"\r{text.ljust(self._length)}" if self._renews else f"{text}\n")
        self._stream.flush()
        self._length = len(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the last text, and end the line."""
        if self._enabled and self._text:
            self._write()
        if self._enabled and self._renews and self._length:
            self._stream.write("\n")
            self._stream.flush()
