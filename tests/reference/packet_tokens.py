"""Slow, obviously right twin of `capture.representations.packets`: one flow, one packet, one field at a time."""

from __future__ import annotations

from dataclasses import dataclass

from tests.reference.field_policy import TUNNEL_PORTS

MOST = 2**31 - 1


@dataclass(frozen=True)
class Seen:
    """One kept packet of a flow."""

    ts_ns: int
    direction: int
    ip_len: int
    payload_len: int
    window: int
    tcp_flags: int
    tos: int
    ttl: int
    seq: int
    options: bytes  # of TCP, cut to what was kept
    icmp_type: int | None
    payload: bytes  # as kept


def tokens(
    flow: list[Seen],
    protocol: int,
    ports: tuple[int, int],
    hidden: set[str],
    n_byte_packets: int,
    payload_bytes: int,
) -> tuple[list[list[int]], list[list[int]], list[bytes]]:
    """Numbers, flags and payload of every packet; `ports` are the client's and the server's."""
    numbers, flags, payloads = [], [], []
    for k, packet in enumerate(flow):
        before = [p.ts_ns for p in flow[:k]] or [packet.ts_ns]
        same = [p.ts_ns for p in flow[:k] if p.direction == packet.direction] or [flow[0].ts_ns]
        # Before a direction's first packet, the flow's first packet counts.
        same.append(flow[0].ts_ns)
        gap, gap_same = (min(max(packet.ts_ns - max(t), 0) // 1000, MOST) for t in (before, same))
        numbers.append([packet.ip_len, packet.payload_len, gap, gap_same, packet.window])
        has_bytes = k < n_byte_packets
        shown = packet.payload[:payload_bytes][: packet.payload_len] if has_bytes else b""
        if "embedded" in hidden and holds_headers(packet, protocol, ports):
            shown = b""
        flags.append(
            [
                1 + packet.direction,
                protocol,
                packet.tcp_flags,
                packet.tos,
                option_bits(packet.options) if protocol == 6 and has_bytes else 0,
                order(flow[: k + 1]) if protocol == 6 else 0,
                min((255 if packet.icmp_type is None else packet.icmp_type) + 1, 255)
                if protocol in (1, 58) and has_bytes
                else 0,
                0 if "ttl" in hidden else sum(packet.ttl > top for top in (32, 64, 128)) + 1,
                0 if "ports" in hidden or ports[1] >= 32768 else 1 + ports[1] % 255,
                len(shown),
            ]
        )
        payloads.append(shown.ljust(payload_bytes, b"\0"))
    return numbers, flags, payloads


def holds_headers(packet: Seen, protocol: int, ports: tuple[int, int]) -> bool:
    if protocol in (1, 58):
        return packet.icmp_type not in ((0, 8) if protocol == 1 else (128, 129))
    if protocol == 17:
        return bool(TUNNEL_PORTS & set(ports))
    return protocol not in (6, 132, 50)


def option_bits(options: bytes) -> int:
    bits, at = 128, 0
    names = {2: 1, 3: 2, 4: 4, 5: 8, 8: 16}
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        bits |= names.get(options[at], 32)
        if at + 1 == len(options):
            break
        at += max(options[at + 1], 2)
    return bits


def order(so_far: list[Seen]) -> int:
    """0 in order, 1 sent again, 2 ahead: of the last segment, by the ends of those before it in its direction."""
    last = so_far[-1]
    expected = None
    for packet in so_far:
        if packet.direction != last.direction:
            continue
        span = packet.payload_len + bool(packet.tcp_flags & 2) + bool(packet.tcp_flags & 1)
        end = packet.seq + span
        if expected is None:
            answer, expected = 0, end
            continue
        distance = (packet.seq - expected + 2**31) % 2**32 - 2**31
        answer = 0 if distance == 0 else 2 if distance > 0 else 1
        gain = (end - expected + 2**31) % 2**32 - 2**31
        if distance >= 0 or gain > 0:
            expected = end
    return answer
