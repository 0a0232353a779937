"""NetMamba+ written a second time, slowly: its sequences packet by packet, its networks in float64 numpy.

Imports nothing from ``capture`` or ``models``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

LARGEST = 1500


def sequences(
    packets: Sequence[tuple[int, int, int]], n: int, signed: bool
) -> tuple[list[int], list[float], list[bool], list[bool]]:
    """Sizes, times, and which of each are there, of one flow's first ``n`` packets.

    ``packets`` has (time in ns, IP length, direction) of each, in the order in which they came.
    """
    sizes, iats, sizes_present, iats_present = [], [], [], []
    for k in range(n):
        if k >= len(packets):
            sizes.append((2 * LARGEST if signed else LARGEST) + 1)
            iats.append(0.0)
            sizes_present.append(False)
            iats_present.append(False)
            continue
        ts_ns, size, direction = packets[k]
        shown = min(size, LARGEST)
        if signed:
            shown = LARGEST - shown if direction == 1 else LARGEST + shown
        sizes.append(shown)
        sizes_present.append(True)
        iats_present.append(k > 0)
        gap_ns = max(ts_ns - packets[k - 1][0], 0) if k > 0 else 0
        iats.append(1 + math.log2(1 + gap_ns) if k > 0 else 0.0)
    return sizes, iats, sizes_present, iats_present


def published_sequences(
    packets: Sequence[tuple[int, int, int]], n: int, signed: bool
) -> tuple[list[int], list[float]]:
    """Sizes and times as the published code makes them; ``packets`` with frame lengths.

    Its sizes are shifted and then cut to the legal range, which the padding's number is just outside of.
    """
    shift = LARGEST if signed else 0
    raw = [(-size if signed and direction == 1 else size) for _, size, direction in packets[:n]]
    raw += [LARGEST + 1] * (n - len(raw))
    sizes = [min(max(size + shift, 0), LARGEST + shift) for size in raw]
    times: list[float] = []
    for k in range(n):
        if k >= len(packets):
            times.append(math.inf)
        else:
            times.append(round(max(packets[k][0] - packets[k - 1][0], 0) / 1e9, 6) if k > 0 else 0.0)
    return sizes, [1 / (1 + 1 / (1 + seconds)) for seconds in times]


def rows_of(packets: Any, n_kept: int, size: str) -> list[tuple[int, int, int]]:
    """The kept rows of a ``PACKET_DTYPE`` array as (time, ``size``, direction)."""
    return [(int(row["ts_ns"]), int(row[size]), int(row["direction"])) for row in packets[:n_kept]]
