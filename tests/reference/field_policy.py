"""Slow, obviously right twin of `capture.kernels.field_policy`: a packet's bytes, and the ranges to blank.

Written from the RFCs, not from the kernel: it first lists every hidden byte range of a packet, then blanks them.
"""

from __future__ import annotations

Range = tuple[int, int]

TUNNEL_PORTS = {4789, 8472, 4790, 6081, 2152, 3544, 1701, 6635, 4754}


def hidden_header_ranges(
    header: bytes, protocol: int, l4: int, header_len: int, hidden: set[str]
) -> list[Range]:
    """Ranges [start, stop) of the header part that the groups in `hidden` blank. `header` is cut or padded."""
    byte = lambda at: header[at] if at < len(header) else 0  # noqa: E731
    named: list[tuple[str, int, int]] = []
    if header[0] >> 4 == 4:
        named += [("ip_id", 4, 6), ("ttl", 8, 9), ("checksums", 10, 12), ("addresses", 12, 20)]
        named += [("addresses", a + 2, min(b, l4)) for _, a, b in options(header, 20, l4)]
    else:
        named += [("ip_id", 2, 4), ("ttl", 7, 8), ("addresses", 8, 40)]
        kind, at = byte(6), 40
        while at + 8 <= min(l4, len(header)):
            if kind == 51:  # AH counts 4-byte words, less 2
                size = (byte(at + 1) + 2) * 4
                named.append(("ip_id", at + 4, min(at + size, l4)))
            elif kind == 44:
                size = 8
                named.append(("ip_id", at + 4, at + 8))
            else:
                size = (byte(at + 1) + 1) * 8
                if kind == 43:
                    named.append(("addresses", at + 4, min(at + size, l4)))
                if kind in (0, 60):
                    named += home_addresses(header, at + 2, min(at + size, l4))
            kind, at = byte(at), at + size
    named += transport_ranges(header, protocol, l4, header_len)
    return [(start, min(stop, len(header))) for group, start, stop in named if group in hidden]


def options(header: bytes, start: int, stop: int) -> list[tuple[int, int, int]]:
    """(kind, first byte, byte behind) of IPv4 or TCP options."""
    found = []
    at = start
    while at + 1 < min(stop, len(header)) and header[at] != 0:
        if header[at] == 1:
            at += 1
            continue
        size = max(header[at + 1], 2)
        found.append((header[at], at, at + size))
        at += size
    return found


def home_addresses(header: bytes, start: int, stop: int) -> list[tuple[str, int, int]]:
    found = []
    at = start
    while at + 1 < min(stop, len(header)):
        if header[at] == 0:
            at += 1
            continue
        size = header[at + 1] + 2
        if header[at] == 201:
            found.append(("addresses", at + 2, min(at + size, stop)))
        at += size
    return found


def transport_ranges(header: bytes, protocol: int, l4: int, header_len: int) -> list[tuple[str, int, int]]:
    named: list[tuple[str, int, int]] = []
    if protocol in (6, 17, 132):
        named.append(("ports", l4, l4 + 4))
    if protocol == 6:
        named += [("seq_ack", l4 + 4, l4 + 12), ("checksums", l4 + 16, l4 + 18)]
        groups = {8: "timestamps", 5: "seq_ack", 30: "addresses", 34: "addresses"}
        for kind, start, stop in options(header, l4 + 20, header_len):
            if kind in groups:
                named.append((groups[kind], start + 2, min(stop, header_len)))
    if protocol == 17:
        named.append(("checksums", l4 + 6, l4 + 8))
    if protocol == 132:
        named += [("seq_ack", l4 + 4, l4 + 8), ("checksums", l4 + 8, l4 + 12)]
    if protocol in (1, 58):
        named.append(("checksums", l4 + 2, l4 + 4))
        if is_echo(header, protocol, l4):
            named.append(("ip_id", l4 + 4, l4 + 6))
        else:
            named.append(("embedded", l4 + 4, l4 + 8))
    return named


def is_echo(header: bytes, protocol: int, l4: int) -> bool:
    icmp_type = header[l4] if l4 < len(header) else 255
    return icmp_type in {1: (0, 8), 58: (128, 129)}[protocol]


def hide(
    header: bytes,
    payload: bytes,
    protocol: int,
    l4: int,
    header_len: int,
    ports: tuple[int, int],
    hidden: set[str],
) -> bytes:
    """Header and payload with the hidden groups blanked."""
    row = bytearray(header)
    for start, stop in hidden_header_ranges(header, protocol, l4, header_len, hidden):
        row[start:stop] = bytes(max(stop - start, 0))
    if "ip_id" in hidden and header[0] >> 4 != 4:
        row[1] &= 0xF0  # the flow label begins in the middle of a byte
    inside = {
        1: lambda: not is_echo(header, 1, l4),
        58: lambda: not is_echo(header, 58, l4),
        17: lambda: bool(TUNNEL_PORTS & set(ports)),
        6: lambda: False,
        132: lambda: False,
        50: lambda: False,
    }.get(protocol, lambda: True)()
    if "embedded" in hidden and inside:
        payload = bytes(len(payload))
    return bytes(row) + payload
