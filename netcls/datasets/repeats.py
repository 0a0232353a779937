"""Flows that another part of a split holds already: the same model input, or the same dialogue of sizes.

N is the number of flows. Hashes are those of `netcls.datasets.shard.FlowHashes`; 0 stands for "compared with nothing".
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from netcls.datasets.splits import LEFT_OUT, PARTS

DropRepeats = Literal["none", "exact", "near"]
KINDS: Final = get_args(DropRepeats)

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
        shape_hash: uint64 (N,), equal where protocol and signed payload sizes are.

    Returns:
        int8 (N,): ``EXACT`` where the input is in an earlier part, else ``NEAR`` where the shape is, else 0.
    """
    repeats = np.zeros(len(part), np.int8)
    repeats[_in_earlier_part(part, shape_hash)] = NEAR
    repeats[_in_earlier_part(part, input_hash)] = EXACT
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


def _in_earlier_part(part: NDArray[np.int8], hashes: NDArray[np.uint64]) -> NDArray[np.intp]:
    rows = np.flatnonzero((hashes != 0) & (part >= 0))
    order = rows[np.lexsort((part[rows], hashes[rows]))]
    ordered = hashes[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] ^ np.uint64(1)))
    lengths = np.diff(np.append(starts, len(order)))
    earliest = np.repeat(part[order[starts]], lengths)
    return order[part[order] > earliest]
