"""Where the control socket is. Standard library only."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

from capture.errors import UsageError

AUTO: Final = "auto"
NONE: Final = "none"
_NAME: Final = "control.sock"


def control_path(given: str) -> Path | None:
    """The path that ``--control`` means; None where there shall be no socket.

    Raises:
        UsageError: if ``auto`` finds no place.
    """
    if given == NONE:
        return None
    if given != AUTO:
        return Path(given)
    for folder in _folders():
        if folder.is_dir() and os.access(folder, os.W_OK):
            return folder / _NAME
        if folder.parent.is_dir() and os.access(folder.parent, os.W_OK):
            folder.mkdir(mode=0o750, exist_ok=True)
            return folder / _NAME
    raise UsageError(
        f"got auto, and none of {', '.join(map(str, _folders()))} can be written; give --control PATH or none"
    )


def running_control_path() -> Path:
    """The first place where a control socket is.

    Raises:
        UsageError: if there is none.
    """
    for folder in _folders():
        if (folder / _NAME).exists():
            return folder / _NAME
    raise UsageError(
        f"no netcls is running: no {_NAME} in {', '.join(map(str, _folders()))}; start `netcls serve` "
        f"or give --control PATH"
    )


def someone_answers_at(path: Path) -> bool:
    """Whether a process listens at a unix socket; a file that a killed one left behind does not count."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _folders() -> list[Path]:
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    user = os.environ.get("XDG_RUNTIME_DIR", "")
    found = [Path(runtime)] if runtime else []
    found.append(Path("/run/netcls"))
    if user:
        found.append(Path(user) / "netcls")
    return found
