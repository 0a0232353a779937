"""The slow twin of `netcls.datasets.labels.match_flows`: one flow at a time.

A row matches a flow when both have the same five-tuple, in either direction, and their times
overlap within a tolerance. Of several rows the longest overlap wins. VLAN ids are not compared:
tables rarely have them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from netcls.datasets.labels import CONTRADICTORY, DROPPED, UNLABELLED

_ICMP: Final = (1, 58)
_ECHO: Final = (0, 8, 128, 129)  # types of echo and echo reply, v4 and v6


def match_flows(
    records: NDArray[Any], rows: NDArray[Any], tolerance_s: float = 1.0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Labels, groups, and which rows matched."""
    tolerance_ns = round(tolerance_s * 1e9)
    labels = np.full(len(records), UNLABELLED, np.int64)
    groups = np.full(len(records), -1, np.int64)
    matched = np.zeros(len(rows), bool)
    index = _RowIndex(rows)
    keys = _keys(
        records["client"], records["client_port"], records["server"], records["server_port"], records
    )
    no_ports = np.zeros(len(records), np.uint16)
    hosts = _keys(records["client"], no_ports, records["server"], no_ports, records)
    for flow in range(len(records)):
        candidates = index.exact.get(keys[flow])
        if candidates is None and records["protocol"][flow] in _ICMP:
            if records["client_port"][flow] in _ECHO:
                candidates = index.echo.get(hosts[flow])
            if candidates is None:
                candidates = index.exact.get(hosts[flow])
        if candidates is None:
            continue
        overlap_ns = np.minimum(rows["last_ts_ns"][candidates], records["last_ts_ns"][flow]) - np.maximum(
            rows["first_ts_ns"][candidates], records["first_ts_ns"][flow]
        )
        near = overlap_ns >= -tolerance_ns
        if not near.any():
            continue
        matched[candidates[near]] = True
        labels[flow], groups[flow] = _choose(rows[candidates[near]], overlap_ns[near])
    return labels, groups, matched


def _choose(rows: NDArray[Any], overlap_ns: NDArray[np.int64]) -> tuple[int, int]:
    """Label and group of the best of the rows that overlap one flow."""
    best = int(np.argmax(overlap_ns))
    label = int(rows["label"][best])
    longest = int(overlap_ns[best])
    # Where nothing but the tolerance joins flow and row, every other row is as good.
    enough_ns = longest / 2 if longest >= 0 else -np.inf
    if np.any((rows["label"] != label) & (overlap_ns >= enough_ns)):
        return CONTRADICTORY, -1
    return (DROPPED, -1) if label < 0 else (label, int(rows["group"][best]))


class _RowIndex:
    """Row numbers by key: ``exact`` by five-tuple, ``echo`` by hosts for rows with an echo identifier as ports."""

    def __init__(self, rows: NDArray[Any]) -> None:
        no_ports = np.zeros(len(rows), np.uint16)
        hosts = _keys(rows["src"], no_ports, rows["dst"], no_ports, rows)
        keys = _keys(rows["src"], rows["src_port"], rows["dst"], rows["dst_port"], rows)
        is_echo = (
            np.isin(rows["protocol"], _ICMP) & (rows["src_port"] == rows["dst_port"]) & (rows["src_port"] > 0)
        )
        self.exact = _numbers_by_key(keys, np.arange(len(rows)))
        self.echo = _numbers_by_key(hosts, np.flatnonzero(is_echo))


def _numbers_by_key(keys: list[bytes], numbers: NDArray[np.intp]) -> dict[bytes, NDArray[np.int64]]:
    lists: dict[bytes, list[int]] = {}
    for number in numbers.tolist():
        lists.setdefault(keys[number], []).append(number)
    return {key: np.array(of_key, np.int64) for key, of_key in lists.items()}


def _keys(
    a: NDArray[np.uint8],
    a_port: NDArray[np.uint16],
    b: NDArray[np.uint8],
    b_port: NDArray[np.uint16],
    rows: NDArray[Any],
) -> list[bytes]:
    """37-byte keys, equal for both directions of a five-tuple."""
    ends = np.empty((2, len(rows), 18), np.uint8)
    for end, address, port in ((0, a, a_port), (1, b, b_port)):
        ends[end, :, :16] = address
        ends[end, :, 16] = port >> 8
        ends[end, :, 17] = port & 0xFF
    first = [row.tobytes() for row in ends[0]]
    second = [row.tobytes() for row in ends[1]]
    protocol = [bytes((int(number),)) for number in rows["protocol"]]
    return [min(x, y) + max(x, y) + p for x, y, p in zip(first, second, protocol, strict=True)]
