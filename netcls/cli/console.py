"""What the command says on standard error: single lines, and a progress line on a terminal."""

from __future__ import annotations

import sys
import time
from typing import Final

from netcls.text import printable

_REDRAW_S: Final = 0.1
_CLEAR_LINE: Final = "\r\x1b[K"


def report(kind: str, text: str) -> None:
    """Print ``netcls: error: ...`` (or ``warning``, ``defect``) as one line."""
    one_line = " ".join(text.split("\n"))
    print(f"netcls: {kind}: {printable(one_line)}", file=sys.stderr, flush=True)  # noqa: T201


def note(text: str) -> None:
    """Print a line of information."""
    print(printable(text), file=sys.stderr, flush=True)  # noqa: T201


class Progress:
    """One line that is drawn over, at most ten times a second; nothing where standard error is no terminal.

    Args:
        is_wanted: False draws nothing.
    """

    def __init__(self, is_wanted: bool = True) -> None:
        self._is_drawn = is_wanted and sys.stderr.isatty()
        self._next_draw_s = 0.0

    def show(self, text: str) -> None:
        """Draw the line."""
        now_s = time.monotonic()
        if self._is_drawn and now_s >= self._next_draw_s:
            self._next_draw_s = now_s + _REDRAW_S
            sys.stderr.write(_CLEAR_LINE + printable(text))
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away, before anything else is printed."""
        if self._is_drawn:
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()
