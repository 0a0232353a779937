"""Flows that another part of a split holds already: the same model input, or the same dialogue of sizes.

N is the number of flows. Hashes are those of `netcls.datasets.shard.FlowHashes`; 0 stands for "compared with nothing".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from netcls.datasets.splits import LEFT_OUT, PARTS

DropRepeats = Literal["none", "exact", "near"]
KINDS: Final = get_args(DropRepeats)

_SORTED_AT_ONCE: Final = 1 << 22  # flows; about 40 bytes of each are held while they are sorted
_LOOKED_AT_ONCE: Final = 1 << 20

NO_REPEAT: Final = 0
EXACT: Final = 1
NEAR: Final = 2


def find_repeats(
    part: NDArray[np.int8], input_hash: NDArray[np.uint64], shape_hash: NDArray[np.uint64]
) -> NDArray[np.int8]:
    """Which flows an earlier part has already; parts in order: train, validation, calibration, test.

    Args:
        part: int8 (N,).
        input_hash: uint64 (N,), equal where the default model input is.
        shape_hash: uint64 (N,), equal where protocol and signed payload sizes are. Both may be mapped from a file; they
            are read from beginning to end once for every four million flows.

    Returns:
        int8 (N,): ``EXACT`` where the input is in an earlier part, else ``NEAR`` where the shape is, else 0.
    """
    repeats = np.zeros(len(part), np.int8)
    for hashes, kind in ((shape_hash, NEAR), (input_hash, EXACT)):
        for rows in _in_earlier_part(part, hashes):
            repeats[rows] = kind
    return repeats


def drop_repeats(part: NDArray[np.int8], repeats: NDArray[np.int8], which: DropRepeats) -> None:
    """Leave the repeats out of their part; ``part`` is changed."""
    if which != "none":
        part[(repeats == EXACT) | ((which == "near") & (repeats == NEAR))] = LEFT_OUT


def repeat_facts(part: NDArray[np.int8], repeats: NDArray[np.int8]) -> dict[str, Any]:
    """How many repeats each part but the first has, as JSON values; counted before any is dropped."""
    return {
        name: {
            "flows": int(np.count_nonzero(part == number)),
            "exact": int(np.count_nonzero((part == number) & (repeats == EXACT))),
            "near": int(np.count_nonzero((part == number) & (repeats == NEAR))),
        }
        for number, name in enumerate(PARTS)
        if number
    }


def _in_earlier_part(part: NDArray[np.int8], hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.intp]]:
    """Rows whose hash an earlier part has, some at a time: equal hashes share their first bits."""
    bits = max(0, (len(part) // _SORTED_AT_ONCE).bit_length())
    for first_bits in range(1 << bits):
        rows = _rows_beginning(part, hashes, bits, first_bits)
        those = hashes[rows]
        order = np.lexsort((part[rows], those))
        rows, ordered = rows[order], those[order]
        starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] ^ np.uint64(1)))
        lengths = np.diff(np.append(starts, len(rows)))
        earliest = np.repeat(part[rows[starts]], lengths)
        yield rows[part[rows] > earliest]


def _rows_beginning(
    part: NDArray[np.int8], hashes: NDArray[np.uint64], bits: int, first_bits: int
) -> NDArray[np.intp]:
    """Rows in any part whose hash is not 0 and begins with ``first_bits``, a number of ``bits`` bits."""
    found = []
    for start in range(0, len(part), _LOOKED_AT_ONCE):
        some = hashes[start : start + _LOOKED_AT_ONCE]
        is_one = (some != 0) & (part[start : start + _LOOKED_AT_ONCE] >= 0)
        if bits:
            is_one &= some >> np.uint64(64 - bits) == first_bits
        found.append(start + np.flatnonzero(is_one))
    return np.concatenate(found) if found else np.empty(0, np.intp)
