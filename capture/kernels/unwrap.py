"""The packets that ``decode_block`` leaves open: other link layers, tunnels, fragments.

``find_wrapped`` picks them (1 to 2 ns a packet), ``unwrap_rows`` decodes them again from their first byte, one header
after the other, and writes one ``UNWRAPPED_DTYPE`` record each. What is inside a tunnel replaces what is outside of it
only when all of its headers are right; else the packet stays with the outside, and ``tunnel_stop`` says why.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from capture import block as blocks
from capture.kernels import fragments as table_of
from capture.kernels import link_layers as links
from capture.kernels.decode import (
    MAX_EXTENSIONS,
    _ip_lengths,
    _is_extension,
    _transport_lengths,
    _u8,
    _u16,
    _u32,
)
from capture.kernels.helper import helper
from capture.kernels.tunnel_headers import EITHER_PORT, ip_tunnel, udp_tunnel
from capture.reject import Reject
from capture.tunnel import MAX_TUNNELS, TunnelKind, is_directional, mix

_DECODED: Final = int(Reject.DECODED)
_UNKNOWN_LINK_TYPE: Final = int(Reject.UNKNOWN_LINK_TYPE)
_TRUNCATED_VLAN: Final = int(Reject.TRUNCATED_VLAN)
_VLAN_TOO_DEEP: Final = int(Reject.VLAN_TOO_DEEP)
_BAD_IP_TOTAL_LENGTH: Final = int(Reject.BAD_IP_TOTAL_LENGTH)
_TRUNCATED_EXTENSION: Final = int(Reject.TRUNCATED_EXTENSION)
_EXTENSION_TOO_DEEP: Final = int(Reject.EXTENSION_TOO_DEEP)
_TRUNCATED_TRANSPORT: Final = int(Reject.TRUNCATED_TRANSPORT)
_BAD_TCP_OFFSET: Final = int(Reject.BAD_TCP_OFFSET)
_LINK_TOO_DEEP: Final = int(Reject.LINK_TOO_DEEP)
_TUNNEL_TOO_DEEP: Final = int(Reject.TUNNEL_TOO_DEEP)
_FRAGMENT_OVERLAP: Final = int(Reject.FRAGMENT_OVERLAP)
_FRAGMENT_TOO_LONG: Final = int(Reject.FRAGMENT_TOO_LONG)
_TOO_MANY_FRAGMENTS: Final = int(Reject.TOO_MANY_FRAGMENTS)
_BAD_IP_CHECKSUM: Final = int(Reject.BAD_IP_CHECKSUM)
_NOT_IP: Final = int(Reject.NOT_IP)
_LATER_FRAGMENT: Final = int(Reject.LATER_FRAGMENT)
_NO_NEXT_HEADER: Final = int(Reject.NO_NEXT_HEADER)
_TRUNCATED: Final = blocks.PACKET_TRUNCATED
_FRAGMENT: Final = blocks.PACKET_FRAGMENT
_PPPOE: Final = int(TunnelKind.PPPOE)
_GRE: Final = int(TunnelKind.GRE)
_ERSPAN: Final = int(TunnelKind.ERSPAN)
_TEREDO: Final = int(TunnelKind.TEREDO)
_VXLAN: Final = int(TunnelKind.VXLAN)
_VXLAN_GPE: Final = int(TunnelKind.VXLAN_GPE)
_GENEVE: Final = int(TunnelKind.GENEVE)
_NVGRE: Final = int(TunnelKind.NVGRE)

_TCP: Final = 6
_UDP: Final = 17
_SCTP: Final = 132
_ICMP: Final = 1
_ICMPV6: Final = 58
_FRAGMENT_HEADER: Final = 44
_AH: Final = 51
_NO_NEXT: Final = 59
_MAX_DATAGRAM: Final = 65_535

# A row of the decoded block; names as there, addresses as words in memory order.
UNWRAPPED_DTYPE: Final = np.dtype(
    [
        ("src", "<u8", (2,)),
        ("dst", "<u8", (2,)),
        ("tunnel_path", "<u8"),
        ("tunnel_id", "<u4"),
        ("l3_offset", "<u4"),
        ("l4_offset", "<u4"),
        ("payload_offset", "<u4"),
        ("ip_len", "<u4"),
        ("payload_len", "<u4"),
        ("tcp_seq", "<u4"),
        ("tcp_ack", "<u4"),
        ("vlan", "<u2", (2,)),
        ("src_port", "<u2"),
        ("dst_port", "<u2"),
        ("tcp_window", "<u2"),
        ("reject", "u1"),
        ("ip_version", "u1"),
        ("protocol", "u1"),
        ("ttl", "u1"),
        ("tos", "u1"),
        ("tcp_flags", "u1"),
        ("flags", "u1"),
        ("tunnel_kind", "u1"),
        ("tunnel_depth", "u1"),
        ("tunnel_stop", "u1"),
        ("n_tags", "u1"),  # VLAN tags so far, at most 2
        ("_rest", "u1", (3,)),
    ]
)
UNWRAPPED_WORDS: Final = UNWRAPPED_DTYPE.itemsize // 8


@njit(cache=True, nogil=True)
def find_wrapped(reject, protocol, src_port, dst_port, flags, ports, decap, rows):  # type: ignore[no-untyped-def]
    """Write the numbers of the packets to look at again to the front of ``rows`` and return how many.

    Args:
        reject: columns of the decoded block.
        protocol: the same.
        src_port: the same.
        dst_port: the same.
        flags: the same.
        ports: ``tunnel_headers.port_table()``.
        decap: whether tunnels are followed.
        rows: int64 (n,).
    """
    n = 0
    for i in range(reject.size):
        reason = reject[i]
        if reason == 0:
            kind = protocol[i]
            wanted = flags[i] & _FRAGMENT != 0
            if decap and kind != _TCP and not wanted:
                if kind == _UDP:
                    wanted = ports[dst_port[i]] != 0 or ports[src_port[i]] == EITHER_PORT
                else:
                    wanted = kind == 4 or kind == 41 or kind == 47 or kind == 97 or kind == 115 or kind == 137
        else:
            wanted = reason in (_NOT_IP, _UNKNOWN_LINK_TYPE, _LATER_FRAGMENT)
            is_short = reason in (_TRUNCATED_TRANSPORT, _BAD_TCP_OFFSET)
            wanted |= is_short and flags[i] & _FRAGMENT != 0
        if wanted:
            rows[n] = i
            n += 1
    return n


# ------------------------------------------------------------------------------------------- tunnels


@helper
def enter(row, kind, tunnel_id):  # type: ignore[no-untyped-def]
    """Note a tunnel, whose own addresses and tags ``row`` holds; what names it is told in ``capture.tunnel``."""
    word = np.int64(kind) | np.int64(row.vlan[0]) << 8 | np.int64(row.vlan[1]) << 20
    if not is_directional(kind):
        word |= tunnel_id << 32
    path = mix(row.tunnel_path, np.uint64(word))
    has_id = kind in (_VXLAN, _VXLAN_GPE, _GENEVE, _PPPOE)
    has_id |= (kind in (_GRE, _NVGRE, _ERSPAN)) and tunnel_id != 0
    if not has_id and kind != _TEREDO:
        one = mix(mix(np.uint64(0), row.src[0]), row.src[1])
        other = mix(mix(np.uint64(0), row.dst[0]), row.dst[1])
        path = mix(path, one + other)  # the same from either end
    row.tunnel_path = max(path, np.uint64(1))
    row.tunnel_kind = kind
    row.tunnel_id = tunnel_id
    row.tunnel_depth += 1


@helper
def find_tunnel(data, end, row, start, room, is_fragment):  # type: ignore[no-untyped-def]
    """What follows the transport header of ``row``; returns as the functions of ``tunnel_headers``."""
    at = start + np.int64(row.payload_offset)
    l4 = start + np.int64(row.l4_offset)
    if row.protocol == _UDP:
        # The first fragment of a datagram knows how long all of it is.
        wire = l4 + _u16(data, l4 + 4) if is_fragment else at + np.int64(row.payload_len)
        src_port, dst_port = np.int64(row.src_port), np.int64(row.dst_port)
        return udp_tunnel(data, at, min(end, wire), wire, src_port, dst_port)
    wire = l4 + (_MAX_DATAGRAM if is_fragment else room)
    return ip_tunnel(data, at, min(end, wire), wire, np.int64(row.protocol), np.int64(row.ip_version))


# ------------------------------------------------------------------------------------- down to one IP


@helper
def to_ip(data, at, end, wire, layer, argument, row):  # type: ignore[no-untyped-def]
    """Follow link layers until an IP header.

    ``row`` collects VLAN ids and, of PPPoE, the session; it is written to even where the way ends before.

    Returns:
        (reason, position, version or 0, end, wire).
    """
    n_tags = 0
    for _ in range(links.MAX_LINK_LAYERS):
        if layer == links.IP:
            return _DECODED, at, argument, end, wire
        if layer == links.STOP:
            return argument, at, 0, end, wire
        if layer == links.ETHER_TYPE and links.is_vlan_type(argument):
            if n_tags == links.MAX_TAGS:
                return _VLAN_TOO_DEEP, at, 0, end, wire
            if at + 4 > end:
                return _TRUNCATED_VLAN, at, 0, end, wire
            tag = _u16(data, at) & 0xFFF
            if row.n_tags < 2:
                row.vlan[row.n_tags] = tag
                row.n_tags += 1
            argument = _u16(data, at + 2)
            at += 4
            n_tags += 1
        elif layer == links.ETHER_TYPE:
            layer, argument, at = links.ether_type_layer(at, argument)
        elif layer == links.ETHERNET:
            n_tags = 0
            layer, argument, at = links.ethernet_layer(data, at, end)
        elif layer == links.LLC:
            layer, argument, at = links.llc_layer(data, at, end)
        elif layer == links.PPP:
            layer, argument, at = links.ppp_layer(data, at, end)
        elif layer == links.MPLS:
            layer, argument, at = links.mpls_layer(data, at, end, wire)
        else:
            layer, argument, at, session, length = links.pppoe_layer(data, at, end)
            if layer != links.STOP:
                wire = min(wire, at + length)
                end = min(end, wire)
                enter(row, _PPPOE, session)
    return _LINK_TOO_DEEP, at, 0, end, wire


# ------------------------------------------------------------------------------------------ IP headers


@helper
def _mapped(row, data, at):  # type: ignore[no-untyped-def]
    """The two IPv4 addresses at ``at``, as ::ffff:a.b.c.d."""
    for k in range(2):
        word = np.uint64(0xFFFF0000)  # bytes 8 to 11, lowest first
        for j in range(4):
            word |= np.uint64(_u8(data, at + 4 * k + j)) << np.uint64(32 + 8 * j)
        if k == 0:
            row.src[0] = 0
            row.src[1] = word
        else:
            row.dst[0] = 0
            row.dst[1] = word


@helper
def _word(data, at):  # type: ignore[no-untyped-def]
    """Eight bytes as they lie in memory."""
    word = np.uint64(0)
    for j in range(8):
        word |= np.uint64(_u8(data, at + j)) << np.uint64(8 * j)
    return word


@helper
def has_bad_header_checksum(data, at, header_len):  # type: ignore[no-untyped-def]
    """True if the IPv4 header, all of which is there, does not add up (RFC 791, 3.1; RFC 1071)."""
    total = np.int64(0)
    for k in range(0, header_len, 2):
        total += _u16(data, at + k)
    total = (total >> 16) + (total & 0xFFFF)
    return (total >> 16) + (total & 0xFFFF) != 0xFFFF


@helper
def ip_layer(data, start, at, end, wire, wanted, row, fragment, check):  # type: ignore[no-untyped-def]
    """Fill in the columns of an IP header, and ``fragment`` if it is one of a fragment.

    Returns:
        (reason, position of what follows, end of the IP packet on the wire, whether this is a fragment).
    """
    row.l3_offset = at - start
    reason, version, header_len, length = _ip_lengths(data, at, end, wire, wanted)
    if reason != _DECODED:
        return reason, at, at, False
    row.ip_version = version
    row.ip_len = length
    stop = at + length
    if version == 6:
        row.tos = _u16(data, at) >> 4 & 0xFF
        row.ttl = _u8(data, at + 7)
        for word in range(2):
            row.src[word] = _word(data, at + 8 + 8 * word)
            row.dst[word] = _word(data, at + 24 + 8 * word)
        reason, l4, is_fragment = _ipv6_headers(data, at, min(end, stop), stop, row, fragment)
        return reason, l4, stop, is_fragment
    row.tos = _u8(data, at + 1)
    row.ttl = _u8(data, at + 8)
    _mapped(row, data, at + 12)
    l4 = at + header_len
    if l4 > end:
        return _TRUNCATED_EXTENSION, at, stop, False
    row.protocol = _u8(data, at + 9)
    if check and has_bad_header_checksum(data, at, header_len):
        return _BAD_IP_CHECKSUM, at, stop, False
    word = _u16(data, at + 6)
    if word & 0x3FFF == 0:
        return _DECODED, l4, stop, False
    ident = _u16(data, at + 4) | np.int64(row.protocol) << 32 | np.int64(4) << 40
    _note_fragment(row, fragment, ident, (word & 0x1FFF) << 3, word & 0x2000 != 0, stop - l4)
    return _DECODED, l4, stop, True


@helper
def _ipv6_headers(data, at, end, stop, row, fragment):  # type: ignore[no-untyped-def]
    """Follow the extension headers (RFC 8200, 4), a later fragment's up to the fragment header."""
    protocol = _u8(data, at + 6)
    at += 40
    is_fragment = False
    depth = 0
    while _is_extension(protocol):
        if depth == MAX_EXTENSIONS:
            return _EXTENSION_TOO_DEEP, at, is_fragment
        if at + 8 > end:
            return _TRUNCATED_EXTENSION, at, is_fragment
        length = (_u8(data, at + 1) + 1) << 3
        if protocol == _AH:
            length = (_u8(data, at + 1) + 2) << 2
        elif protocol == _FRAGMENT_HEADER:
            length = 8
            word = _u16(data, at + 2)
            if word & 0xFFF9 != 0:  # else "atomic" (RFC 6946), a whole packet
                is_fragment = True
                ident = _u32(data, at + 4) | np.int64(6) << 40
                _note_fragment(row, fragment, ident, word & 0xFFF8, word & 1 != 0, stop - at - 8)
            if word & 0xFFF8 != 0:
                row.protocol = _u8(data, at)
                return _DECODED, at + 8, True
        if at + length > end:
            return _TRUNCATED_EXTENSION, at, is_fragment
        protocol = _u8(data, at)
        at += length
        depth += 1
    row.protocol = protocol
    if protocol == _NO_NEXT:
        return _NO_NEXT_HEADER, at, is_fragment
    return _DECODED, at, is_fragment


@helper
def _note_fragment(row, fragment, ident, offset, has_more, n_bytes):  # type: ignore[no-untyped-def]
    row["flags"] |= _FRAGMENT
    for word in range(2):
        fragment["from"][word] = row.src[word]
        fragment["to"][word] = row.dst[word]
    fragment.scope = mix(row.tunnel_path, np.uint64(row.vlan[0]) | np.uint64(row.vlan[1]) << np.uint64(12))
    fragment.ident = np.uint64(ident)
    fragment.start = offset
    fragment.stop = offset + n_bytes
    fragment.is_last = not has_more


# ------------------------------------------------------------------------------------------- transport


@helper
def transport_layer(data, start, at, end, room, row, is_fragment):  # type: ignore[no-untyped-def]
    """Fill in the columns of the transport header; the reason."""
    row.l4_offset = at - start
    protocol = np.int64(row.protocol)
    reason, header_len, length = _transport_lengths(
        data, at, end, room, protocol, _FRAGMENT if is_fragment else 0
    )
    is_tiny = False
    if reason != _DECODED and is_fragment and room >= 8 and at + min(room, 20) <= end:
        # A header cut by fragmentation: the ports are there (RFC 791, 3.2: pieces of eight bytes).
        if protocol == _TCP:
            is_tiny = room < 20 or _u8(data, at + 12) >> 4 << 2 > room
        elif protocol == _SCTP:
            is_tiny = room < 12
    if is_tiny:
        header_len = room
        length = 0
    elif reason != _DECODED:
        return reason
    row.payload_offset = at + header_len - start
    row.payload_len = length
    if protocol in (_TCP, _UDP, _SCTP):
        row.src_port = _u16(data, at)
        row.dst_port = _u16(data, at + 2)
    elif protocol in (_ICMP, _ICMPV6):
        row.src_port = _u8(data, at)
        row.dst_port = _u8(data, at + 1)
    if protocol == _TCP and (not is_tiny or room >= 20):
        row.tcp_seq = _u32(data, at + 4)
        row.tcp_ack = _u32(data, at + 8)
        row.tcp_flags = _u8(data, at + 13)
        row.tcp_window = _u16(data, at + 14)
    return _DECODED


@helper
def _is_other_head(data, at, end, entry):  # type: ignore[no-untyped-def]
    """True if a repeated first fragment begins with other bytes than the one before it."""
    return at + 8 > end or entry.head != _word(data, at)


# ------------------------------------------------------------------------------------------ fragments


@helper
def find_first(data, at, end, row, fragment, table, entries, ts_ns):  # type: ignore[no-untyped-def]
    """(reason, entry or NOT_THERE) of a fragment; the identity of a later one becomes that of its first."""
    entry_at = table_of.find_datagram(table, entries, fragment, ts_ns)
    if fragment.stop > _MAX_DATAGRAM:
        return _FRAGMENT_TOO_LONG, entry_at
    if entry_at == table_of.NOT_THERE:
        return (_DECODED if fragment.start == 0 else _LATER_FRAGMENT), entry_at
    entry = entries[entry_at]
    verdict = table_of.judge_piece(entry, fragment.start, fragment.stop)
    if verdict == table_of.OVERLAPS:
        return _FRAGMENT_OVERLAP, entry_at
    if verdict == table_of.TOO_MANY:
        return _TOO_MANY_FRAGMENTS, entry_at
    if fragment.start == 0:
        other = verdict == table_of.FITS or _is_other_head(data, at, end, entry)
        return (_FRAGMENT_OVERLAP if other else _DECODED), entry_at
    if verdict == table_of.FITS:
        table_of.add_piece(table, entry, fragment.start, fragment.stop, fragment.is_last)
    table.joined += 1
    take_identity(entry, row)
    return _DECODED, entry_at


@helper
def take_identity(source, target):  # type: ignore[no-untyped-def]
    """Addresses, ports, VLANs and tunnel of one record into another."""
    for k in range(2):
        target.src[k] = source.src[k]
        target.dst[k] = source.dst[k]
        target.vlan[k] = source.vlan[k]
    target.src_port = source.src_port
    target.dst_port = source.dst_port
    target.protocol = source.protocol
    target.ip_version = source.ip_version
    target.tunnel_path = source.tunnel_path
    target.tunnel_id = source.tunnel_id
    target.tunnel_kind = source.tunnel_kind
    target.tunnel_depth = source.tunnel_depth


@helper
def remember(data, end, row, fragment, at, table, entries, ts_ns):  # type: ignore[no-untyped-def]
    """Enter a first fragment (its first byte at ``at``) under what its packet turned out to be."""
    entry = entries[table_of.new_datagram(table, entries, fragment, ts_ns)]
    take_identity(row, entry)
    entry.head = _word(data, at) if at + 8 <= end else np.uint64(0)
    table_of.add_piece(table, entry, fragment.start, fragment.stop, fragment.is_last)


# ---------------------------------------------------------------------------------------------- entry


@helper
def _copy(source, target, row):  # type: ignore[no-untyped-def]
    for word in range(UNWRAPPED_WORDS):
        target[row, word] = source[0, word]


@helper
def unwrap_level(  # type: ignore[no-untyped-def]
    data, start, end, wire, layer, argument, at, row, fragment, tables, entries, ts_ns, options
):
    """Decode one IP packet and its transport header, from the layers in front of it.

    Returns:
        (reason, end, bytes of the IP packet from its transport header on, whether it is a first fragment, where its
        first byte behind the fragment header is, whether it is a later fragment that found its flow).
    """
    check, keeps_fragments, is_inside, frame_end = options
    reason, at, wanted, end, wire = to_ip(data, at, end, wire, layer, argument, row)
    if reason != _DECODED:
        return reason, end, 0, False, at, False
    reason, l4, stop, is_fragment = ip_layer(data, start, at, end, wire, wanted, row, fragment, check)
    if stop > frame_end:
        row["flags"] |= _TRUNCATED
    if reason == _DECODED and is_inside and stop > wire:
        reason = _BAD_IP_TOTAL_LENGTH
    if reason != _DECODED:
        return reason, end, 0, False, l4, False
    room = stop - l4
    if not is_fragment:
        return transport_layer(data, start, l4, end, room, row, False), end, room, False, l4, False
    part_at = stop - (fragment.stop - fragment.start)
    if keeps_fragments:
        reason, entry_at = find_first(data, part_at, end, row, fragment, tables[0], entries, ts_ns)
        is_known = entry_at != table_of.NOT_THERE
    else:
        reason = _DECODED if fragment.start == 0 else _LATER_FRAGMENT
        is_known = True
    if reason != _DECODED:
        return reason, end, 0, False, part_at, False
    if fragment.start != 0:
        row.l4_offset = part_at - start
        row.payload_offset = part_at - start
        row.payload_len = room
        return _DECODED, end, room, False, part_at, True
    reason = transport_layer(data, start, l4, end, room, row, True)
    if is_known:
        fragment.start = -1  # nothing to remember
    return reason, end, room, True, part_at, False


@njit(cache=True, nogil=True)
def unwrap_rows(  # type: ignore[no-untyped-def]
    packets, rows, decap, check, tables, entries, out, out_words, scratch, scratch_words, fragments
):
    """Decode the packets ``rows`` from their first byte.

    Args:
        packets: (data, ts_ns, offset, captured_len, wire_len, link_type) of a PacketBlock that lies inside ``data``.
        rows: int64 (m,), their numbers.
        decap: whether what is inside a tunnel is followed.
        check: whether the checksums of IPv4 headers must be right.
        tables: FRAGMENTS_DTYPE (1,), or (0,): later fragments are ignored.
        entries: DATAGRAM_DTYPE (N_SETS * N_WAYS,), or (0,).
        out: UNWRAPPED_DTYPE (m,), written; ``out_words`` is the same memory as int64 (m, UNWRAPPED_WORDS).
        out_words: see ``out``.
        scratch: UNWRAPPED_DTYPE (1,); ``scratch_words`` as above.
        scratch_words: see ``scratch``.
        fragments: FRAGMENT_DTYPE (MAX_TUNNELS + 2,), scratch.
    """
    data, times, offsets, captured_lens, wire_lens, link_types = packets
    keeps_fragments = tables.size > 0
    first_bytes = np.zeros(MAX_TUNNELS + 2, np.int64)
    row = scratch[0]
    for k in range(rows.size):
        i = rows[k]
        start = np.int64(offsets[i])
        captured = np.int64(captured_lens[i])
        frame_end = start + max(captured, np.int64(wire_lens[i]))
        end = start + captured
        wire = frame_end
        for word in range(UNWRAPPED_WORDS):
            scratch_words[0, word] = 0
        if end < frame_end:
            row["flags"] = _TRUNCATED
        layer, argument, at = links.frame_layer(data, start, end, np.int64(link_types[i]))
        n_fragments = 0
        is_inside = False
        while True:
            fragment = fragments[n_fragments]
            options = (check, keeps_fragments, is_inside, frame_end)
            reason, end, room, is_first, part_at, is_joined = unwrap_level(
                data,
                start,
                end,
                wire,
                layer,
                argument,
                at,
                row,
                fragment,
                tables,
                entries,
                times[i],
                options,
            )
            if reason != _DECODED:
                if is_inside:
                    out[k].tunnel_stop = reason
                else:
                    row.reject = reason
                    _copy(scratch_words, out_words, k)
                break
            if is_first and fragment.start == 0:
                first_bytes[n_fragments] = part_at
                n_fragments += 1
            _copy(scratch_words, out_words, k)
            if is_joined or not decap:
                break
            kind, tunnel_id, layer, argument, at, wire = find_tunnel(data, end, row, start, room, is_first)
            if kind == 0:
                break
            if row.tunnel_depth >= MAX_TUNNELS:
                out[k].tunnel_stop = argument if layer == links.STOP else _TUNNEL_TOO_DEEP
                break
            enter(row, kind, tunnel_id)
            end = min(end, wire)
            is_inside = True
            clear_transport(row)
        for level in range(n_fragments):
            if keeps_fragments and out[k].reject == _DECODED:
                at = first_bytes[level]
                remember(data, end, out[k], fragments[level], at, tables[0], entries, times[i])


@helper
def clear_transport(row):  # type: ignore[no-untyped-def]
    """Forget what the transport header of the outer packet said."""
    row.src_port = 0
    row.dst_port = 0
    row.tcp_seq = 0
    row.tcp_ack = 0
    row.tcp_flags = 0
    row.tcp_window = 0
