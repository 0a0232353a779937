"""Slow, obviously right twin of `capture.representations.netfound`: one flow, one burst, one field at a time.

It goes the way of the published code: parts the flow's packets into two directions, cuts each into bursts, and puts
the bursts of both in order again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

GAP_NS = 10_000_000
TRANSPORT_BYTES = {6: 20, 17: 8, 1: 4, 58: 4}


@dataclass(frozen=True)
class Seen:
    """One kept packet of a flow."""

    ts_ns: int
    side: int  # 0 client, 1 server
    header: bytes  # as kept, from the IP header on
    l4: int
    header_len: int
    ip_len: int
    tos: int
    ttl: int
    tcp_flags: int
    window: int
    seq: int
    ack: int


@dataclass
class Burst:
    is_forward: bool
    packets: list[Seen]
    tokens: list[int] = field(default_factory=list)
    n_bytes: int = 0
    n_packets: int = 0
    iat_ms: float = 0.0


def bursts_of(
    flow: list[Seen],
    protocol: int,
    *,
    strict: bool,
    hidden: set[str],
    same_address: bool = False,
    forward: int | None = None,
    n_bursts: int = 12,
    burst_packets: int = 6,
) -> list[Burst]:
    """The bursts that are shown, in order, with the values of their fields (ids are one more).

    `same_address`: the published code cannot tell the two ends of this flow apart.
    `forward`: the side of the internal network, if that is known.
    """
    if strict:
        flow = [p for p in flow if p.header_len - p.l4 >= TRANSPORT_BYTES.get(protocol, 0)]
    if not flow:
        return []
    side = {id(p): 0 if strict and same_address else p.side for p in flow}
    relative = relative_numbers(flow, side, published="seq_ack" not in hidden)
    in_time = sorted(flow, key=lambda p: p.ts_ns)
    if forward is None:
        forward = side[id(in_time[0])] if strict else 0
    bursts = []
    for way in (forward, 1 - forward):
        own = [p for p in in_time if side[id(p)] == way]
        parts: list[list[Seen]] = []
        for before, packet in zip([None, *own], own, strict=False):
            if before is None or packet.ts_ns - before.ts_ns > GAP_NS:
                parts.append([])
            parts[-1].append(packet)
        for number, part in enumerate(parts):
            burst = Burst(way == forward, part)
            if number:
                burst.iat_ms = iat_ms(part[0].ts_ns - parts[number - 1][0].ts_ns, strict)
            bursts.append(burst)
    # Stable: at the same time the forward one stays first.
    bursts = sorted(bursts, key=lambda b: b.packets[0].ts_ns)[:n_bursts]
    for burst in bursts:
        burst.packets = burst.packets[:burst_packets]
        for packet in burst.packets:
            values = fields(packet, protocol, relative[id(packet)], strict, hidden)
            burst.tokens += values
            burst.n_bytes += values[2]
            burst.n_packets += 1
    return bursts


def iat_ms(apart_ns: int, strict: bool) -> float:
    if strict:
        return int(round(apart_ns / 1000) * 1e-3)
    return float(Fraction(apart_ns, 1_000_000))


def relative_numbers(
    flow: list[Seen], side: dict[int, int], *, published: bool
) -> dict[int, tuple[int, int]]:
    """(seq, ack) of every packet, by id; the flow in the order in which it came."""
    answer: dict[int, tuple[int, int]] = {}
    first = flow[0]
    if published:
        base_seq, base_ack = first.seq, 0
        for number, packet in enumerate(flow):
            if number == 0 and packet.ack != 0:
                base_ack = packet.ack
            elif number == 1 and base_ack == 0:
                base_ack = packet.seq
            if side[id(packet)] == side[id(first)]:
                seq, ack = packet.seq - base_seq, packet.ack - base_ack if base_ack else 0
            else:
                seq, ack = packet.seq - base_ack, packet.ack - base_seq
            answer[id(packet)] = (seq % 2**32, ack % 2**32)
        return answer
    start: dict[int, int] = {}
    for packet in flow:
        own = side[id(packet)]
        start.setdefault(own, packet.seq)
        ack = 0
        if packet.tcp_flags & 16:
            start.setdefault(1 - own, packet.ack)
            ack = packet.ack - start[1 - own]
        answer[id(packet)] = ((packet.seq - start[own]) % 2**32, ack % 2**32)
    return answer


def fields(
    packet: Seen, protocol: int, relative: tuple[int, int], strict: bool, hidden: set[str]
) -> list[int]:
    """Values of one packet's tokens."""
    header = packet.header
    is_v4 = header[0] >> 4 == 4
    if is_v4:
        length = int.from_bytes(header[2:4], "big") if strict else min(packet.ip_len, 65535)
        values = [4 * (header[0] & 15), packet.tos, length, header[6] >> 5]
    elif strict:
        # The library's traffic class is the low half of the header's first byte.
        length = (int.from_bytes(header[4:6], "big") + 40) % 65536
        values = [40, packet.tos >> 4, length, 0]
    else:
        values = [packet.l4, packet.tos, min(packet.ip_len, 65535), 0]
    values.append(0 if "ttl" in hidden else packet.ttl)
    l4 = packet.l4
    if packet.header_len - l4 < TRANSPORT_BYTES.get(protocol, 0):
        header = b""

    def u16(at: int) -> int:
        return int.from_bytes(header[at : at + 2], "big") if at + 2 <= len(header) else 0

    if protocol == 6:
        seq, ack = relative
        values += [packet.tcp_flags, packet.window, seq >> 16, seq & 65535, ack >> 16, ack & 65535]
        values.append(u16(l4 + 18))
    elif protocol == 17:
        values.append(u16(l4 + 4))
    elif protocol in (1, 58):
        values += [u16(l4) >> 8, u16(l4) & 255]
    return values
