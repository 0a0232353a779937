"""The log: one line a message on standard error, whatever the message holds."""

from __future__ import annotations

import logging
import sys
import time

from netcls.text import printable


class OneLine(logging.Formatter):
    """``2026-11-24T10:15:02Z INFO netcls: text``; control characters are escaped, so nobody forges a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record; a traceback stands behind it, escaped too."""
        text = record.getMessage()
        if record.exc_info:
            text += " | " + self.formatException(record.exc_info).replace("\n", " | ")
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return f"{when} {record.levelname} netcls: {printable(' '.join(text.splitlines()))}"


def set_up_log(*, quiet: bool = False, verbose: bool = False) -> None:
    """Messages of netcls go to standard error: warnings only if ``quiet``, all if ``verbose``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    log = logging.getLogger("netcls")
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
