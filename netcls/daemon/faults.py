"""Faults on purpose, at the boundaries of the stages, so that tests need no broken disk and no luck.

    NETCLS_FAULT="decode:stall:5s,sink.file:enospc:after=1000,predictor:raise:n=3"

Each fault is ``PLACE:KIND[:SECONDS]`` and may have ``after=N`` (so many packets, flows or events pass the place first)
and ``n=K`` (it strikes at most K times; a stall once unless told otherwise). Kinds: ``stall`` sleeps, ``raise`` raises
what no stage expects, ``enospc`` is a full disk. Nothing is looked up while the variable is not set.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from capture.errors import UsageError, did_you_mean
from netcls.sinks.base import SinkError

VARIABLE: Final = "NETCLS_FAULT"
KINDS: Final = ("stall", "raise", "enospc")
PLACES: Final = ("capture", "decode", "predictor", "output", "spool", "tick")
_SINK: Final = "sink."
_STALL_S: Final = 60.0


class InjectedFault(Exception):  # noqa: N818 - it is no error of anybody
    """What ``raise`` raises."""


@dataclass(slots=True)
class Fault:
    """One fault; :meth:`pass_by` is called where it may strike.

    Attributes:
        place, kind: see the module.
        seconds: of a stall.
        after: units that pass before it strikes.
        times: how often it strikes.
    """

    place: str
    kind: str
    seconds: float = _STALL_S
    after: int = 0
    times: int | None = None
    passed: int = 0
    struck: int = 0

    def pass_by(self, n: int) -> None:
        """Let ``n`` units pass, or strike.

        Raises:
            InjectedFault: of kind ``raise``.
            SinkError: of kind ``enospc`` at a sink.
            OSError: of kind ``enospc`` elsewhere.
        """
        if not n:
            return
        if self.passed < self.after or (self.times is not None and self.struck >= self.times):
            self.passed += n
            return
        self.struck += 1
        if self.kind == "stall":
            time.sleep(self.seconds)
        elif self.kind == "raise":
            raise InjectedFault(f"{VARIABLE} at {self.place}")
        elif self.place.startswith(_SINK):
            raise SinkError(f"{os.strerror(errno.ENOSPC)} ({VARIABLE})")
        else:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Faults:
    """All that are switched on.

    Args:
        text: as in the module's docstring; empty: none.

    Raises:
        UsageError: for what cannot be read.
    """

    def __init__(self, text: str = "") -> None:
        self._all = [_parsed(part.strip()) for part in text.split(",") if part.strip()]

    @classmethod
    def from_environment(cls) -> Faults:
        """What ``NETCLS_FAULT`` asks for."""
        return cls(os.environ.get(VARIABLE, ""))

    def at(self, place: str) -> Callable[[int], None] | None:
        """What a stage calls with the number of units that pass; None where nothing will ever strike."""
        here = [fault for fault in self._all if fault.place == place]
        if not here:
            return None

        def pass_by(n: int) -> None:
            for fault in here:
                fault.pass_by(n)

        return pass_by


def _parsed(text: str) -> Fault:
    place, _, rest = text.partition(":")
    kind, *settings = rest.split(":")
    if place not in PLACES and not place.startswith(_SINK):
        raise UsageError(
            f"{VARIABLE}: '{place}' is no place; expected {', '.join(PLACES)} or sink.NAME{did_you_mean(place, PLACES)}"
        )
    if kind not in KINDS:
        raise UsageError(f"{VARIABLE}: '{kind}' is no kind of fault; expected one of {', '.join(KINDS)}")
    fault = Fault(place, kind, times=1 if kind == "stall" else None)
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            if name == "after":
                fault.after = int(value)
            elif name == "n":
                fault.times = int(value)
            elif not value:
                fault.seconds = float(name.removesuffix("s"))
            else:
                raise ValueError
        except ValueError:
            raise UsageError(
                f"{VARIABLE}: cannot read '{setting}' of '{text}'; expected SECONDS, after=N or n=K"
            ) from None
    return fault
