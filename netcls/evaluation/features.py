"""What the baselines see of a flow: numbers from the headers of its first packets.

Nothing here names a host or a place: no address, IP ID, checksum, sequence number, TTL or absolute
time; ports only in the set that is called after them. F is the number of flows, K the packets looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MISSING = np.float32(np.nan)  # where a flow has no such packet; never equal to a real value

_PER_PACKET = ("ip_len", "payload_len", "log_iat", "tcp_flags", "log_window", "header_len", "tos")


def header_features(
    records: NDArray[Any], packets: NDArray[Any], n_packets: int
) -> tuple[NDArray[np.float32], list[str]]:
    """Header fields, sizes and times of the first packets.

    Args:
        records: ``FLOW_DTYPE`` (F,).
        packets: ``PACKET_DTYPE`` (F, >= K).
        n_packets: K.

    Returns:
        float32 (F, 2 + 7 K) and the columns' names: protocol, IP version, and of each packet the IP length and
        payload length in bytes (negative to the client), log(1 + microseconds since the packet before), TCP
        flags, log(1 + window), header length in bytes, TOS byte. NaN where there is no packet.
    """
    first = packets[:, :n_packets]
    sign = np.where(first["direction"] == 0, 1, -1).astype(np.float32)
    columns = np.stack(
        [
            first["ip_len"] * sign,
            first["payload_len"] * sign,
            _log_iat(first["ts_ns"]),
            first["tcp_flags"],
            np.log1p(first["tcp_window"]),
            first["header_len"],
            first["tos"],
        ],
        axis=2,
    ).astype(np.float32)
    columns[~_present(records, n_packets)] = MISSING
    flat = columns.reshape(len(records), n_packets * len(_PER_PACKET))
    fixed = np.stack([records["protocol"], records["ip_version"]], axis=1).astype(np.float32)
    names = ["protocol", "ip_version"]
    names += [f"{name}_{packet}" for packet in range(n_packets) for name in _PER_PACKET]
    return np.concatenate([fixed, flat], axis=1), names


def size_features(
    records: NDArray[Any], packets: NDArray[Any], n_packets: int
) -> tuple[NDArray[np.float32], list[str]]:
    """IP lengths of the first packets alone, in bytes, negative to the client: float32 (F, K)."""
    first = packets[:, :n_packets]
    sizes = np.where(first["direction"] == 0, 1, -1) * first["ip_len"].astype(np.float32)
    sizes = sizes.astype(np.float32)
    sizes[~_present(records, n_packets)] = MISSING
    return sizes, [f"ip_len_{packet}" for packet in range(n_packets)]


def port_features(records: NDArray[Any]) -> tuple[NDArray[np.float32], list[str]]:
    """Protocol and ports alone (ICMP: type and code): float32 (F, 4), what a port table could know."""
    low = np.minimum(records["client_port"], records["server_port"])
    columns = [records["protocol"], records["server_port"], records["client_port"], low]
    names = ["protocol", "server_port", "client_port", "lower_port"]
    return np.stack(columns, axis=1).astype(np.float32), names


def _present(records: NDArray[Any], n_packets: int) -> NDArray[np.bool_]:
    return np.arange(n_packets)[None, :] < records["n_kept"][:, None]


def _log_iat(ts_ns: NDArray[np.int64]) -> NDArray[np.float64]:
    """log(1 + microseconds) since the packet before; 0 for the first packet and where time runs backwards."""
    gap_us = np.zeros(ts_ns.shape)
    gap_us[:, 1:] = np.maximum(np.diff(ts_ns, axis=1), 0) / 1e3
    return np.log1p(gap_us)
