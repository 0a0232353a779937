"""The error tree of netcls: what an operator did or gave that cannot work.

    NetclsError                 one line: what was got, what was expected, what to do
    ├── CaptureError            a capture file cannot be read
    │   ├── NotACaptureError    the bytes are of no known capture format
    │   └── CutCaptureError     the capture ends in the middle of a record (only raised with ``strict``)
    ├── LiveError               an interface cannot be captured
    ├── TokenizeError           a representation was asked for something it cannot make
    ├── CheckpointError         a checkpoint is missing, damaged or of another kind (raised by ``models``)
    ├── TrainingError           a training run cannot go on: it diverged (raised by ``models.learning``)
    ├── DataError               labelled data cannot be used (raised by ``netcls.datasets``)
    ├── OutputError             the output cannot be written (in ``netcls.output``)
    └── UsageError              a flag, configuration key or environment variable is wrong (raised by ``netcls``)

A *packet* is never an exception: it gets a :class:`capture.reject.Reject` reason and is counted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NetclsError(Exception):
    """The operator's mistake or unreadable input; the command line turns it into one line and exit code 2."""


class CaptureError(NetclsError):
    """A capture file cannot be read."""


class NotACaptureError(CaptureError):
    """The bytes are of no known capture format."""


class CutCaptureError(CaptureError):
    """A capture ends in the middle of a record; raised only when the caller asked for ``strict``."""


class LiveError(NetclsError):
    """An interface cannot be captured, or not any longer."""


class TokenizeError(NetclsError):
    """A representation was asked for something it cannot make."""


class CheckpointError(NetclsError):
    """A checkpoint is missing, damaged, or not what the caller needs."""


class TrainingError(NetclsError):
    """A training run cannot go on."""


class DataError(NetclsError):
    """Labelled data cannot be used."""


class UsageError(NetclsError):
    """A flag, configuration key or environment variable is wrong."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known word, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
