"""The flow table in plain Python: a dict of objects and three ordered dicts. The rules of decision 0004, nothing else.

No kernel, no list of rows, no buffers: what `capture.flow_table` must equal.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from capture.block import PACKET_FRAGMENT, PACKET_TRUNCATED
from capture.flow_batch import (
    FLOW_DTYPE,
    PACKET_DTYPE,
    QUALITY_DIRECTION_GUESSED,
    QUALITY_FRAGMENTS,
    QUALITY_MIDSTREAM,
    QUALITY_ONE_WAY,
    QUALITY_TIME_BACKWARDS,
    QUALITY_TRUNCATED,
    EndReason,
    KeepSpec,
)
from capture.flow_key import ICMP, ICMP_PAIRS, ICMPV6, ICMPV6_PAIRS, TCP
from capture.flow_table import FlowTableConfig
from capture.kernels.flow_index import MAX_TWINS
from capture.tunnel import DIRECTIONAL
from tests.flows_builder import ACK, FIN, RST, SYN, Packet
from tests.reference.siphash import siphash

STALE_PACKETS = 1000
LATEST_NS = 2**62 - 1
ID_KEY = (0x6E6574636C732E66).to_bytes(8, "little") + (0x6C6F772D69642E31).to_bytes(8, "little")


@dataclass
class Flow:
    key: tuple[Any, ...]
    client: tuple[bytes, int]  # address and port, as in the record
    server: tuple[bytes, int]
    client_end: tuple[bytes, int]  # address and port, as in the key
    first: Packet
    serial: int
    started_ns: int
    seen_ns: int = 0
    quality: int = 0
    packets: list[tuple[int, Packet]] = field(default_factory=list)
    last_ts_ns: int = 0
    syn_seq: dict[int, int] = field(default_factory=dict)
    first_seq: dict[int, int] = field(default_factory=dict)
    fins: set[int] = field(default_factory=set)
    is_closing: bool = False
    is_answered: bool = False
    was_early: bool = False
    end_reason: int = 0
    tunnel_ids: dict[int, int] = field(default_factory=dict)


def counterpart(packet: Packet) -> int | None:
    """The type that answers an ICMP packet's; None if none does."""
    for left, right in {ICMP: ICMP_PAIRS, ICMPV6: ICMPV6_PAIRS}[packet.protocol]:
        if packet.src_port in (left, right):
            return left + right - packet.src_port
    return None


def ends_of(packet: Packet) -> tuple[tuple[bytes, int], tuple[bytes, int], bool]:
    """Source and destination as the key has them, and whether they may be put in order."""
    if packet.protocol not in (ICMP, ICMPV6):
        return (packet.src, packet.src_port), (packet.dst, packet.dst_port), True
    answer = counterpart(packet)
    if answer is None:
        return (packet.src, packet.src_port), (packet.dst, packet.dst_port), False
    return (packet.src, packet.src_port), (packet.dst, answer), True


def key_of(packet: Packet, use_vlan: bool) -> tuple[Any, ...]:
    source, target, may_swap = ends_of(packet)
    low, high = sorted((source, target)) if may_swap else (source, target)
    vlan = packet.vlan if use_vlan else (0, 0)
    return (low, high, packet.protocol, packet.ip_version, vlan, packet.tunnel_path)


def mixed(path: int, word: int) -> int:
    z = (path ^ word) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 32) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 29


def flow_id_of(key: tuple[Any, ...], first: Packet) -> int:
    (low, low_port), (high, high_port), protocol, version, (outer, inner), path = key[:6]
    ts_ns = first.ts_ns
    hash_key = ID_KEY
    if path:
        hash_key = ID_KEY[:8] + mixed(mixed(0x6C6F772D69642E31, path), first.tunnel_id).to_bytes(8, "little")
    message = (
        low + high + struct.pack("<HHBBHqH", low_port, high_port, protocol, version, outer, ts_ns, inner)
    )
    return max(siphash(hash_key, message, 1, 3) & (2**51 - 1), 1)


class NaiveFlowTable:
    """Everything that became ready or ended, in order, in `ready` and `ended`."""

    def __init__(self, config: FlowTableConfig, keep: KeepSpec, n_flows: int, n_slabs: int) -> None:
        self.idle_ns = round(config.idle_timeout_s * 1e9)
        self.active_ns = round(config.active_timeout_s * 1e9)
        self.linger_ns = round(config.tcp_linger_s * 1e9)
        self.early_ns = round(config.ready_timeout_s * 1e9)
        self.use_vlan, self.keep, self.n_flows, self.n_slabs = config.use_vlan, keep, n_flows, n_slabs
        self.flows: dict[tuple[Any, ...], Flow] = {}
        self.idle: OrderedDict[tuple[Any, ...], Flow] = OrderedDict()
        self.closing: OrderedDict[tuple[Any, ...], Flow] = OrderedDict()
        self.holders: OrderedDict[tuple[Any, ...], Flow] = OrderedDict()  # of slabs
        self.ready: list[tuple[Any, Any, Any]] = []
        self.ended: list[Any] = []
        self.clock_ns, self.newest_ns, self.n_stale = 0, -(2**62), 0
        self.n_serials = self.n_packets = self.n_backwards = 0

    def push(self, packet: Packet) -> None:
        if packet.reject:
            return
        self.n_packets += 1
        self.n_backwards += packet.ts_ns < self.newest_ns
        self.tick(packet.ts_ns)
        self.recover(packet.ts_ns)
        key = self.resolved(packet, key_of(packet, self.use_vlan))
        flow = self.flows.get(key)
        if flow is not None:
            direction = self.direction(flow, packet)
            if self.is_new_connection(flow, packet, direction):
                self.end(flow, EndReason.END_DETECTED)
                flow = None
            elif self.clock_ns - flow.started_ns > self.active_ns:
                flow = self.restart(flow, packet)
        if flow is None:
            flow = self.open(key, packet)
        self.join(flow, packet, self.direction(flow, packet))

    def resolved(self, packet: Packet, key: tuple[Any, ...]) -> tuple[Any, ...]:
        """The key of the flow that the packet belongs to, or would begin, where ids differ by direction.

        Up to ``MAX_TWINS`` flows share a key and are numbered; further ones have the id in it.
        """
        if packet.tunnel_kind not in DIRECTIONAL:
            return (*key, "shared", 0)
        by_id = (*key, "by id", packet.tunnel_id)
        for group in ("shared", by_id[6]):
            twins = [flow for flow in self.flows.values() if flow.key[:7] == (*key, group)]
            if group != "shared":
                twins = [flow for flow in twins if flow.key[7] == packet.tunnel_id]
            numbers = {flow.key[7] for flow in twins}
            exact = [f for f in twins if f.tunnel_ids.get(self.direction(f, packet), 0) == packet.tunnel_id]
            unknown = [f for f in twins if not f.tunnel_ids.get(self.direction(f, packet), 0)]
            for found in (exact, unknown):
                if found:
                    return min(found, key=lambda flow: flow.serial).key
            if group == "shared":
                n_shared = len(twins)
                shared = (*key, "shared", min(set(range(MAX_TWINS + 1)) - numbers))
        return shared if n_shared < MAX_TWINS else by_id

    def advance(self, now_ns: int) -> None:
        self.tick(now_ns)
        self.recover(now_ns)

    def flush(self, reason: EndReason) -> None:
        while self.flows:
            flow = self.oldest()
            self.end(flow, EndReason.END_DETECTED if flow.is_closing else reason)

    def tick(self, ts_ns: int) -> None:
        time_ns = min(max(ts_ns, -LATEST_NS), LATEST_NS)
        if time_ns > self.newest_ns:
            self.clock_ns += min(time_ns - self.newest_ns, max(self.idle_ns, self.linger_ns) + 1)
            self.newest_ns = time_ns
        while True:
            overdue = [
                (self.clock_ns - flow.seen_ns - self.linger_ns, 1, flow) for flow in self.closing.values()
            ]
            overdue += [(self.clock_ns - flow.seen_ns - self.idle_ns, 0, flow) for flow in self.idle.values()]
            overdue = [entry for entry in overdue if entry[0] > 0]
            if not overdue:
                break
            # max() keeps the first of equals: within a list, the one seen earlier.
            _, is_closing, flow = max(overdue, key=lambda entry: entry[:2])
            self.end(flow, EndReason.END_DETECTED if is_closing else EndReason.IDLE)
        for flow in sorted(self.holders.values(), key=lambda flow: flow.serial):
            if self.early_ns and not flow.was_early and self.clock_ns - flow.started_ns > self.early_ns:
                flow.was_early = True
                self.give_out(flow)

    def recover(self, ts_ns: int) -> None:
        time_ns = min(max(ts_ns, -LATEST_NS), LATEST_NS)
        is_stale = self.newest_ns - time_ns > max(self.idle_ns, self.linger_ns)
        self.n_stale = self.n_stale + 1 if is_stale else 0
        if self.n_stale == STALE_PACKETS:
            self.newest_ns, self.n_stale = time_ns, 0

    def direction(self, flow: Flow, packet: Packet) -> int:
        low, high = flow.key[:2]
        source, _, _ = ends_of(packet)
        if low == high:  # both ends are one: there is no telling, so by the flow's first packet
            return int(flow.client_end != ("low",))
        return int(source != flow.client_end)

    def is_new_connection(self, flow: Flow, packet: Packet, direction: int) -> bool:
        if packet.tcp_flags & (SYN | ACK | RST) != SYN:
            return False
        if direction in flow.syn_seq:
            is_old = flow.syn_seq[direction] == packet.tcp_seq
        else:
            first = flow.first_seq.get(direction)
            is_old = first is not None and (first - 1 - packet.tcp_seq) % 2**32 < 2**20
        if is_old:
            return False
        return flow.is_closing or flow.is_answered

    def oldest(self) -> Flow:
        heads = [next(iter(flows.values())) for flows in (self.closing, self.idle) if flows]
        return min(heads, key=lambda flow: flow.seen_ns)

    def open(self, key: tuple[Any, ...], packet: Packet) -> Flow:
        if len(self.flows) == self.n_flows:
            self.end(self.oldest(), EndReason.LACK_OF_RESOURCES)
        self.make_slab_room()
        source, target, _ = ends_of(packet)
        sender, receiver = (packet.src, packet.src_port), (packet.dst, packet.dst_port)
        is_turned = packet.tcp_flags & (SYN | ACK | RST) == SYN | ACK
        client_end: Any = target if is_turned else source
        if source == target:
            client_end = ("high",) if is_turned else ("low",)
        flow = Flow(
            key,
            client=receiver if is_turned else sender,
            server=sender if is_turned else receiver,
            client_end=client_end,
            first=packet,
            serial=self.n_serials,
            started_ns=self.clock_ns,
        )
        if packet.protocol == TCP and not packet.tcp_flags & SYN:
            flow.quality = QUALITY_MIDSTREAM | QUALITY_DIRECTION_GUESSED
        self.begin(flow)
        return flow

    def restart(self, old: Flow, packet: Packet) -> Flow:
        successor = Flow(
            old.key, old.client, old.server, old.client_end, packet, self.n_serials, self.clock_ns
        )
        successor.quality = old.quality & (QUALITY_MIDSTREAM | QUALITY_DIRECTION_GUESSED)
        successor.syn_seq, successor.fins = old.syn_seq, old.fins
        successor.first_seq = old.first_seq
        successor.tunnel_ids = dict(old.tunnel_ids)
        successor.is_closing, successor.is_answered = old.is_closing, old.is_answered
        self.end(old, EndReason.ACTIVE)
        self.make_slab_room()
        self.begin(successor)
        return successor

    def begin(self, flow: Flow) -> None:
        self.n_serials += 1
        self.flows[flow.key] = flow
        if self.keep.n_packets:
            self.holders[flow.key] = flow

    def make_slab_room(self) -> None:
        if self.keep.n_packets and len(self.holders) == self.n_slabs:
            self.end(next(iter(self.holders.values())), EndReason.LACK_OF_RESOURCES)

    def join(self, flow: Flow, packet: Packet, direction: int) -> None:
        if not flow.packets:
            flow.last_ts_ns = packet.ts_ns
        if packet.ts_ns < flow.last_ts_ns:
            flow.quality |= QUALITY_TIME_BACKWARDS
        flow.last_ts_ns = max(flow.last_ts_ns, packet.ts_ns)
        if packet.flags & PACKET_TRUNCATED or packet.cut_len:
            flow.quality |= QUALITY_TRUNCATED
        if packet.flags & PACKET_FRAGMENT:
            flow.quality |= QUALITY_FRAGMENTS
        flow.packets.append((direction, packet))
        if not flow.tunnel_ids.get(direction):
            flow.tunnel_ids[direction] = packet.tunnel_id
        if len({way for way, _ in flow.packets}) == 2:
            flow.is_answered = True
        self.follow_tcp(flow, packet, direction)
        flow.seen_ns = self.clock_ns
        self.idle.pop(flow.key, None)
        self.closing.pop(flow.key, None)
        (self.closing if flow.is_closing else self.idle)[flow.key] = flow
        if flow.key in self.holders:
            self.holders.move_to_end(flow.key)
            if len(flow.packets) == self.keep.n_packets:
                self.make_ready(flow)

    def follow_tcp(self, flow: Flow, packet: Packet, direction: int) -> None:
        if packet.tcp_flags & SYN and not packet.tcp_flags & RST:
            flow.syn_seq[direction] = packet.tcp_seq
            if packet.tcp_flags & ACK:
                flow.syn_seq.setdefault(1 - direction, (packet.tcp_ack - 1) % 2**32)
        if packet.tcp_flags and not packet.tcp_flags & SYN and direction not in flow.syn_seq:
            flow.first_seq.setdefault(direction, packet.tcp_seq)
        if packet.tcp_flags & FIN:
            flow.fins.add(direction)
        if packet.tcp_flags & RST or len(flow.fins) == 2:
            flow.is_closing = True

    def end(self, flow: Flow, reason: EndReason) -> None:
        flow.end_reason = reason
        if len({direction for direction, _ in flow.packets}) == 1:
            flow.quality |= QUALITY_ONE_WAY
        if flow.key in self.holders:
            self.make_ready(flow)
        self.ended.append(self.record(flow))
        del self.flows[flow.key]
        self.idle.pop(flow.key, None)
        self.closing.pop(flow.key, None)

    def make_ready(self, flow: Flow) -> None:
        del self.holders[flow.key]
        self.give_out(flow)

    def give_out(self, flow: Flow) -> None:
        packets = np.zeros(self.keep.n_packets, PACKET_DTYPE)
        data = np.zeros((self.keep.n_byte_packets, self.keep.row_bytes), np.uint8)
        for k, (direction, packet) in enumerate(flow.packets):
            packets[k] = self.packet_row(packet, direction)
            if k < self.keep.n_byte_packets:
                data[k] = self.byte_row(packet)
        self.ready.append((self.record(flow), packets, data))

    def packet_row(self, packet: Packet, direction: int) -> Any:
        row = np.zeros((), PACKET_DTYPE)
        for name in (
            "ts_ns",
            "wire_len",
            "ip_len",
            "payload_len",
            "tcp_seq",
            "tcp_ack",
            "tcp_window",
            "header_len",
        ):
            row[name] = getattr(packet, name)
        for name in ("tcp_flags", "ttl", "tos"):
            row[name] = getattr(packet, name)
        row["l4_offset"], row["direction"] = packet.ip_header_len, direction
        return row

    def byte_row(self, packet: Packet) -> Any:
        captured = packet.frame[: packet.l3_offset + packet.ip_len]
        header = captured[packet.l3_offset : packet.payload_offset][: self.keep.header_bytes]
        payload = captured[packet.payload_offset :][: self.keep.payload_bytes]
        row = header.ljust(self.keep.header_bytes, b"\0") + payload.ljust(self.keep.payload_bytes, b"\0")
        return np.frombuffer(row, np.uint8)

    def record(self, flow: Flow) -> Any:
        record = np.zeros((), FLOW_DTYPE)
        record["serial"] = flow.serial
        record["flow_id"] = flow_id_of(flow.key, flow.first)
        record["first_ts_ns"], record["last_ts_ns"] = flow.first.ts_ns, flow.last_ts_ns
        for direction, packet in flow.packets:
            record["packets"][direction] += 1
            record["frame_bytes"][direction] += packet.wire_len
            record["ip_bytes"][direction] += packet.ip_len
            record["payload_bytes"][direction] += packet.payload_len
            record["tcp_flags"][direction] |= packet.tcp_flags
        record["client"] = np.frombuffer(flow.client[0], np.uint8)
        record["server"] = np.frombuffer(flow.server[0], np.uint8)
        record["client_port"], record["server_port"] = flow.client[1], flow.server[1]
        record["vlan"] = flow.first.vlan
        record["protocol"], record["ip_version"] = flow.key[2:4]
        record["end_reason"], record["quality"] = flow.end_reason, flow.quality
        record["tunnel_id"] = [flow.tunnel_ids.get(direction, 0) for direction in range(2)]
        record["tunnel_kind"], record["tunnel_depth"] = flow.first.tunnel_kind, flow.first.tunnel_depth
        record["n_kept"] = min(len(flow.packets), self.keep.n_packets)
        return record
