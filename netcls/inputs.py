"""Which captures a PATH of the command line means."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from capture.errors import UsageError

STDIN: Final = "-"
CAPTURE_SUFFIXES: Final = (".pcap", ".pcapng", ".cap", ".dmp")
COMPRESSED_SUFFIXES: Final = ("", ".gz", ".zst", ".xz", ".bz2", ".lz4")
_ENDINGS: Final = tuple(plain + packed for plain in CAPTURE_SUFFIXES for packed in COMPRESSED_SUFFIXES)


def find_captures(path: str) -> list[str]:
    """The captures of one PATH.

    A pattern (``*``, ``?``, ``[...]``) that is no file's name means the files that match it.
    A file (whatever its name) and ``-`` are taken as they are, so that a missing one is the reader's error.
    A folder is searched at any depth, without following links to folders, for files that are named like captures.

    Returns:
        Paths, sorted by name.

    Raises:
        UsageError: for a folder without captures.
    """
    if path != STDIN and not Path(path).exists() and glob.has_magic(path):
        return sorted(glob.glob(path)) or [path]  # noqa: PTH207 - not every name is a Path
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
            f"{', '.join(CAPTURE_SUFFIXES)}, also with {', '.join(COMPRESSED_SUFFIXES[1:])}; "
            "give a capture file or another folder"
        )
    return found


def by_first_packet(paths: Sequence[str]) -> list[str]:
    """Captures in the order of their first packets' times, as those of a rotating writer follow each other.

    Pipes, what cannot be read and what holds no packet come last.

    Raises:
        UsageError: if standard input is among several: it cannot be looked into beforehand.
    """
    from capture.errors import CaptureError
    from capture.readers import open_capture

    if len(paths) < 2:
        return list(paths)
    if STDIN in paths:
        raise UsageError(
            "standard input cannot be put in order with other captures; give files, or standard input alone"
        )
    first_ns: dict[str, int] = {}
    for path in paths:
        if not Path(path).is_file():  # what is read from a pipe is gone
            continue
        try:
            with open_capture(path, piece_bytes=1 << 16) as reader:
                block = next(reader, None)
                if block is not None:
                    first_ns[path] = int(block.ts_ns[0])
        except CaptureError:
            pass
    return sorted(paths, key=lambda path: (path not in first_ns, first_ns.get(path, 0)))
