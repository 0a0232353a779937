"""A block of a TPACKET_V3 ring, built and walked byte by byte (include/uapi/linux/if_packet.h)."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class RingPacket:
    ts_ns: int
    data: bytes  # as it lies in the ring: without the outer VLAN tag
    wire_len: int
    tci: int | None = None  # of the tag that the kernel took off
    tpid: int | None = None  # None: the kernel does not say


def ring_block(packets: list[RingPacket], size: int) -> bytes:
    """The block as the kernel writes it, each frame 8 bytes behind its headers plus room for a tag."""
    out = bytearray(struct.pack("<IIIII", 1, 48, 1, len(packets), 48).ljust(48, b"\0"))
    for number, packet in enumerate(packets):
        frame_at = 48 + 20 + 8 + 4
        length = (frame_at + len(packet.data) + 15) // 16 * 16
        status = 1 | (0x10 if packet.tci is not None else 0) | (0x40 if packet.tpid is not None else 0)
        seconds, ns = divmod(packet.ts_ns, 10**9)
        is_last = number == len(packets) - 1
        header = struct.pack(
            "<IIIIIIHHIIHH",
            *(0 if is_last else length, seconds, ns, len(packet.data), packet.wire_len, status),
            *(frame_at, frame_at + 14, 0, packet.tci or 0, packet.tpid or 0, 0),
        )
        out += header.ljust(frame_at, b"\xee") + packet.data.ljust(length - frame_at, b"\xee")
    assert len(out) <= size
    return bytes(out).ljust(size, b"\xee")


def as_on_the_wire(packet: RingPacket) -> tuple[int, bytes, int]:
    """Time, bytes with the tag put back, and length on the wire."""
    if packet.tci is None or len(packet.data) < 12:
        return packet.ts_ns, packet.data, packet.wire_len
    tag = struct.pack(">HH", packet.tpid or 0x8100, packet.tci)
    return packet.ts_ns, packet.data[:12] + tag + packet.data[12:], packet.wire_len + 4
