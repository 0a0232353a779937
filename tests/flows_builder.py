"""Packets for the tests of the flow table, without a decoder: what it would say is given, bytes are filler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from capture.block import PACKET_TRUNCATED, DecodedBlock, PacketBlock
from capture.flow_key import ICMP, TCP

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
S = 1_000_000_000


def ip4(text: str) -> bytes:
    return b"\0" * 10 + b"\xff\xff" + bytes(int(part) for part in text.split("."))


A, B = ip4("10.0.0.1"), ip4("10.0.0.2")


@dataclass(frozen=True)
class Packet:
    """One packet: a row of a PacketBlock, of a DecodedBlock, and its captured bytes."""

    ts_ns: int
    src: bytes = A
    dst: bytes = B
    src_port: int = 1000
    dst_port: int = 80
    protocol: int = TCP
    ip_version: int = 4
    vlan: tuple[int, int] = (0, 0)
    tcp_flags: int = ACK
    tcp_seq: int = 1
    tcp_ack: int = 1
    tcp_window: int = 512
    ttl: int = 64
    tos: int = 0
    l3_offset: int = 14
    header_len: int = 40
    ip_header_len: int = 20
    payload_len: int = 10
    padding_len: int = 0  # behind the IP packet
    cut_len: int = 0  # bytes of the frame that were not captured
    flags: int = 0
    reject: int = 0
    filler: int = field(default=0, compare=False)
    tunnel_kind: int = 0
    tunnel_depth: int = 0
    tunnel_id: int = 0
    tunnel_path: int = 0

    @property
    def ip_len(self) -> int:
        return self.header_len + self.payload_len

    @property
    def payload_offset(self) -> int:
        return self.l3_offset + self.header_len

    @property
    def wire_len(self) -> int:
        return self.l3_offset + self.ip_len + self.padding_len

    @property
    def frame(self) -> bytes:
        """Never zero: padding with zeros shows."""
        whole = bytes((self.filler + 7 * at) % 255 + 1 for at in range(self.wire_len))
        return whole[: max(self.wire_len - self.cut_len, 0)]

    def answered(self, ts_ns: int, **changes: object) -> Packet:
        """A packet the other way."""
        back = replace(
            self, ts_ns=ts_ns, src=self.dst, dst=self.src, src_port=self.dst_port, dst_port=self.src_port
        )
        return replace(back, **changes)  # type: ignore[arg-type]


def udp(ts_ns: int, **changes: object) -> Packet:
    return replace(Packet(ts_ns, protocol=17, tcp_flags=0, header_len=28, dst_port=53), **changes)  # type: ignore[arg-type]


def icmp(ts_ns: int, kind: int, code: int = 0, **changes: object) -> Packet:
    packet = Packet(ts_ns, protocol=ICMP, tcp_flags=0, header_len=28, src_port=kind, dst_port=code)
    return replace(packet, **changes)  # type: ignore[arg-type]


def blocks_of(packets: Sequence[Packet]) -> tuple[PacketBlock, DecodedBlock]:
    """The columns of the packets."""
    frames = [packet.frame for packet in packets]
    gap = b"\xee" * 5
    data = np.frombuffer(gap + b"".join(frame + gap for frame in frames), np.uint8)
    lengths = np.array([len(frame) for frame in frames], np.int64)
    offset = np.cumsum(lengths + len(gap)) - lengths

    def column(name: str, dtype: str) -> np.ndarray:
        return np.array([getattr(packet, name) for packet in packets], dtype)

    block = PacketBlock(
        ts_ns=column("ts_ns", "<i8"),
        captured_len=lengths.astype(np.uint32),
        wire_len=column("wire_len", "<u4"),
        offset=offset.astype(np.int64),
        link_type=np.ones(len(packets), np.uint16),
        data=data,
    )
    flags = column("flags", "u1") | np.where(column("cut_len", "<i8") > 0, PACKET_TRUNCATED, 0).astype(
        np.uint8
    )
    addresses = {
        name: np.frombuffer(b"".join(getattr(packet, name) for packet in packets), np.uint8).reshape(-1, 16)
        for name in ("src", "dst")
    }
    decoded = DecodedBlock(
        reject=column("reject", "u1"),
        ip_version=column("ip_version", "u1"),
        protocol=column("protocol", "u1"),
        vlan=column("vlan", "<u2").reshape(-1, 2),
        **addresses,
        src_port=column("src_port", "<u2"),
        dst_port=column("dst_port", "<u2"),
        l3_offset=column("l3_offset", "<u4"),
        l4_offset=column("l3_offset", "<u4") + column("ip_header_len", "<u4"),
        payload_offset=column("payload_offset", "<u4"),
        ip_len=column("ip_len", "<u4"),
        payload_len=column("payload_len", "<u4"),
        ttl=column("ttl", "u1"),
        tos=column("tos", "u1"),
        tcp_flags=column("tcp_flags", "u1"),
        tcp_window=column("tcp_window", "<u2"),
        tcp_seq=column("tcp_seq", "<u4"),
        tcp_ack=column("tcp_ack", "<u4"),
        flags=flags,
        tunnel_kind=column("tunnel_kind", "u1"),
        tunnel_depth=column("tunnel_depth", "u1"),
        tunnel_id=column("tunnel_id", "<u4"),
        tunnel_path=column("tunnel_path", "<u8"),
        tunnel_stop=np.zeros(len(packets), np.uint8),
    )
    return block, decoded
