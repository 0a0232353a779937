"""Our flows beside nfstream's, packet by packet, and a name for everything that differs.

Both meters have at most one open flow for a key, so the flows of one key take its packets in turn: the first as many
as it counts, the next the next. That puts each packet of a capture into one flow of ours and one of nfstream's.
Flows that hold the same packets in the same directions agree. The others are joined where they share packets, and each
such knot is put down to causes (``CAUSES``). A difference without a cause, or a counter that does not fit the packets,
is *unexplained*.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from capture.decode import DecodeOptions, decode
from capture.flow_batch import EndReason, KeepSpec
from capture.flow_key import ICMP, ICMP_COUNTERPART, ICMPV6, ICMPV6_COUNTERPART, ONE_WAY, SCTP, TCP
from capture.flow_table import FlowTable, FlowTableConfig
from capture.readers import open_capture
from capture.reject import Reject
from tests.differential.nfstream_peer import PeerFlow, PeerPacket, see

FIN, SYN, RST, ACK = 1, 2, 4, 16
LINGER_NS: Final = round(FlowTableConfig().tcp_linger_s * 1e9)

# Why flows may differ, and who is right. ``only_ours:`` and ``only_nfstream:`` are followed by the reason for which the
# other side passes a packet over, or by what nfstream steps through.
CAUSES: Final = {
    "icmp_key": "ours: type and code tell a ping from an error message (Community ID, Zeek)",
    "sctp_ports": "ours: SCTP has ports (RFC 9260); to nfstream all associations of two hosts are one flow",
    "outer_vlan": "ours: the outer tag counts too; nfstream keeps the inner one",
    "new_connection": "ours: a SYN that reuses the ports opens a new connection; nfstream does not follow TCP",
    "tcp_end": "ours: the connection had ended, and nothing came for the linger time",
    "syn_ack_first": "ours: who gets a SYN-ACK is the client; for nfstream it is who was seen first",
    "active_successor": "ours: after an active timeout the client stays the client",
    "other_start": "neither: timeouts and directions count from the first packet, which another cause changed",
    "at_the_limit": "neither: nfstream cuts at the timeout, in whole ms; ours behind it, in ns",
    "frame_of_64k": "ours: nfstream counts frame lengths modulo 65,536",
    "ip_in_ip": "nfstream: it shows the inner flows; ours, the tunnel as one flow",
    "only_ours:truncated_ipv6": "ours: nfstream drops IPv6 packets that were not captured whole",
    "only_ours:link_type": "ours: nfstream does not read the link type",
    "only_ours:short_frame": "ours: nfstream passes over frames below 28 bytes",
    "only_ours:ip_total_length": "ours: an IP length of 0 is segmentation offload",
    "only_ours:not_ip": "ours: behind MPLS labels nfstream takes IPv4 alone",
    "only_ours:ports_not_captured": "ours: nfstream reads ports behind the captured bytes",
    "only_nfstream:not_ip": "ours: nfstream looks at the version only, not at the EtherType",
    "only_nfstream:bad_tcp_offset": "ours: there is no TCP header; nfstream does not look at the offset",
    "only_nfstream:bad_udp_length": "ours: the UDP length is wrong; nfstream does not look at it",
    "only_nfstream:truncated_transport": "ours: the IP length ends before the TCP or UDP header does",
}


class OurPacket(NamedTuple):
    """A packet that is in a flow of ours."""

    key: tuple[Any, ...]
    src: tuple[bytes, int]
    tcp_flags: int


class Packet(NamedTuple):
    """A packet as both sides see it; a text is the reason for which a side passes it over."""

    ts_ns: int
    wire_len: int
    ours: OurPacket | str
    theirs: PeerPacket | str


@dataclass(frozen=True)
class Flow:
    """A flow of one side: the numbers of its packets, and which of them come from the initiator."""

    key: tuple[Any, ...]
    packets: tuple[int, ...]
    from_client: tuple[bool, ...]
    frame_bytes: tuple[int, int]
    end_reason: int = 0


@dataclass
class Agreement:
    """What was found in some captures.

    Attributes:
        captures, packets, ours, theirs: what was compared: captures, packets, flows of each side.
        agreed: flows that are the same on both sides, with packets and bytes of both directions.
        causes: how many knots of differing flows each set of causes explains.
        flows_by_cause: flows of ours and of theirs in those knots.
        packets_by_cause: packets that only one side has, by cause.
        unexplained: one line each.
    """

    captures: int = 0
    packets: int = 0
    ours: int = 0
    theirs: int = 0
    agreed: int = 0
    causes: Counter[tuple[str, ...]] = field(default_factory=Counter)
    flows_by_cause: dict[tuple[str, ...], list[int]] = field(
        default_factory=lambda: defaultdict(lambda: [0, 0])
    )
    packets_by_cause: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)

    def add(self, other: Agreement) -> None:
        """Add up."""
        for name in ("captures", "packets", "ours", "theirs", "agreed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.causes += other.causes
        self.packets_by_cause += other.packets_by_cause
        for causes, (ours, theirs) in other.flows_by_cause.items():
            self.flows_by_cause[causes][0] += ours
            self.flows_by_cause[causes][1] += theirs
        self.unexplained += other.unexplained


def compare(path: Path, peer_flows: list[PeerFlow], idle_timeout_s: int, active_timeout_s: int) -> Agreement:
    """Put our flows of a capture beside nfstream's."""
    packets, records = _measure(path, FlowTableConfig(idle_timeout_s, active_timeout_s))
    found = Agreement(captures=1, packets=len(packets), ours=len(records), theirs=len(peer_flows))
    ours = _our_flows(packets, records, found)
    theirs = _their_flows(packets, peer_flows, found)
    same = {_signature(flow) for flow in ours} & {_signature(flow) for flow in theirs}
    found.agreed = len(same)
    for knot in _knots(
        [flow for flow in ours if _signature(flow) not in same],
        [flow for flow in theirs if _signature(flow) not in same],
    ):
        causes = _causes(packets, *knot, (idle_timeout_s, active_timeout_s))
        found.packets_by_cause.update(cause for cause in causes.elements() if cause.startswith("only_"))
        names = tuple(sorted(causes))
        unknown = [name for name in names if name not in CAUSES]
        if unknown or not names:
            found.unexplained.append(f"{_describe(packets, *knot)}: {', '.join(unknown) or 'no cause'}")
            continue
        found.causes[names] += 1
        found.flows_by_cause[names][0] += len(knot[0])
        found.flows_by_cause[names][1] += len(knot[1])
    found.unexplained = [f"{path.name}: {line}" for line in found.unexplained]
    return found


def _signature(flow: Flow) -> tuple[Any, ...]:
    return flow.packets, flow.from_client, flow.frame_bytes


# ------------------------------------------------------------------------------------- packets, flows


def _measure(path: Path, config: FlowTableConfig) -> tuple[list[Packet], list[Any]]:
    """Every packet, and the records of our flows in order of creation."""
    packets: list[Packet] = []
    table = FlowTable(config, KeepSpec())
    steps = []
    with open_capture(path) as reader:
        for block in reader:
            decoded = decode(block, DecodeOptions(decap="outer"))
            steps += list(table.push(block, decoded))
            rows = zip(
                *(
                    getattr(block, name).tolist()
                    for name in ("ts_ns", "wire_len", "offset", "captured_len", "link_type")
                ),
                _our_packets(decoded),
                strict=True,
            )
            data = block.data.tobytes()
            for ts_ns, wire_len, at, size, link_type, ours in rows:
                packets.append(Packet(ts_ns, wire_len, ours, see(data[at : at + size], link_type)))
    steps += list(table.flush())
    records = [record for step in steps for record in step.ended.records]
    return packets, sorted(records, key=lambda record: int(record["serial"]))


def _our_packets(decoded: Any) -> Iterable[OurPacket | str]:
    names = ("reject", "ip_version", "protocol", "vlan", "src_port", "dst_port", "tcp_flags")
    columns = [getattr(decoded, name).tolist() for name in names]
    src, dst = decoded.src.tobytes(), decoded.dst.tobytes()
    for row, (reject, version, protocol, vlan, src_port, dst_port, flags) in enumerate(
        zip(*columns, strict=True)
    ):
        if reject:
            yield Reject(reject).name.lower()
            continue
        at = slice(16 * row + (12 if version == 4 else 0), 16 * row + 16)
        yield OurPacket(
            _our_key(src[at], dst[at], src_port, dst_port, protocol, tuple(vlan)), (src[at], src_port), flags
        )


def _our_key(
    src: bytes, dst: bytes, src_port: int, dst_port: int, protocol: int, vlan: tuple[int, ...]
) -> tuple[Any, ...]:
    ends = [(src, src_port), (dst, dst_port)]
    if protocol in (ICMP, ICMPV6):
        counterpart = int((ICMP_COUNTERPART if protocol == ICMP else ICMPV6_COUNTERPART)[src_port])
        if counterpart == ONE_WAY:
            return (*ends, protocol, vlan)
        ends = [(src, src_port), (dst, counterpart)]
    return (*sorted(ends), protocol, vlan)


def _record_key(record: Any) -> tuple[Any, ...]:
    skip = 12 if record["ip_version"] == 4 else 0
    ends = bytes(record["client"])[skip:], bytes(record["server"])[skip:]
    ports = int(record["client_port"]), int(record["server_port"])
    return _our_key(*ends, *ports, int(record["protocol"]), tuple(record["vlan"].tolist()))


def _our_flows(packets: list[Packet], records: list[Any], found: Agreement) -> list[Flow]:
    queues = _by_key(
        (number, p.ours.key) for number, p in enumerate(packets) if isinstance(p.ours, OurPacket)
    )
    flows = []
    for record in records:
        key = _record_key(record)
        taken = _take(queues[key], int(record["packets"].sum()))
        skip = 12 if record["ip_version"] == 4 else 0
        client = (bytes(record["client"])[skip:], int(record["client_port"]))
        from_client = tuple(packets[n].ours.src == client for n in taken)  # type: ignore[union-attr]
        counted = _count(packets, taken, from_client)
        said = (*record["packets"].tolist(), *record["frame_bytes"].tolist())
        if counted != said:
            found.unexplained.append(f"our record says {said}, its packets {counted} ({_text(key)})")
        flows.append(Flow(key, taken, from_client, said[2:], int(record["end_reason"])))
    return flows


def _their_flows(packets: list[Packet], peer_flows: list[PeerFlow], found: Agreement) -> list[Flow]:
    queues = _by_key(
        (number, p.theirs.key) for number, p in enumerate(packets) if isinstance(p.theirs, PeerPacket)
    )
    flows = []
    for flow in sorted(peer_flows, key=lambda flow: flow.first_ms):
        taken = _take(queues[flow.key], sum(flow.packets))
        if flow.src == flow.dst:
            from_client = (True,) * len(taken)
        else:
            from_client = tuple(packets[n].theirs.src == flow.src for n in taken)  # type: ignore[union-attr]
        counted = _count(packets, taken, from_client, modulo=65536)
        if counted != (*flow.packets, *flow.frame_bytes):
            found.unexplained.append(f"nfstream says {flow[5:]}, its packets {counted} ({_text(flow.key)})")
        flows.append(Flow(flow.key, taken, from_client, flow.frame_bytes))
    left = sum(map(len, queues.values()))
    if left:
        found.unexplained.append(f"nfstream has {left} packets fewer than expected")
    return flows


def _by_key(numbered: Iterable[tuple[int, tuple[Any, ...]]]) -> dict[tuple[Any, ...], list[int]]:
    queues: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for number, key in numbered:
        queues[key].append(number)
    for queue in queues.values():
        queue.reverse()
    return queues


def _take(queue: list[int], n: int) -> tuple[int, ...]:
    return tuple(queue.pop() for _ in range(min(n, len(queue))))


def _count(
    packets: list[Packet], numbers: Sequence[int], from_client: Sequence[bool], modulo: int = 1 << 32
) -> tuple[int, ...]:
    counts = [0, 0, 0, 0]
    for number, is_up in zip(numbers, from_client, strict=True):
        counts[0 if is_up else 1] += 1
        counts[2 if is_up else 3] += packets[number].wire_len % modulo
    return tuple(counts)


# ---------------------------------------------------------------------------------------- differences


def _knots(ours: list[Flow], theirs: list[Flow]) -> list[tuple[list[Flow], list[Flow]]]:
    """Flows joined where they share packets."""
    parent = list(range(len(ours) + len(theirs)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    holder = {number: node for node, flow in enumerate(ours) for number in flow.packets}
    for node, flow in enumerate(theirs, len(ours)):
        for number in flow.packets:
            if number in holder:
                parent[root(node)] = root(holder[number])
    knots: dict[int, tuple[list[Flow], list[Flow]]] = defaultdict(lambda: ([], []))
    for node, flow in enumerate(ours + theirs):
        knots[root(node)][node >= len(ours)].append(flow)
    return list(knots.values())


def _causes(
    packets: list[Packet], ours: list[Flow], theirs: list[Flow], timeouts_s: tuple[int, int]
) -> Counter[str]:
    causes: Counter[str] = Counter()
    our_flow = {number: flow for flow in ours for number in flow.packets}
    their_flow = {number: flow for flow in theirs for number in flow.packets}
    for number in our_flow.keys() - their_flow.keys():
        causes[f"only_ours:{packets[number].theirs}"] += 1
    for number in their_flow.keys() - our_flow.keys():
        through = packets[number].theirs.through  # type: ignore[union-attr]
        causes[f"only_nfstream:{through or packets[number].ours}"] += 1
    for flow in theirs:
        causes.update(_splits_of_ours(packets, [our_flow[n] for n in flow.packets if n in our_flow]))
    for flow in ours:
        causes.update(_splits_of_theirs(packets, flow, their_flow, timeouts_s))
    causes.update(_turns(packets, our_flow, their_flow))
    return causes


def _splits_of_ours(packets: list[Packet], flows: list[Flow]) -> Iterable[str]:
    """Why one flow of nfstream is several of ours."""
    distinct = list(dict.fromkeys(flows))
    for before, after in pairwise(distinct):
        if before.key != after.key:
            yield _key_cause(packets, before, after)
            continue
        if before.end_reason == EndReason.ACTIVE:
            yield "other_start"
        else:
            yield _tcp_split(packets, before, after) if before.key[2] == TCP else "split_by_us"


def _tcp_split(packets: list[Packet], before: Flow, after: Flow) -> str:
    """What ended a connection, by its packets: our flow table is not asked."""
    flags = [0, 0]
    for number, is_up in zip(before.packets, before.from_client, strict=True):
        flags[not is_up] |= packets[number].ours.tcp_flags  # type: ignore[union-attr]
    is_over = bool((flags[0] | flags[1]) & RST or flags[0] & flags[1] & FIN)
    first = packets[after.packets[0]]
    assert isinstance(first.ours, OurPacket)
    if first.ours.tcp_flags & (SYN | ACK | RST) == SYN and (is_over or all(flags)):
        return "new_connection"
    silence_ns = first.ts_ns - packets[before.packets[-1]].ts_ns
    return "tcp_end" if is_over and silence_ns > LINGER_NS else "split_by_us"


def _key_cause(packets: list[Packet], one: Flow, other: Flow) -> str:
    protocol = one.key[2]
    if protocol != other.key[2]:
        return "ip_in_ip" if _is_through(packets, one) else "key_protocol"
    if one.key[3] != other.key[3]:
        return "outer_vlan"
    if protocol in (ICMP, ICMPV6):
        return "icmp_key"
    if protocol == SCTP:
        return "sctp_ports"
    return "ip_in_ip" if _is_through(packets, one) else "key_ports"


def _is_through(packets: list[Packet], flow: Flow) -> bool:
    return any(getattr(packets[n].theirs, "through", "") == "ip_in_ip" for n in flow.packets)


def _splits_of_theirs(
    packets: list[Packet], flow: Flow, their_flow: dict[int, Flow], timeouts_s: tuple[int, int]
) -> Iterable[str]:
    """Why one flow of ours is several of nfstream's."""
    distinct = list(dict.fromkeys(their_flow[n] for n in flow.packets if n in their_flow))
    if _is_through(packets, flow):
        yield "ip_in_ip"
        return
    for before, after in pairwise(distinct):
        if before.key != after.key:
            yield "key_of_nfstream"
        elif before.packets[0] != flow.packets[0]:
            yield "other_start"
        else:
            yield "at_the_limit" if _is_at_limit(packets, before, after, timeouts_s) else "split_by_nfstream"


def _is_at_limit(packets: list[Packet], before: Flow, after: Flow, timeouts_s: tuple[int, int]) -> bool:
    """True if a flow was as old, or silent for as long, as a timeout says, to the millisecond."""
    now_ns = packets[after.packets[0]].ts_ns
    since = (packets[before.packets[-1]].ts_ns, packets[before.packets[0]].ts_ns)
    return any(abs(now_ns - ns - s * 10**9) <= 10**6 for ns, s in zip(since, timeouts_s, strict=True))


def _turns(packets: list[Packet], our_flow: dict[int, Flow], their_flow: dict[int, Flow]) -> Iterable[str]:
    """Why a packet has another direction."""
    seen = set()
    for number, ours in our_flow.items():
        theirs = their_flow.get(number)
        if theirs is None or (id(ours), id(theirs)) in seen:
            continue
        seen.add((id(ours), id(theirs)))
        if ours.frame_bytes != theirs.frame_bytes and any(packets[n].wire_len > 65535 for n in ours.packets):
            yield "frame_of_64k"
        is_up = ours.from_client[ours.packets.index(number)]
        if is_up == theirs.from_client[theirs.packets.index(number)]:
            continue
        yield _turn(packets, ours, theirs)


def _turn(packets: list[Packet], ours: Flow, theirs: Flow) -> str:
    first = packets[ours.packets[0]].ours
    assert isinstance(first, OurPacket)
    if not ours.from_client[0]:
        is_syn_ack = ours.key[2] == TCP and first.tcp_flags & (SYN | ACK | RST) == SYN | ACK
        return "syn_ack_first" if is_syn_ack else "active_successor"
    # Both say that who sent first is the client, of different packets.
    return "other_start" if ours.packets[0] != theirs.packets[0] and theirs.from_client[0] else "turned"


def _describe(packets: list[Packet], ours: list[Flow], theirs: list[Flow]) -> str:
    first = min((flow.packets[0] for flow in ours + theirs if flow.packets), default=-1)
    sides = [
        " ".join(f"{len(flow.packets)}@{min(flow.packets, default='?')}" for flow in side[:6])
        for side in (ours, theirs)
    ]
    return f"packet {first}, {_text((ours or theirs)[0].key)}, ours [{sides[0]}] nfstream [{sides[1]}]"


def _text(key: tuple[Any, ...]) -> str:
    (low, low_port), (high, high_port), protocol, vlan = key
    return f"{low.hex()}:{low_port} {high.hex()}:{high_port} protocol {protocol} vlan {vlan}"
