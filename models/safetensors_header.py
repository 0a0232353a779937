"""Read the header of a safetensors file without trusting it, and without torch.

The format: 8 bytes little-endian header length N, N bytes of JSON ``{name: {dtype, shape, data_offsets}}``, then the
tensors' bytes, row-major. Everything the header claims is checked against the size of the file before a tensor is
touched: a pickle under this name, a length of 2^63, overlapping or missing bytes are refused by name.

Source: https://huggingface.co/docs/safetensors (format).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capture.errors import CheckpointError
from models.bounded_json import parse_json

MAX_HEADER_BYTES: Final = 4 << 20  # netFound large has 600 tensors and 80 KB of header
MAX_DIMENSIONS: Final = 8
MAX_TENSOR_NAME: Final = 200

ITEM_BYTES: Final = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What a safetensors header says of one tensor.

    Attributes:
        dtype: safetensors' name of it, for example ``F32``.
        shape: may be empty (a scalar).
        begin: first byte of its data, counted from the end of the header.
        end: one past its last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def n_items(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors that a safetensors file holds, by name, in the order of their bytes.

    Raises:
        CheckpointError: if the file is not safetensors, or its header and its size contradict each other.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        _refuse_other_formats(path, start)
        (header_bytes,) = struct.unpack("<Q", start[:8])
        if header_bytes > MAX_HEADER_BYTES or 8 + header_bytes > size_bytes:
            raise CheckpointError(
                f"{path}: got a header length of {header_bytes} bytes in a file of {size_bytes}, expected at most "
                f"{min(MAX_HEADER_BYTES, size_bytes - 8)}; the file is damaged, fetch it again"
            )
        text = start[8:] + file.read(header_bytes - 1)
    header = parse_json(text, str(path))
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{path}: got a header that is no JSON object; the file is damaged, fetch it again"
        )
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, value) for name, value in header.items()}
    return _in_order(path, entries, size_bytes - 8 - header_bytes)


def _refuse_other_formats(path: Path, start: bytes) -> None:
    """A safetensors file has '{' at byte 8; say what else it looks like before anything is parsed."""
    if len(start) == 9 and start[8:] == b"{":
        return
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        got = "a pickle (a torch.save file?)"
    else:
        got = f"a file that begins with {start[:8].hex() or 'nothing'}"
    raise CheckpointError(
        f"{path}: got {got}, expected safetensors; pickles are never loaded; save the weights as safetensors"
    )


def _entry(path: Path, name: str, value: Any) -> TensorEntry:
    """One header value, checked by itself."""
    where = f"{path}: tensor {name[:MAX_TENSOR_NAME]!r}"
    if len(name) > MAX_TENSOR_NAME:
        raise CheckpointError(
            f"{where}: got a name of {len(name)} characters, expected at most {MAX_TENSOR_NAME}"
        )
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{where}: expected dtype, shape and data_offsets; the file is damaged, fetch it again"
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(
            f"{where}: got dtype {str(dtype)[:40]!r}, expected one of {', '.join(ITEM_BYTES)}"
        )
    if not _is_list_of_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(
            f"{where}: got no usable shape, expected at most {MAX_DIMENSIONS} sizes of 0 or more"
        )
    if not _is_list_of_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: got no usable data_offsets, expected two byte positions")
    entry = TensorEntry(dtype, tuple(shape), *offsets)
    expected_bytes = entry.n_items * ITEM_BYTES[dtype]
    if entry.end - entry.begin != expected_bytes:
        raise CheckpointError(
            f"{where}: got {entry.end - entry.begin} bytes, expected {expected_bytes} for {dtype} {list(shape)}; "
            "the file is damaged, fetch it again"
        )
    return entry


def _is_list_of_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _in_order(path: Path, entries: dict[str, TensorEntry], data_bytes: int) -> dict[str, TensorEntry]:
    """The entries by position; they must cover the data once, without gap or overlap."""
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    position = 0
    for name, entry in ordered.items():
        if entry.begin != position:
            raise CheckpointError(
                f"{path}: tensor {name!r}: got data from byte {entry.begin}, expected byte {position} (no gap, no "
                "overlap); the file is damaged, fetch it again"
            )
        position = entry.end
    if position != data_bytes:
        raise CheckpointError(
            f"{path}: got {data_bytes} bytes of tensor data, expected {position} as the header says; "
            "the file is cut off or damaged, fetch it again"
        )
    return ordered
