"""Put a folder or a file in place at once: write a sibling, flush it to disk, swap names."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from capture.errors import CheckpointError

Result = TypeVar("Result")

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2  # linux/fs.h


def write_folder(target: Path, write: Callable[[Path], Result], *, looks_like: str) -> Result:
    """Let ``write`` fill a new folder beside ``target``, then swap it in; what stood there is removed.

    Args:
        target: the folder to create or replace.
        write: fills the folder it is given; if it raises, nothing has changed.
        looks_like: a file that a non-empty ``target`` must have to be replaced; other folders are left alone.

    Returns:
        What ``write`` returned.

    Raises:
        CheckpointError: if ``target`` is something else, or cannot be written (disk full, no permission).
    """
    place = Path(os.path.realpath(target))  # a link stays; what it points to is replaced
    _refuse_foreign(place, looks_like)
    scratch: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        result = write(scratch)
        scratch.chmod(0o755)
        for path in [*scratch.iterdir(), scratch]:
            _fsync(path)
        _swap(scratch, place)
        _fsync(place.parent)
        return result
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(scratch), str(target))) from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def replace_file(target: Path, data: bytes) -> None:
    """Write a file whole, as :func:`new_file` does."""
    with new_file(target) as file:
        file.write(data)


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name beside ``target``, flushed and renamed to it if the block ends well, else removed.

    A reader sees the old bytes or the new.

    Raises:
        OSError: it cannot be written.
    """
    handle, scratch = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(scratch).unlink()


def _refuse_foreign(target: Path, looks_like: str) -> None:
    if not target.exists() or (target / looks_like).is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise CheckpointError(
            f"{target}: got something that is no checkpoint, expected a new or empty folder; choose another name"
        )


def _swap(scratch: Path, target: Path) -> None:
    """``scratch`` becomes ``target``; what was ``target`` is at ``scratch`` afterwards, if it was not empty."""
    try:
        scratch.rename(target)  # a new or an empty target
    except OSError:
        if not target.is_dir():
            raise
        if not _exchange(scratch, target):
            # No RENAME_EXCHANGE on this filesystem: for a moment there is no target, and a crash in it leaves the old
            # one under the hidden name.
            aside = scratch.with_name(scratch.name + ".old")
            target.rename(aside)
            try:
                scratch.rename(target)
            except OSError:
                aside.rename(target)
                raise
            shutil.rmtree(aside, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step (``renameat2`` of Linux >= 3.15, glibc >= 2.28); False where that does not exist."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
