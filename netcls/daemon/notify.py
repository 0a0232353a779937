"""sd_notify(3): one datagram to the socket that systemd names, and nothing where there is none."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> bool:
    """Tell the service manager, for example ``READY=1`` or ``STATUS=...``.

    Returns:
        Whether there is one that was told.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path[0] == "@" else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(state.encode(), address)
        return True
    return False


def watchdog_s() -> float | None:
    """Within how many seconds systemd expects ``WATCHDOG=1``; None: never."""
    try:
        limit_s = int(os.environ.get("WATCHDOG_USEC", "")) / 1e6
        pid = int(os.environ.get("WATCHDOG_PID", str(os.getpid())))
    except ValueError:
        return None
    return limit_s if limit_s > 0 and pid == os.getpid() else None
