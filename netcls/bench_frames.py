"""Bytes of made-up traffic: planned packets (:mod:`netcls.bench_traffic`) to the records of a pcap file.

Headers are structured arrays, one dtype for each of the four stacks (IPv4 or IPv6, TCP or UDP); a chunk begins as
noise, and headers and recognisable beginnings of payloads are written over it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

TLS, QUIC, DNS, RTP = range(4)
FIN, SYN, PSH, ACK = 0x01, 0x02, 0x08, 0x10
MSS: Final = 1448  # bytes: 1500 less 20 of IPv4 and 32 of TCP with its timestamp option
DNS_QUERY_BYTES: Final = 36
DNS_ANSWER_BYTES: Final = 52

Rows = NDArray[Any] | slice

_N_NAMES: Final = 64
_FILLER_CHECKSUM: Final = 0x5AA5
_RECORD_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Flows:
    """Columns (F,); direction 0 is to the server.

    Attributes:
        application: TLS, QUIC, DNS or RTP.
        n_packets: of the flow.
        is_ipv6: else IPv4.
        start_ns: since the epoch.
        client, server: numbers that become addresses.
        client_port, server_port: of TCP or UDP.
        first_seq: (F, 2), initial sequence number of each side.
        connection_id: uint8 (F, 8), QUIC.
        closes: TLS: FIN from both sides at the end.
    """

    application: NDArray[np.int64]
    n_packets: NDArray[np.int64]
    is_ipv6: NDArray[np.bool_]
    start_ns: NDArray[np.int64]
    client: NDArray[np.int64]
    server: NDArray[np.int64]
    client_port: NDArray[np.int64]
    server_port: NDArray[np.int64]
    first_seq: NDArray[np.int64]
    connection_id: NDArray[np.uint8]
    closes: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Packets:
    """Columns (n,).

    Attributes:
        ts_ns: since the epoch.
        flow: row of its ``Flows``.
        place: in its flow, from 0.
        application: of its flow.
        to_client: sent by the server.
        payload_len: behind the transport header, bytes.
        tcp_flags, seq, ack: of the TCP header; nothing for UDP.
    """

    ts_ns: NDArray[np.int64]
    flow: NDArray[np.int64]
    place: NDArray[np.int64]
    application: NDArray[np.int64]
    to_client: NDArray[np.bool_]
    payload_len: NDArray[np.int64]
    tcp_flags: NDArray[np.int64]
    seq: NDArray[np.int64]
    ack: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ts_ns)

    def rows(self, which: Rows) -> Packets:
        """The given packets, in the given order."""
        return Packets(*(getattr(self, column.name)[which] for column in fields(self)))


_RECORD: Final = np.dtype([("s", "<u4"), ("us", "<u4"), ("captured_len", "<u4"), ("wire_len", "<u4")])
_ETHERNET: Final = [("dst", "u1", (6,)), ("src", "u1", (6,)), ("kind", ">u2")]
_IPV4: Final = [
    ("version", "u1"),
    ("tos", "u1"),
    ("length", ">u2"),
    ("ip_id", ">u2"),
    ("fragment", ">u2"),
    ("ttl", "u1"),
    ("protocol", "u1"),
    ("checksum", ">u2"),
    ("src", ">u4"),
    ("dst", ">u4"),
]
_IPV6: Final = [
    ("version", ">u4"),
    ("length", ">u2"),
    ("protocol", "u1"),
    ("ttl", "u1"),
    ("src_net", ">u8"),
    ("src", ">u8"),
    ("dst_net", ">u8"),
    ("dst", ">u8"),
]
_TCP: Final = [
    ("src_port", ">u2"),
    ("dst_port", ">u2"),
    ("seq", ">u4"),
    ("ack", ">u4"),
    ("offset", "u1"),
    ("flags", "u1"),
    ("window", ">u2"),
    ("checksum", ">u2"),
    ("urgent", ">u2"),
    ("option", ">u4"),
    ("ts_val", ">u4"),
    ("ts_echo", ">u4"),
]
_UDP: Final = [("src_port", ">u2"), ("dst_port", ">u2"), ("length", ">u2"), ("checksum", ">u2")]


def _stack(is_ipv6: bool, is_tcp: bool) -> np.dtype[Any]:
    ip, transport = _IPV6 if is_ipv6 else _IPV4, _TCP if is_tcp else _UDP
    return np.dtype([("ethernet", _ETHERNET), ("ip", ip), ("transport", transport)])


_STACKS: Final = {(v6, tcp): _stack(v6, tcp) for v6 in (False, True) for tcp in (False, True)}
_CLIENT_MAC: Final = np.frombuffer(bytes.fromhex("02000000aa01"), np.uint8)
_SERVER_MAC: Final = np.frombuffer(bytes.fromhex("02000000bb01"), np.uint8)


def file_header(snaplen_bytes: int) -> bytes:
    """Of a classic pcap with microseconds and Ethernet."""
    return struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, snaplen_bytes, 1)


def records(
    rng: np.random.Generator, flows: Flows, packets: Packets, snaplen_bytes: int
) -> NDArray[np.uint8]:
    """Record headers and frames of all packets, one after the other, flat."""
    is_ipv6, is_tcp = flows.is_ipv6[packets.flow], packets.application == TLS
    header_len = np.empty(len(packets), np.int64)
    for (v6, tcp), stack in _STACKS.items():
        header_len[(is_ipv6 == v6) & (is_tcp == tcp)] = stack.itemsize
    wire_len = header_len + packets.payload_len
    captured_len = np.minimum(wire_len, snaplen_bytes)
    end = np.cumsum(_RECORD_BYTES + captured_len)
    begin = end - captured_len  # of the frame
    out = rng.integers(0, 256, int(end[-1]), dtype=np.uint8)

    record = np.empty(len(packets), _RECORD)
    record["s"], us = np.divmod(packets.ts_ns // 1000, 1_000_000)
    record["us"], record["captured_len"], record["wire_len"] = us, captured_len, wire_len
    _put(out, begin - _RECORD_BYTES, _bytes_of(record))
    for (v6, tcp), stack in _STACKS.items():
        rows = np.flatnonzero((is_ipv6 == v6) & (is_tcp == tcp))
        _put(out, begin[rows], _bytes_of(_headers(stack, flows, packets.rows(rows))))
    _put_payloads(out, begin + header_len, captured_len - header_len, flows, packets)
    return out


def _headers(stack: np.dtype[Any], flows: Flows, packets: Packets) -> NDArray[Any]:
    """Of packets that all have this stack."""
    flow, to_client = packets.flow, packets.to_client
    out = np.zeros(len(packets), stack)
    ip, transport = out["ip"], out["transport"]
    is_tcp = "seq" in (transport.dtype.names or ())
    out["ethernet"]["src"] = np.where(to_client[:, None], _SERVER_MAC, _CLIENT_MAC)
    out["ethernet"]["dst"] = np.where(to_client[:, None], _CLIENT_MAC, _SERVER_MAC)
    ip["ttl"] = np.where(to_client, 57, 64)
    ip["protocol"] = 6 if is_tcp else 17
    ip_payload_len = transport.dtype.itemsize + packets.payload_len
    client, server = 1 + flows.client[flow], 1 + flows.server[flow]
    if "ip_id" in (ip.dtype.names or ()):
        out["ethernet"]["kind"], ip["version"], ip["fragment"] = 0x0800, 0x45, 0x4000
        ip["length"] = ip.dtype.itemsize + ip_payload_len
        ip["ip_id"] = flow * 31 + packets.place
        client, server = (10 << 24) + (20 << 16) + client, (203 << 24) + server
        ip["checksum"] = _ipv4_checksum(
            ip, np.where(to_client, server, client), np.where(to_client, client, server)
        )
    else:
        out["ethernet"]["kind"], ip["version"] = 0x86DD, 6 << 28
        ip["length"] = ip_payload_len
        for field, is_server in (("src_net", to_client), ("dst_net", ~to_client)):
            ip[field] = np.where(is_server, 0x20010DB800020000, 0x20010DB800010000)
        ip["src"], ip["dst"] = np.where(to_client, server, client), np.where(to_client, client, server)
    _fill_transport(transport, flows, packets)
    return out


def _ipv4_checksum(ip: NDArray[Any], src: NDArray[np.int64], dst: NDArray[np.int64]) -> NDArray[np.int64]:
    """RFC 791; fills in the addresses, which it covers."""
    ip["src"], ip["dst"] = src, dst
    words = np.ascontiguousarray(ip).view(">u2").reshape(len(ip), ip.dtype.itemsize // 2).astype(np.int64)
    total = words.sum(axis=1)
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    return np.asarray(total ^ 0xFFFF)


def _fill_transport(transport: NDArray[Any], flows: Flows, packets: Packets) -> None:
    client_port, server_port = flows.client_port[packets.flow], flows.server_port[packets.flow]
    transport["src_port"] = np.where(packets.to_client, server_port, client_port)
    transport["dst_port"] = np.where(packets.to_client, client_port, server_port)
    transport["checksum"] = _FILLER_CHECKSUM
    if "length" in (transport.dtype.names or ()):
        transport["length"] = transport.dtype.itemsize + packets.payload_len
        return
    transport["seq"], transport["ack"], transport["flags"] = packets.seq, packets.ack, packets.tcp_flags
    transport["offset"] = transport.dtype.itemsize // 4 << 4
    transport["window"] = 501
    transport["option"] = 0x0101080A  # two NOP, timestamp (RFC 7323)
    clock_ms = packets.ts_ns // 1_000_000 & 0xFFFFFFFF
    transport["ts_val"], transport["ts_echo"] = clock_ms, clock_ms - 20 & 0xFFFFFFFF


def _put_payloads(
    out: NDArray[np.uint8],
    begin: NDArray[np.int64],
    room: NDArray[np.int64],
    flows: Flows,
    packets: Packets,
) -> None:
    """What of a payload is not random; ``room`` is what was captured of each."""
    place, payload_len = packets.place, packets.payload_len

    def put(where: NDArray[np.bool_], *parts: NDArray[Any] | bytes, at: int = 0) -> None:
        """``parts`` one after the other: bytes for all packets, or a row for each packet of the block."""
        rows = np.flatnonzero(where)
        columns = [
            np.broadcast_to(np.frombuffer(part, np.uint8), (len(rows), len(part)))
            if isinstance(part, bytes)
            else part[rows]
            for part in parts
        ]
        _put(out, begin[rows] + at, np.concatenate(columns, axis=1), room[rows] - at)

    is_tls = packets.application == TLS
    hello, name = is_tls & (place == 3), packets.flow % _N_NAMES
    put(hello, _HELLOS[:, : _HELLO_RANDOM.start][name])
    put(hello, _HELLOS[:, _HELLO_RANDOM.stop :][name], at=_HELLO_RANDOM.stop)
    put(is_tls & (place == 5), _SERVER_HELLO)
    put(is_tls & (place > 7) & (payload_len >= 5), b"\x17\x03\x03", _big_endian(payload_len - 5))

    connection_id = flows.connection_id[packets.flow]
    is_quic = packets.application == QUIC
    put(is_quic & (place < 4), bytes.fromhex("c30000000108"), connection_id)
    put(is_quic & (place >= 4), b"\x45", connection_id)

    is_dns = packets.application == DNS
    query_id, question = _big_endian(packets.flow), _QUESTIONS[name]
    put(is_dns & ~packets.to_client, query_id, bytes.fromhex("01000001000000000000"), question)
    answer = bytes.fromhex("c00c00010001000000500004cb000001")
    put(is_dns & packets.to_client, query_id, bytes.fromhex("81800001000100000000"), question, answer)

    put(packets.application == RTP, b"\x80\x00", _big_endian(place))


def _put(
    out: NDArray[np.uint8],
    begin: NDArray[np.int64],
    rows: NDArray[np.uint8],
    room: NDArray[np.int64] | None = None,
) -> None:
    """Write one row of bytes at each place of ``begin``, no more than ``room`` bytes of it."""
    columns = np.arange(rows.shape[1])
    places = begin[:, None] + columns
    if room is None:
        out[places] = rows
    else:
        fits = columns < room[:, None]
        out[places[fits]] = rows[fits]


def _bytes_of(structured: NDArray[Any]) -> NDArray[np.uint8]:
    return structured.view(np.uint8).reshape(len(structured), structured.dtype.itemsize)


def _big_endian(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The low 16 bits, two bytes each."""
    return _bytes_of((values & 0xFFFF).astype(">u2"))


def _extension(kind: int, body: bytes) -> bytes:
    return struct.pack(">HH", kind, len(body)) + body


def _client_hello(host: bytes) -> bytes:
    """A TLS 1.3 ClientHello record of 517 bytes (RFC 8446), padded as browsers do (RFC 7685); random parts are zero."""
    name = struct.pack(">HBH", len(host) + 3, 0, len(host)) + host
    extensions = _extension(0, name) + _extension(10, bytes.fromhex("0006001d00170018"))
    extensions += _extension(16, bytes.fromhex("000c02683208687474702f312e31"))
    extensions += _extension(43, bytes.fromhex("020304")) + _extension(45, bytes.fromhex("0101"))
    ciphers = bytes.fromhex("130113021303c02bc02fc02cc030cca9cca8")
    start = (
        b"\x03\x03"
        + bytes(32)
        + b"\x20"
        + bytes(32)
        + struct.pack(">H", len(ciphers))
        + ciphers
        + b"\x01\x00"
    )
    extensions += _extension(21, bytes(517 - 5 - 4 - len(start) - 2 - len(extensions) - 4))
    body = start + struct.pack(">H", len(extensions)) + extensions
    handshake = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + struct.pack(">H", len(handshake)) + handshake


def _question(host: bytes) -> bytes:
    labels = b"".join(bytes([len(label)]) + label for label in host.split(b"."))
    return labels + bytes.fromhex("0000010001")


def _table(rows: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)


_HOSTS: Final = [f"host{number:02d}.example.org".encode() for number in range(_N_NAMES)]
_HELLOS: Final = _table([_client_hello(host) for host in _HOSTS])
_HELLO_RANDOM: Final = slice(11, 43)  # left as the noise it is
_QUESTIONS: Final = _table([_question(host) for host in _HOSTS])
_SERVER_HELLO: Final = (
    bytes.fromhex("160303007a020000760303")
    + bytes(32)
    + b"\x20"
    + bytes(32)
    + bytes.fromhex("130100002e002b0002030400330024001d0020")
    + bytes(32)
    + bytes.fromhex("140303000101170303")
)
