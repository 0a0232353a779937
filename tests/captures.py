"""Capture files made in memory, and what a reader makes of them as a plain list."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import Any, BinaryIO, NamedTuple

from capture.readers import CaptureReader, open_capture


class Packet(NamedTuple):
    """One packet as a capture holds it; ``ts_ns`` in nanoseconds since the epoch, ``wire_len`` in bytes."""

    ts_ns: int
    link_type: int
    wire_len: int
    data: bytes


def packets_of(
    source: str | os.PathLike[str] | BinaryIO, **options: Any
) -> tuple[list[Packet], CaptureReader]:
    """Every packet of ``source``, and the reader behind its end."""
    packets: list[Packet] = []
    with open_capture(source, **options) as reader:
        for block in reader:
            data = block.data.tobytes()
            for ts, link, wire, begin, length in zip(
                block.ts_ns.tolist(),
                block.link_type.tolist(),
                block.wire_len.tolist(),
                block.offset.tolist(),
                block.captured_len.tolist(),
                strict=True,
            ):
                assert 0 <= begin <= begin + length <= len(data)
                packets.append(Packet(ts, link, wire, data[begin : begin + length]))
    return packets, reader


def pcap(
    packets: Iterable[Packet] = (),
    *,
    order: str = "<",
    nano: bool = False,
    link_type: int = 1,
    snaplen: int = 65535,
    version: tuple[int, int] = (2, 4),
) -> bytes:
    """A classic pcap file; the link types of the packets are not looked at."""
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    out = struct.pack(order + "IHHiIII", magic, *version, 0, 0, snaplen, link_type)
    for packet in packets:
        seconds, ns = divmod(packet.ts_ns, 10**9)
        out += record(seconds, ns if nano else ns // 1000, packet.data, packet.wire_len, order=order)
    return out


def record(seconds: int, fraction: int, data: bytes, wire_len: int, *, order: str = "<") -> bytes:
    """One record of a classic pcap file."""
    return struct.pack(order + "IIII", seconds, fraction, len(data), wire_len) + data


def block(kind: int, body: bytes, *, order: str = "<") -> bytes:
    """One pcapng block; ``body`` is padded."""
    body += b"\0" * (-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def section(*, order: str = "<", version: tuple[int, int] = (1, 0)) -> bytes:
    """A section header block."""
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, *version, -1), order=order)


def option(code: int, value: bytes, *, order: str = "<") -> bytes:
    """One option of a pcapng block."""
    return struct.pack(order + "HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def interface(link_type: int = 1, snaplen: int = 0, options: bytes = b"", *, order: str = "<") -> bytes:
    """An interface description block."""
    return block(1, struct.pack(order + "HHI", link_type, 0, snaplen) + options, order=order)


def enhanced(units: int, data: bytes, wire_len: int, *, interface_id: int = 0, order: str = "<") -> bytes:
    """An enhanced packet block; ``units`` is the 64-bit time in the interface's resolution."""
    head = struct.pack(order + "IIIII", interface_id, units >> 32, units & 0xFFFFFFFF, len(data), wire_len)
    return block(6, head + data, order=order)


def obsolete(units: int, data: bytes, wire_len: int, *, interface_id: int = 0, order: str = "<") -> bytes:
    """An obsolete packet block, with 7 drops."""
    head = struct.pack(
        order + "HHIIII", interface_id, 7, units >> 32, units & 0xFFFFFFFF, len(data), wire_len
    )
    return block(2, head + data, order=order)


def simple(data: bytes, wire_len: int, *, order: str = "<") -> bytes:
    """A simple packet block."""
    return block(3, struct.pack(order + "I", wire_len) + data, order=order)
