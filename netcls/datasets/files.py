"""Files that are whole or not there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from capture.errors import DataError
from models.atomic_write import new_file


@contextmanager
def write_then_rename(path: Path) -> Iterator[BinaryIO]:
    """A binary file under a temporary name beside ``path``, renamed to it when the block ends well, else removed.

    Folders above ``path`` are made.

    Raises:
        DataError: it cannot be written, for example because the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as file:
            yield file
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose another place"
        ) from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
