"""Columns for the probe: what each header field says of a flow, one group of columns a field.

F is the number of flows. A missing value is ``MISSING``, outside every real one. Fields of kind ``identity`` name a
place, a host or a capture and are hidden from models by default; those of kind ``behaviour`` are what the traffic does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from netcls.evaluation.features import header_features, port_features, size_features

Kind = Literal["identity", "behaviour"]

MISSING: Final = np.float32(-1)
N_PACKETS: Final = 20  # packets whose sizes, times and flags are looked at
PAYLOAD_COLUMNS: Final = 48  # first payload bytes of each packet with kept bytes

_TIMESTAMPS_OPTION: Final = 8  # RFC 7323, 3.2
_TCP: Final = 6
_DAY_NS: Final = 86_400_000_000_000


@dataclass(frozen=True, slots=True)
class FieldColumns:
    """One field, or several that belong together.

    Attributes:
        name: of the field, stable; ``ttl``, ``source_port``, ...
        kind: whether it names a place or describes the traffic.
        columns: float32 (F, any).
        is_per_capture: it differs from capture to capture by its nature (clocks, counters, addresses), so that
            it tells captures apart in sound data too.
    """

    name: str
    kind: Kind
    columns: NDArray[np.float32]
    is_per_capture: bool = False


def field_columns(
    records: NDArray[Any], packets: NDArray[Any], data: NDArray[np.uint8], header_bytes: int
) -> list[FieldColumns]:
    """Every field that the probe looks at.

    Args:
        records: ``FLOW_DTYPE`` (F,).
        packets: ``PACKET_DTYPE`` (F, K).
        data: uint8 (F, M, bytes), header and payload of the first packets with nothing hidden.
        header_bytes: how many of a packet's bytes are header.
    """
    ports, _ = port_features(records)
    sizes, _ = size_features(records, packets, N_PACKETS)
    first_s = records["first_ts_ns"].astype(np.float64) / 1e9
    headers = data[:, :, :header_bytes]
    return [
        FieldColumns("source_address", "identity", records["client"].astype(np.float32), True),
        FieldColumns("destination_address", "identity", records["server"].astype(np.float32), True),
        FieldColumns("source_port", "identity", ports[:, 2:3]),
        FieldColumns("destination_port", "identity", ports[:, 1:2]),
        FieldColumns("ttl", "identity", _first_each_way(records, packets, "ttl")),
        FieldColumns("vlan", "identity", records["vlan"].astype(np.float32)),
        FieldColumns("ip_id", "identity", _ip_ids(records, headers), True),
        FieldColumns("seq_ack", "identity", _first_each_way(records, packets, "tcp_seq"), True),
        FieldColumns("tcp_timestamps", "identity", _tcp_timestamps(records, packets, headers), True),
        # Seconds since the earliest flow: float32 could not hold seconds since the epoch.
        FieldColumns("clock", "identity", _column(first_s - first_s.min(initial=np.inf)), True),
        FieldColumns("time_of_day", "identity", _time_of_day(records["first_ts_ns"]), True),
        FieldColumns("protocol", "behaviour", _stacked(records, "protocol", "ip_version")),
        FieldColumns("sizes", "behaviour", _filled(sizes)),
        FieldColumns("timing", "behaviour", _per_packet(records, packets, "log_iat")),
        FieldColumns("flags", "behaviour", _per_packet(records, packets, "tcp_flags")),
        FieldColumns("window", "behaviour", _per_packet(records, packets, "log_window")),
        FieldColumns("tos", "behaviour", _per_packet(records, packets, "tos")),
        FieldColumns("payload", "behaviour", _payload(data[:, :, header_bytes:])),
    ]


def host_column(host: NDArray[np.int64]) -> FieldColumns:
    """The captured host, where the labels' table names it: its number, float32 (F, 1)."""
    return FieldColumns("host", "identity", _column(host), True)


def usable_columns(records: NDArray[Any], packets: NDArray[Any]) -> NDArray[np.float32]:
    """Header fields, sizes and times without anything of kind ``identity``: float32 (F, any)."""
    return _filled(header_features(records, packets, N_PACKETS)[0])


def _per_packet(records: NDArray[Any], packets: NDArray[Any], name: str) -> NDArray[np.float32]:
    columns, names = header_features(records, packets, N_PACKETS)
    chosen = [number for number, column in enumerate(names) if column.rpartition("_")[0] == name]
    return _filled(columns[:, chosen])


def _filled(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.nan_to_num(columns, nan=-1e6).astype(np.float32)


def _column(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32)[:, None]


def _time_of_day(first_ts_ns: NDArray[np.int64]) -> NDArray[np.float32]:
    """Seconds since midnight UTC, float32 (F, 1); all 0 within one day, where the clock says the same."""
    within = first_ts_ns % _DAY_NS
    if not len(first_ts_ns) or int(first_ts_ns.max() - first_ts_ns.min()) < _DAY_NS:
        within = np.zeros_like(first_ts_ns)
    return _column(within / 1e9)


def _stacked(records: NDArray[Any], *names: str) -> NDArray[np.float32]:
    return np.stack([records[name] for name in names], axis=1).astype(np.float32)


def _first_each_way(records: NDArray[Any], packets: NDArray[Any], name: str) -> NDArray[np.float32]:
    """A packet field of the first packet to the server and of the first to the client: float32 (F, 2)."""
    present = np.arange(packets.shape[1])[None, :] < records["n_kept"][:, None]
    out = np.full((len(records), 2), MISSING, np.float32)
    for way in (0, 1):
        there = present & (packets["direction"] == way)
        rows = np.flatnonzero(there.any(axis=1))
        out[rows, way] = packets[name][rows, there[rows].argmax(axis=1)]
    return out


def _ip_ids(records: NDArray[Any], headers: NDArray[np.uint8]) -> NDArray[np.float32]:
    """IPv4 identification (RFC 791, 3.1) or IPv6 flow label (RFC 8200, 3) of the first packets: (F, M)."""
    wide = headers.astype(np.int64)
    v4 = (wide[:, :, 4] << 8) | wide[:, :, 5]
    v6 = ((wide[:, :, 1] & 15) << 16) | (wide[:, :, 2] << 8) | wide[:, :, 3]
    ids = np.where(records["ip_version"][:, None] == 4, v4, v6)
    ids[np.arange(headers.shape[1])[None, :] >= records["n_kept"][:, None]] = int(MISSING)
    return ids.astype(np.float32)


def _tcp_timestamps(
    records: NDArray[Any], packets: NDArray[Any], headers: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """TSval of the first packet of each direction that has one (RFC 7323, 3.2): float32 (F, 2)."""
    out = np.full((len(records), 2), MISSING, np.float32)
    for flow in np.flatnonzero(records["protocol"] == _TCP):
        for packet in range(min(headers.shape[1], int(records["n_kept"][flow]))):
            way = int(packets["direction"][flow, packet])
            value = _timestamp(headers[flow, packet].tobytes(), int(packets["l4_offset"][flow, packet]))
            if out[flow, way] == MISSING and value is not None:
                out[flow, way] = value
    return out


def _timestamp(header: bytes, l4_offset: int) -> int | None:
    """TSval of one TCP header; None where it has none, or it lies behind the kept bytes."""
    if l4_offset + 20 > len(header):
        return None
    end = min(len(header), l4_offset + (header[l4_offset + 12] >> 4) * 4)
    at = l4_offset + 20
    while at < end and header[at] != 0:
        if header[at] == 1:
            at += 1
            continue
        if at + 1 >= end or header[at + 1] < 2:
            return None
        if header[at] == _TIMESTAMPS_OPTION and at + 6 <= end:
            return int.from_bytes(header[at + 2 : at + 6], "big")
        at += header[at + 1]
    return None


def _payload(payload: NDArray[np.uint8]) -> NDArray[np.float32]:
    return payload[:, :, :PAYLOAD_COLUMNS].reshape(len(payload), -1).astype(np.float32)
