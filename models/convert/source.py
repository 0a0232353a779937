"""Read weights that somebody else wrote: ``torch.save`` files in a limited process, safetensors here.

The process (:mod:`models.convert.torch_child`) writes safetensors into a folder of ours, which is read with the same
suspicion as a checkpoint's. Whatever the file does to it, the worst is an error that says so.
"""

from __future__ import annotations

import hashlib
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from capture.errors import CheckpointError
from models.bounded_json import read_json
from models.safetensors_header import read_header

if TYPE_CHECKING:
    from torch import Tensor

MAX_SOURCE_BYTES: Final = 4 << 30
CPU_S: Final = 120
WALL_S: Final = 600
"""A disk may be slow; a process that only waits is ended all the same."""
SPARE_BYTES: Final = 512 << 20
"""For the pickle's own values and the reader's buffers."""

MODEL_KEY: Final = "model"
"""Where the published code saves the state dict."""

_CHILD: Final = Path(__file__).with_name("torch_child.py")
_ZIP_MAGIC: Final = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class Source:
    """What a file of weights holds.

    Attributes:
        path: of the file.
        sha256: of the file, 64 hex digits.
        size_bytes: of the file.
        tensors: by the names in the file, on the CPU, dense; values and shapes are not checked.
        dropped: entries beside the model that were left behind: name and type.
    """

    path: Path
    sha256: str
    size_bytes: int
    tensors: dict[str, Tensor]
    dropped: list[dict[str, str]]


def read_source(path: Path) -> Source:
    """The tensors of a ``.pth`` file (a state dict, alone or under ``model``) or of a safetensors file.

    Raises:
        CheckpointError: if it is neither, damaged, too large, or holds anything but tensors and plain values.
    """
    try:
        size_bytes, start = _look_at(path)
        if start.startswith(_ZIP_MAGIC):
            tensors, dropped = _read_torch(path, size_bytes)
        elif start[8:9] == b"{":
            tensors, dropped = _load_safetensors(path), []
        else:
            raise CheckpointError(f"{path}: {_what_else(start)}")
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return Source(path, sha256, size_bytes, tensors, dropped)


def _look_at(path: Path) -> tuple[int, bytes]:
    """Size and first bytes of a regular file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise CheckpointError(f"{path}: got {kind}, expected a file of weights (.pth or .safetensors)")
    if status.st_size > MAX_SOURCE_BYTES:
        raise CheckpointError(
            f"{path}: got {status.st_size} bytes, expected at most {MAX_SOURCE_BYTES}; give the model alone"
        )
    with path.open("rb") as file:
        return status.st_size, file.read(9)


def _what_else(start: bytes) -> str:
    """What a file that is no source looks like, and what to do."""
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return (
            "got a bare pickle, which is never loaded; expected a file of torch.save (1.6 or later) or safetensors; "
            "save the state dict again with torch.save"
        )
    return (
        f"got a file that begins with {start.hex() or 'nothing'}, expected a file of torch.save or safetensors; "
        "name the file of weights"
    )


def _read_torch(path: Path, size_bytes: int) -> tuple[dict[str, Tensor], list[dict[str, str]]]:
    with tempfile.TemporaryDirectory(prefix="netcls-convert-") as name:
        folder = Path(name)
        _run_child(path, folder, SPARE_BYTES + 4 * size_bytes)
        report = read_json(folder / "report.json")
        if "error" in report:
            raise CheckpointError(f"{path}: {report['error']}")
        try:
            return _load_safetensors(folder / "tensors.safetensors"), report["dropped"]
        except CheckpointError as error:
            raise CheckpointError(
                str(error).replace(str(folder / "tensors.safetensors"), str(path))
            ) from None


def _run_child(path: Path, folder: Path, memory_bytes: int) -> None:
    command: list[Any] = [sys.executable, "-P", _CHILD, path.absolute(), folder, CPU_S, memory_bytes]
    said = folder / "said"
    try:
        with said.open("wb") as output:
            done = subprocess.run(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=WALL_S,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{path}: reading it took more than {WALL_S} s; it is damaged or hostile"
        ) from None
    if done.returncode or not (folder / "report.json").is_file():
        with said.open("rb") as output:
            output.seek(max(0, said.stat().st_size - 2000))
            last = (output.read().decode(errors="replace").strip().splitlines() or ["no word"])[-1]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise CheckpointError(
            f"{path}: the process that reads it ended with {how} ({last[:200]}); it is damaged or hostile"
        )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    read_header(path)
    try:
        return load(path.read_bytes())  # not mapped: the folder of a child goes away
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be loaded ({error}); fetch it again") from None
