"""Frames in columns for the flow benches: equal but for addresses and ports, as PacketBlocks."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from capture.block import PacketBlock

UDP, TCP = 17, 6
SYN, ACK = 2, 16
_HEADER_BYTES = {UDP: 42, TCP: 54}


def frames(
    numbers: NDArray[np.int64],
    ts_ns: NDArray[np.int64],
    *,
    protocol: int = UDP,
    size: int = 64,
    flags: int = ACK,
) -> PacketBlock:
    """One frame for each number; equal numbers are the same flow, different ones never.

    Args:
        numbers: int64 (n,), 0 to 2**40: the low 24 bits are the client's address, the others choose its port.
        ts_ns: int64 (n,).
        protocol: UDP or TCP.
        size: bytes of each frame.
        flags: of TCP.
    """
    n = len(numbers)
    head = bytes.fromhex("0200000000020200000000010800") + struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        0,
        size - 14,
        1,
        0,
        64,
        protocol,
        0,
        bytes([10, 0, 0, 0]),
        bytes([192, 0, 2, 1]),
    )
    if protocol == UDP:
        head += struct.pack(">HHHH", 1024, 443, size - 34, 0)
    else:
        head += struct.pack(">HHIIBBHHH", 1024, 443, 1, 1, 0x50, flags, 512, 0, 0)
    data = np.zeros((n, size), np.uint8)
    data[:, : len(head)] = np.frombuffer(head, np.uint8)
    data[:, 27:30] = numbers.astype(">u4").view(np.uint8).reshape(n, 4)[:, 1:]
    data[:, 34:36] = (1024 + (numbers >> 24)).astype(">u2").view(np.uint8).reshape(n, 2)
    lengths = np.full(n, size, np.uint32)
    return PacketBlock(
        ts_ns, lengths, lengths, np.arange(n, dtype=np.int64) * size, np.ones(n, np.uint16), data.reshape(-1)
    )
