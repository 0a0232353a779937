"""Which captures a PATH of the command line means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from capture.errors import UsageError

STDIN: Final = "-"
CAPTURE_SUFFIXES: Final = (".pcap", ".pcapng", ".cap", ".dmp")
COMPRESSED_SUFFIXES: Final = ("", ".gz", ".zst")
_ENDINGS: Final = tuple(plain + packed for plain in CAPTURE_SUFFIXES for packed in COMPRESSED_SUFFIXES)


def find_captures(path: str) -> list[str]:
    """The captures of one PATH.

    A file (whatever its name) and ``-`` are taken as they are, so that a missing one is the reader's error.
    A folder is searched at any depth, without following links to folders, for files that are named like captures.

    Returns:
        Paths, sorted.

    Raises:
        UsageError: for a folder without captures.
    """
    if path == STDIN or not Path(path).is_dir():
        return [path]
    found = sorted(
        str(Path(folder) / name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(_ENDINGS)
    )
    if not found:
        raise UsageError(
            f"folder '{path}' holds no captures; expected files ending in "
            f"{', '.join(CAPTURE_SUFFIXES)}, also with .gz or .zst; give a capture file or another folder"
        )
    return found
