"""Small captures made by hand: Ethernet frames with IPv4, TCP or UDP, in a classic pcap with microseconds.

Independent of `capture`: struct only, checksums left 0 (nothing reads them).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from pathlib import Path

SYN, ACK, FIN, PSH = 0x02, 0x10, 0x01, 0x08
START_S = 1_700_000_000.0

Packet = tuple[float, bytes]


def ipv4(src: str, dst: str, protocol: int, body: bytes) -> bytes:
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(body),
        7,
        0,
        64,
        protocol,
        0,
        socket.inet_aton(src),
        socket.inet_aton(dst),
    )
    return b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\0" + head + body


def udp(src: str, src_port: int, dst: str, dst_port: int, payload: bytes) -> bytes:
    return ipv4(src, dst, 17, struct.pack(">HHHH", src_port, dst_port, 8 + len(payload), 0) + payload)


def tcp(src: str, src_port: int, dst: str, dst_port: int, flags: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">HHIIBBHHH", src_port, dst_port, 1, 1, 0x50, flags, 4096, 0, 0)
    return ipv4(src, dst, 6, head + payload)


def icmp_echo(src: str, dst: str, *, reply: bool = False) -> bytes:
    return ipv4(src, dst, 1, struct.pack(">BBHHH", 0 if reply else 8, 0, 0, 1, 1) + b"ping" * 4)


def udp_flow(
    client: str,
    port: int,
    sizes: Iterable[int],
    *,
    server: str = "10.9.0.1",
    server_port: int = 53,
    start_s: float = START_S,
    gap_s: float = 0.01,
    fill: int = 0,
) -> list[Packet]:
    """A dialogue: packets in turn from client and server, with payloads of the given sizes, in bytes."""
    packets = []
    for number, size in enumerate(sizes):
        ends = (client, port, server, server_port) if number % 2 == 0 else (server, server_port, client, port)
        packets.append((start_s + number * gap_s, udp(*ends, bytes([fill]) * size)))
    return packets


def write_pcap(path: Path, packets: Iterable[Packet]) -> Path:
    """Write packets (seconds, frame) in order of time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for time_s, frame in sorted(packets, key=lambda packet: packet[0]):
            us = round(time_s * 1e6)
            file.write(struct.pack("<IIII", us // 1_000_000, us % 1_000_000, len(frame), len(frame)))
            file.write(frame)
    return path
