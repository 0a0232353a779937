"""Packets as rows: what the flow update reads of a packet, with its key and hash, in two cache lines.

The update jumps from flow to flow; with the packet's 23 columns in one row, a packet costs it two lines,
and one array is handed about instead of 23.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from capture.flow_key import ICMP, ICMP_COUNTERPART, ICMPV6, ICMPV6_COUNTERPART
from capture.kernels.siphash import siphash_id, siphash_key

# `low`, `high`: addresses as they lie in memory (network order), two words each.
# `rest`: low port, high port (u2), protocol, IP version (u1), outer VLAN (u2), lowest byte first.
# These, `inner_vlan` and `path` are the key, and `tunnel_id` in a tunnel whose directions have ids of their own.
# The other fields are those of the blocks; protocol and IP version are in `rest` (`protocol_of`, `ip_version_of`).
# Where `path` is 0 the `tunnel_*` fields are not written.
ROW_DTYPE: Final = np.dtype(
    {
        "names": [
            *("low", "high", "rest", "path", "tag", "inner_vlan", "swapped", "is_decoded", "ts_ns", "offset"),
            *(
                "wire_len",
                "ip_len",
                "payload_len",
                "captured_len",
                "l3_offset",
                "l4_offset",
                "payload_offset",
            ),
            *("tcp_seq", "tcp_ack", "tunnel_id", "tcp_window", "src_port", "dst_port", "vlan"),
            *("ttl", "tos", "tcp_flags", "flags", "tunnel_kind", "tunnel_depth"),
        ],
        "formats": [
            *(("<u8", (2,)), ("<u8", (2,)), "<u8", "<u8", "<u4", "<u2", "u1", "u1", "<i8", "<i8"),
            *("<u4", "<u4", "<u4", "<u4", "<u4", "<u4", "<u4"),
            *("<u4", "<u4", "<u4", "<u2", "<u2", "<u2", ("<u2", (2,))),
            *("u1", "u1", "u1", "u1", "u1", "u1"),
        ],
        "itemsize": 128,
    }
)

_BYTES = np.uint64(0x00FF00FF00FF00FF)
_PAIRS = np.uint64(0x0000FFFF0000FFFF)


@njit(cache=True, nogil=True)
def protocol_of(packet):  # type: ignore[no-untyped-def]
    """IP protocol number of a row."""
    return np.int64(packet.rest >> np.uint64(32)) & 0xFF


@njit(cache=True, nogil=True)
def ip_version_of(packet):  # type: ignore[no-untyped-def]
    """4 or 6."""
    return np.int64(packet.rest >> np.uint64(40)) & 0xFF


@njit(cache=True, nogil=True)
def _network_order(word):  # type: ignore[no-untyped-def]
    """The word whose numeric order is the order of its bytes in memory; LLVM makes one bswap of it."""
    word = ((word >> np.uint64(8)) & _BYTES) | ((word & _BYTES) << np.uint64(8))
    word = ((word >> np.uint64(16)) & _PAIRS) | ((word & _PAIRS) << np.uint64(16))
    return (word >> np.uint64(32)) | (word << np.uint64(32))


@njit(cache=True, nogil=True)
def _is_after(a0, a1, a_port, b0, b1, b_port):  # type: ignore[no-untyped-def]
    """True if endpoint a is the higher one."""
    if a0 != b0:
        return _network_order(a0) > _network_order(b0)
    if a1 != b1:
        return _network_order(a1) > _network_order(b1)
    return a_port > b_port


@njit(cache=True, nogil=True)
def _counterpart(protocol, kind):  # type: ignore[no-untyped-def]
    """The ICMP type that answers ``kind``, negative if none does."""
    return np.int64(ICMP_COUNTERPART[kind]) if protocol == ICMP else np.int64(ICMPV6_COUNTERPART[kind])


@njit(cache=True, nogil=True)
def pack_packets(  # type: ignore[no-untyped-def]
    packets, decoded, src, dst, use_vlan, k0, k1, rows
):
    """Fill ``rows`` (ROW_DTYPE (n,)); of a rejected packet only ``is_decoded``.

    Args:
        packets: (ts_ns, offset, wire_len, captured_len), columns of a PacketBlock.
        decoded: columns of a DecodedBlock in the order in which they are taken apart below.
        src: uint64 (n, 2), a view of the address bytes; ``dst`` likewise.
        dst: see ``src``.
        use_vlan: whether VLANs are part of the key.
        k0: first half of the hash key, uint64; ``k1`` the second.
        k1: see ``k0``.
        rows: where to.
    """
    ts_ns, offset, wire_len, captured_len = packets
    reject, ip_version, protocol, vlan, src_port, dst_port, l3_offset, l4_offset, payload_offset = decoded[:9]
    ip_len, payload_len, ttl, tos, tcp_flags, tcp_window, tcp_seq, tcp_ack, flags = decoded[9:18]
    tunnel_kind, tunnel_depth, tunnel_id, tunnel_path = decoded[18:]
    for i in range(rows.size):
        row = rows[i]
        row.is_decoded = reject[i] == 0
        if reject[i] != 0:
            continue
        from_port = np.int64(src_port[i])
        to_port = np.int64(dst_port[i])
        one_way = False
        if protocol[i] == ICMP or protocol[i] == ICMPV6:
            counterpart = _counterpart(protocol[i], from_port & 0xFF)
            one_way = counterpart < 0
            if not one_way:
                to_port = counterpart
        a0, a1, b0, b1 = src[i, 0], src[i, 1], dst[i, 0], dst[i, 1]
        swapped = not one_way and _is_after(a0, a1, from_port, b0, b1, to_port)
        if swapped:
            a0, a1, b0, b1 = b0, b1, a0, a1
            from_port, to_port = to_port, from_port
        rest = from_port | (to_port << 16) | (np.int64(protocol[i]) << 32) | (np.int64(ip_version[i]) << 40)
        inner_vlan = np.int64(0)
        if use_vlan:
            rest |= np.int64(vlan[i, 0]) << 48
            inner_vlan = np.int64(vlan[i, 1])
        row.low[0], row.low[1], row.high[0], row.high[1] = a0, a1, b0, b1
        row.rest = np.uint64(rest)
        row.inner_vlan = inner_vlan
        row.swapped = swapped
        path = tunnel_path[i]
        row.path = path
        if path == 0:
            digest = siphash_key(k0, k1, a0, a1, b0, b1, np.uint64(rest), np.uint64(inner_vlan))
        else:
            row.tunnel_id = tunnel_id[i]
            row.tunnel_kind = tunnel_kind[i]
            row.tunnel_depth = tunnel_depth[i]
            digest = siphash_id(k0, k1, a0, a1, b0, b1, np.uint64(rest), path, np.uint64(inner_vlan))
        row.tag = np.uint32(digest)
        row.ts_ns = ts_ns[i]
        row.offset = offset[i]
        row.wire_len = wire_len[i]
        row.captured_len = captured_len[i]
        row.ip_len = ip_len[i]
        row.payload_len = payload_len[i]
        row.l3_offset = l3_offset[i]
        row.l4_offset = l4_offset[i]
        row.payload_offset = payload_offset[i]
        row.tcp_seq = tcp_seq[i]
        row.tcp_ack = tcp_ack[i]
        row.tcp_window = tcp_window[i]
        row.src_port = src_port[i]
        row.dst_port = dst_port[i]
        row.vlan[0] = vlan[i, 0]
        row.vlan[1] = vlan[i, 1]
        row.ttl = ttl[i]
        row.tos = tos[i]
        row.tcp_flags = tcp_flags[i]
        row.flags = flags[i]
