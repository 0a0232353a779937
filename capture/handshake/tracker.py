"""ClientHellos of the packets that go by, kept until their flow asks for them.

    tracker = HandshakeTracker()
    for block in reader:
        decoded = decoder.decode(block)
        tracker.see(block, decoded)
        for step in table.push(block, decoded):
            names = tracker.take(step.ended.records)      # one Handshake or None a flow

A compiled scan picks the few packets that may matter; only these cost Python. Memory is bounded; the oldest makes room.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.block import DecodedBlock, PacketBlock
from capture.flow_key import TCP, UDP
from capture.handshake import quic
from capture.handshake.tls import ByteStream, Handshake, handshake_bytes, parse_client_hello
from capture.kernels.handshake_scan import find_hellos

MAX_WAITING: Final = 4096  # dialogues whose ClientHello is not complete
MAX_KEPT: Final = 65_536  # ClientHellos whose flow has not asked
MAX_PACKETS: Final = 16  # looked at for one ClientHello
MAX_PACKETS_OF_BLOCK: Final = 1024

_PACKET_COLUMNS: Final = ("reject", "protocol", "src_port", "payload_offset", "payload_len")

# Source address and port, destination address and port, protocol, VLANs, tunnel kind and id.
Key = tuple[bytes, int, bytes, int, int, bytes, int, int]


@dataclass(slots=True)
class HandshakeCounters:
    """What a tracker has done so far.

    Attributes:
        hellos: ClientHellos with a name or protocols.
        incomplete: given up on, or asked for, before all of them had come.
        not_opened: QUIC Initial packets that these keys do not open (those of servers, or damaged).
        no_cryptography: QUIC Initial packets not looked into, because ``cryptography`` is not installed.
        skipped: blocks with more candidates than are looked at.
        evicted: kept or waiting ones that made room.
    """

    hellos: int = 0
    incomplete: int = 0
    not_opened: int = 0
    no_cryptography: int = 0
    skipped: int = 0
    evicted: int = 0


@dataclass(slots=True)
class _Waiting:
    """A ClientHello of which more may come."""

    ts_ns: int
    first_seq: int = 0
    stream: ByteStream = field(default_factory=ByteStream)
    keys: quic.Keys | None = None
    so_far: Handshake = field(default_factory=Handshake)
    n_packets: int = 0


class HandshakeTracker:
    """Server names and ALPN by flow.

    Attributes:
        counters: see :class:`HandshakeCounters`.
    """

    def __init__(self) -> None:
        self.counters = HandshakeCounters()
        self._waiting: OrderedDict[Key, _Waiting] = OrderedDict()
        self._kept: OrderedDict[Key, list[tuple[int, Handshake]]] = OrderedDict()
        self._ports = np.zeros(1 << 16, np.uint8)
        self._n_of_port: dict[int, int] = {}
        self._aes = quic.load_aes()

    def see(self, block: PacketBlock, decoded: DecodedBlock) -> None:
        """Look at the packets of a block, before the flow table does."""
        data = block.data.view()
        data.flags.writeable = False
        rows = np.empty(min(len(block), MAX_PACKETS_OF_BLOCK), np.int64)
        at = (data, block.offset, block.captured_len)
        columns = tuple(getattr(decoded, name) for name in _PACKET_COLUMNS)
        # A dialogue that begins in this block waits from its first packet on: the scan must look again from there.
        seen: set[int] = set()
        for _ in range(MAX_PACKETS):
            n_waiting = len(self._waiting)
            n = find_hellos(at, columns, self._ports, rows)
            self.counters.skipped += n == MAX_PACKETS_OF_BLOCK
            new = [row for row in rows[:n].tolist() if row not in seen]
            if not new:
                break
            for row in new:
                seen.add(row)
                self._see_packet(block, decoded, row)
            if len(self._waiting) == n_waiting == 0:
                break

    def take(self, records: NDArray[Any]) -> list[Handshake | None]:
        """The ClientHello of each flow, which is forgotten then.

        Args:
            records: FLOW_DTYPE (F,).
        """
        if not self._kept and not self._waiting:
            return [None] * len(records)
        return [self._take_one(record) for record in records]

    def _take_one(self, record: Any) -> Handshake | None:
        protocol = int(record["protocol"])
        if protocol not in (TCP, UDP):
            return None
        client = record["client"].tobytes(), int(record["client_port"])
        server = record["server"].tobytes(), int(record["server_port"])
        vlan, kind = record["vlan"].tobytes(), int(record["tunnel_kind"])
        ids = record["tunnel_id"].tolist()
        first_ns, last_ns = int(record["first_ts_ns"]), int(record["last_ts_ns"])
        # Where a flow's first packets are missing, its client may be the one that answers.
        for source, target, tunnel_id in ((client, server, ids[0]), (server, client, ids[1])):
            key = (*source, *target, protocol, vlan, kind, tunnel_id)
            waiting = self._waiting.get(key)
            if waiting is not None and first_ns <= waiting.ts_ns <= last_ns:
                self._give_up(key)
            kept = self._kept.pop(key, [])
            others = [entry for entry in kept if not first_ns <= entry[0] <= last_ns]
            if others:
                self._kept[key] = others
            if len(others) < len(kept):
                return next(found for ts_ns, found in kept if first_ns <= ts_ns <= last_ns)
        return None

    def _see_packet(self, block: PacketBlock, decoded: DecodedBlock, row: int) -> None:
        start = int(block.offset[row]) + int(decoded.payload_offset[row])
        stop = min(
            int(block.offset[row]) + int(block.captured_len[row]), start + int(decoded.payload_len[row])
        )
        payload = block.data[start:stop].tobytes()
        key = _key_of(decoded, row)
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = _Waiting(int(block.ts_ns[row]))
        if decoded.protocol[row] == TCP:
            message = self._tcp_message(waiting, payload, int(decoded.tcp_seq[row]))
        else:
            message = self._quic_message(waiting, payload)
        if message is None:
            return
        waiting.n_packets += 1
        found, wants_more = parse_client_hello(message)
        if wants_more and stop - start < decoded.payload_len[row]:
            # What the capture lacks will not come.
            waiting.n_packets = MAX_PACKETS
        if found:
            waiting.so_far = found
        if wants_more and waiting.n_packets < MAX_PACKETS:
            self._wait(key, waiting)
        else:
            self.counters.incomplete += wants_more
            self._finish(key, waiting)

    def _tcp_message(self, waiting: _Waiting, payload: bytes, seq: int) -> bytes | None:
        if waiting.n_packets == 0:
            if payload[:1] != b"\x16":
                return None  # another dialogue from a port that waits
            waiting.first_seq = seq
        offset = (seq - waiting.first_seq + (1 << 31)) % (1 << 32) - (1 << 31)
        waiting.stream.add(offset, payload)
        return handshake_bytes(waiting.stream.prefix)

    def _quic_message(self, waiting: _Waiting, payload: bytes) -> bytes | None:
        if self._aes is None:
            self.counters.no_cryptography += 1
            return None
        opened = False
        for initial in quic.initials(payload):
            # After a Retry the id is new and so are the keys; after the server's answer only the id is.
            fresh = quic.client_keys(initial.version, initial.dcid)
            frames = quic.open_initial(initial, fresh, self._aes)
            keys = fresh
            if (frames is None or initial.is_cut) and waiting.keys is not None:
                frames, keys = quic.open_initial(initial, waiting.keys, self._aes), waiting.keys
            if frames is None:
                self.counters.not_opened += 1
                continue
            opened, waiting.keys = True, keys
            for offset, piece in quic.crypto_pieces(frames):
                waiting.stream.add(offset, piece)
        return waiting.stream.prefix if opened else None

    def _wait(self, key: Key, waiting: _Waiting) -> None:
        if key not in self._waiting:
            if len(self._waiting) == MAX_WAITING:
                self.counters.evicted += 1
                self._give_up(next(iter(self._waiting)))
            self._waiting[key] = waiting
            port = key[1]
            self._n_of_port[port] = self._n_of_port.get(port, 0) + 1
            self._ports[port] = 1

    def _give_up(self, key: Key) -> None:
        self.counters.incomplete += 1
        self._finish(key, self._waiting[key])

    def _finish(self, key: Key, waiting: _Waiting) -> None:
        """No more of this ClientHello is wanted: keep what it said."""
        if self._waiting.pop(key, None) is not None:
            port = key[1]
            self._n_of_port[port] -= 1
            if self._n_of_port[port] == 0:
                del self._n_of_port[port]
                self._ports[port] = 0
        if not waiting.so_far:
            return
        self.counters.hellos += 1
        if len(self._kept) == MAX_KEPT and key not in self._kept:
            self._kept.popitem(last=False)
            self.counters.evicted += 1
        # A second one on the same ports within one flow (a retransmission, another Initial) adds nothing.
        entries = self._kept.setdefault(key, [])
        if len(entries) < MAX_PACKETS:
            entries.append((waiting.ts_ns, waiting.so_far))


def _key_of(decoded: DecodedBlock, row: int) -> Key:
    return (
        decoded.src[row].tobytes(),
        int(decoded.src_port[row]),
        decoded.dst[row].tobytes(),
        int(decoded.dst_port[row]),
        int(decoded.protocol[row]),
        decoded.vlan[row].tobytes(),
        int(decoded.tunnel_kind[row]),
        int(decoded.tunnel_id[row]),
    )
