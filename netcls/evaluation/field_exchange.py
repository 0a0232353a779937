"""One field exchanged among flows, so that it says nothing about its own flow any more; the rest stays.

Works on raw flows, so that whatever representation a model has, it sees the changed packets. A flow gets the field
of one other flow, its donor, of the same IP version and protocol. F is the number of flows, M the packets with bytes.

Fields of kind ``identity`` name a place, a host, a recording; those of kind ``behaviour`` are what the traffic does.

========== ========= ==================================================================================================
field      kind      what is exchanged
========== ========= ==================================================================================================
addresses  identity  IPv4 and IPv6 addresses
ports      identity  ports of TCP, UDP and SCTP
ttl        identity  TTL, hop limit
ip_id      identity  IPv4 identification, IPv6 flow label
seq_ack    identity  TCP sequence and acknowledgement numbers
timestamps identity  TCP timestamps
checksums  identity  IPv4, TCP, UDP and ICMP checksums
ip_version identity  the version of any flow: where it is another, the IP headers are translated (RFC 7915)
opening    identity  the first packet of TCP: whether the capture saw the SYN, who spoke first, the stack's options
tos        behaviour TOS, traffic class
sizes      behaviour IP and UDP lengths
times      behaviour times between the packets
flags      behaviour TCP flags
window     behaviour TCP window
payload    behaviour the payload bytes
========== ========= ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from capture.flow_batch import FlowBatch

IDENTITY: Final = (
    "addresses",
    "ports",
    "ttl",
    "ip_id",
    "seq_ack",
    "timestamps",
    "checksums",
    "ip_version",
    "opening",
)
BEHAVIOUR: Final = ("tos", "sizes", "times", "flags", "window", "payload")
FIELDS: Final = IDENTITY + BEHAVIOUR

_TCP, _UDP, _SCTP, _ICMP = 6, 17, 132, 1
_IPV4_HEADER, _IPV6_HEADER = 20, 40
_TIMESTAMPS_OPTION = 8


def exchange(flows: FlowBatch, field: str, header_bytes: int, rng: np.random.Generator) -> FlowBatch:
    """The flows with one field exchanged; the given ones stay as they are.

    Args:
        flows: raw; ``data`` holds ``header_bytes`` of header, then payload.
        field: one of ``FIELDS``.
        header_bytes: H.
        rng: decides who gets whose.
    """
    copy = _Exchange(
        FlowBatch(flows.records.copy(), flows.packets.copy(), flows.data.copy()),
        flows,
        header_bytes,
        _donors(flows, rng),
        rng,
    )
    _HOW[field](copy)
    return copy.to


def _donors(flows: FlowBatch, rng: np.random.Generator) -> NDArray[np.intp]:
    """Whose field each flow gets: a permutation within the flows of one IP version and protocol."""
    kinds = flows.records["ip_version"].astype(np.int64) * 256 + flows.records["protocol"]
    donor = np.arange(len(flows))
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        donor[rows] = rows[rng.permutation(len(rows))]
    return donor


class FieldChange(Protocol):
    """What a field is changed through; exchanged here, removed in :mod:`netcls.evaluation.field_removal`.

    Attributes:
        source: the flows as they were.
    """

    source: FlowBatch

    def of_protocol(self, *protocols: int) -> NDArray[np.bool_]:
        """Flows of these protocols: bool (F,)."""

    def is_ipv4(self) -> NDArray[np.bool_]:
        """Flows of IPv4: bool (F,)."""

    def header(
        self, chosen: NDArray[np.bool_], start: int, n_bytes: int, *, behind_l4: bool, same_way: bool = False
    ) -> None:
        """Change header bytes of the chosen flows."""

    def columns(self, chosen: NDArray[np.bool_], *names: str, same_way: bool = False) -> None:
        """Change fields of their packets."""

    def of_records(self, chosen: NDArray[np.bool_], *names: str) -> None:
        """Change fields of their records."""


@dataclass(slots=True)
class _Exchange:
    """A copy that is changed, the flows it came from, and who gets whose field."""

    to: FlowBatch
    source: FlowBatch
    header_bytes: int
    donor: NDArray[np.intp]
    rng: np.random.Generator

    def present(self) -> NDArray[np.bool_]:
        """Packets with bytes in the flow and in its donor: bool (F, M)."""
        n_kept = self.source.records["n_kept"]
        n = np.minimum(n_kept, n_kept[self.donor])
        return np.asarray(np.arange(self.source.data.shape[1])[None, :] < n[:, None])

    def of_protocol(self, *protocols: int) -> NDArray[np.bool_]:
        return np.isin(self.source.records["protocol"], protocols)

    def is_ipv4(self) -> NDArray[np.bool_]:
        return np.asarray(self.source.records["ip_version"] == 4)

    def header(
        self, chosen: NDArray[np.bool_], start: int, n_bytes: int, *, behind_l4: bool, same_way: bool = False
    ) -> None:
        """Exchange header bytes in the chosen flows, clipped to the kept header.

        Args:
            chosen: bool (F,).
            start: from the IP header's first byte, or the transport header's.
            n_bytes: how many.
            behind_l4: count from the transport header.
            same_way: take the donor's first packet of the same direction, not the one at the same place.
        """
        flow, packet = np.nonzero(self.present() & chosen[:, None])
        other = self.donor[flow]
        theirs = self._first_same_way(flow, packet, other) if same_way else packet
        offset = self.source.packets["l4_offset"].astype(np.int64)
        to = start + (offset[flow, packet] if behind_l4 else 0)
        source = start + (offset[other, theirs] if behind_l4 else 0)
        for number in range(n_bytes):
            inside = np.broadcast_to(np.maximum(to, source) + number < self.header_bytes, flow.shape)
            at, by = (np.broadcast_to(place, flow.shape)[inside] + number for place in (to, source))
            value = self.source.data[other[inside], theirs[inside], by]
            self.to.data[flow[inside], packet[inside], at] = value

    def columns(self, chosen: NDArray[np.bool_], *names: str, same_way: bool = False) -> None:
        """Exchange the same field in the packets' columns."""
        n_kept = self.source.records["n_kept"]
        n = np.minimum(n_kept, n_kept[self.donor])
        there = np.arange(self.source.packets.shape[1])[None, :] < n[:, None]
        flow, packet = np.nonzero(there & chosen[:, None])
        other = self.donor[flow]
        theirs = self._first_same_way(flow, packet, other) if same_way else packet
        for name in names:
            self.to.packets[name][flow, packet] = self.source.packets[name][other, theirs]

    def of_records(self, chosen: NDArray[np.bool_], *names: str) -> None:
        """Exchange the same field in the flows' records."""
        for name in names:
            self.to.records[name][chosen] = self.source.records[name][self.donor][chosen]

    def _first_same_way(
        self, flow: NDArray[np.intp], packet: NDArray[np.intp], other: NDArray[np.intp]
    ) -> NDArray[np.intp]:
        """The donor's first packet that goes the same way; the one at the same place where it has none."""
        direction = self.source.packets["direction"]
        there = np.arange(direction.shape[1])[None, :] < self.source.records["n_kept"][:, None]
        ways = [there & (direction == way) for way in (0, 1)]
        first = np.stack([np.where(way.any(axis=1), way.argmax(axis=1), -1) for way in ways], axis=1)
        found = first[other, direction[flow, packet]]
        n_with_bytes = self.source.data.shape[1]
        has_bytes = (found >= 0) & ((found < n_with_bytes) | (packet >= n_with_bytes))
        return np.asarray(np.where(has_bytes, found, packet))


def _addresses(x: FieldChange) -> None:
    x.header(x.is_ipv4(), 12, 8, behind_l4=False, same_way=True)
    x.header(~x.is_ipv4(), 8, 32, behind_l4=False, same_way=True)
    x.of_records(np.ones(len(x.source), bool), "client", "server")


def _ports(x: FieldChange) -> None:
    chosen = x.of_protocol(_TCP, _UDP, _SCTP)
    x.header(chosen, 0, 4, behind_l4=True, same_way=True)
    x.of_records(chosen, "client_port", "server_port")


def _ttl(x: FieldChange) -> None:
    x.header(x.is_ipv4(), 8, 1, behind_l4=False, same_way=True)
    x.header(~x.is_ipv4(), 7, 1, behind_l4=False, same_way=True)
    x.columns(np.ones(len(x.source), bool), "ttl", same_way=True)


def _ip_id(x: FieldChange) -> None:
    x.header(x.is_ipv4(), 4, 2, behind_l4=False)
    x.header(~x.is_ipv4(), 2, 2, behind_l4=False)


def _seq_ack(x: FieldChange) -> None:
    x.header(x.of_protocol(_TCP), 4, 8, behind_l4=True)
    x.columns(x.of_protocol(_TCP), "tcp_seq", "tcp_ack")


def _checksums(x: FieldChange) -> None:
    x.header(x.is_ipv4(), 10, 2, behind_l4=False)
    for protocol, start in ((_TCP, 16), (_UDP, 6), (_ICMP, 2)):
        x.header(x.of_protocol(protocol), start, 2, behind_l4=True)


def _timestamps(x: _Exchange) -> None:
    """Values of the timestamp option (RFC 7323, 3.2), wherever it stands in either packet."""
    flow, packet = np.nonzero(x.present() & x.of_protocol(_TCP)[:, None])
    for f, k in zip(flow.tolist(), packet.tolist(), strict=True):
        other = int(x.donor[f])
        to, source = (timestamps_at(x.source, row, k, x.header_bytes) for row in (f, other))
        if to is not None and source is not None:
            x.to.data[f, k, to : to + 8] = x.source.data[other, k, source : source + 8]


def timestamps_at(flows: FlowBatch, flow: int, packet: int, header_bytes: int) -> int | None:
    """Where the values of the timestamp option begin; None where there is none in the kept bytes."""
    row = flows.data[flow, packet]
    end = min(int(flows.packets["header_len"][flow, packet]), header_bytes)
    at = int(flows.packets["l4_offset"][flow, packet]) + 20
    while at + 1 < end and row[at] != 0:
        if row[at] == 1:
            at += 1
            continue
        size = int(row[at + 1])
        if size < 2:
            return None
        if row[at] == _TIMESTAMPS_OPTION and size == 10 and at + 10 <= end:
            return at + 2
        at += size
    return None


def _ip_version(x: _Exchange) -> None:
    """Give each flow the version of a random one by translating its IP headers; extension headers and options are lost.

    Where all flows are of one version nothing changes: a model need not know the other one.
    """
    version_of = x.source.records["ip_version"]
    for flow in np.flatnonzero(version_of != version_of[x.rng.permutation(len(x.source))]).tolist():
        translate(x.source, x.to, flow, x.header_bytes)


def translate(source: FlowBatch, to: FlowBatch, flow: int, header_bytes: int) -> None:
    """Write one flow of ``source`` into ``to`` with IP headers of the other version."""
    record, packets = source.records[flow], source.packets[flow]
    n_kept, version = int(record["n_kept"]), int(record["ip_version"])
    for packet in range(min(source.data.shape[1], n_kept)):
        row, l4 = source.data[flow, packet], int(packets["l4_offset"][packet])
        head = np.zeros(_IPV6_HEADER, np.uint8)
        kept = row[: min(l4, _IPV6_HEADER, header_bytes)]
        head[: len(kept)] = kept
        new = translated_ip_header(
            head, version, int(packets["ip_len"][packet]) - l4, int(record["protocol"])
        )
        moved = np.concatenate([new, row[l4:header_bytes], np.zeros(header_bytes, np.uint8)])
        to.data[flow, packet, :header_bytes] = moved[:header_bytes]
    new_l4 = _IPV6_HEADER if version == 4 else _IPV4_HEADER
    longer = new_l4 - packets["l4_offset"][:n_kept].astype(np.int64)
    for name in ("ip_len", "wire_len", "header_len", "l4_offset"):
        to.packets[name][flow, :n_kept] = np.maximum(packets[name][:n_kept] + longer, 0)
    to.records["ip_version"][flow] = 10 - version


def translated_ip_header(
    header: NDArray[np.uint8], version: int, n_bytes: int, protocol: int
) -> NDArray[np.uint8]:
    """An IPv6 header for an IPv4 one, and the other way round, with mapped addresses.

    Args:
        header: uint8 (40,), zero-padded.
        version: that it is.
        n_bytes: behind the IP header.
        protocol: of the transport header.
    """
    if version == 4:
        new = np.zeros(_IPV6_HEADER, np.uint8)
        new[0], new[1] = 0x60 | (header[1] >> 4), (header[1] & 15) << 4
        new[4:6] = divmod(n_bytes & 0xFFFF, 256)
        new[6], new[7] = protocol, header[8]
        new[18:20], new[20:24] = 255, header[12:16]
        new[34:36], new[36:40] = 255, header[16:20]
        return new
    new = np.zeros(_IPV4_HEADER, np.uint8)
    new[0], new[1] = 0x45, (header[0] & 15) << 4 | header[1] >> 4
    new[2:4] = divmod((n_bytes + _IPV4_HEADER) & 0xFFFF, 256)
    new[6], new[8], new[9] = 0x40, header[7], protocol
    new[12:16], new[16:20] = header[20:24], header[36:40]
    return new


def _opening(x: _Exchange) -> None:
    chosen = x.of_protocol(_TCP)
    first_ts_ns = x.source.packets["ts_ns"][:, 0]
    x.to.packets[chosen, 0] = x.source.packets[x.donor[chosen], 0]
    x.to.packets["ts_ns"][chosen, 0] = first_ts_ns[chosen]
    if x.source.data.shape[1]:
        x.to.data[chosen, 0] = x.source.data[x.donor[chosen], 0]


def _tos(x: FieldChange) -> None:
    x.header(x.is_ipv4(), 1, 1, behind_l4=False)
    x.header(~x.is_ipv4(), 0, 2, behind_l4=False)
    x.columns(np.ones(len(x.source), bool), "tos")


def _sizes(x: _Exchange) -> None:
    x.header(x.is_ipv4(), 2, 2, behind_l4=False)
    x.header(~x.is_ipv4(), 4, 2, behind_l4=False)
    x.header(x.of_protocol(_UDP), 4, 2, behind_l4=True)
    x.columns(np.ones(len(x.source), bool), "ip_len", "payload_len", "wire_len")


def _times(x: _Exchange) -> None:
    """Each packet gets its donor's distance from the flow's first packet."""
    ts_ns = x.source.packets["ts_ns"]
    since_ns = ts_ns - ts_ns[:, :1]
    n_kept = x.source.records["n_kept"]
    there = np.arange(ts_ns.shape[1])[None, :] < np.minimum(n_kept, n_kept[x.donor])[:, None]
    moved = ts_ns[:, :1] + since_ns[x.donor]
    x.to.packets["ts_ns"][there] = moved[there]


def _flags(x: FieldChange) -> None:
    x.header(x.of_protocol(_TCP), 13, 1, behind_l4=True)
    x.columns(x.of_protocol(_TCP), "tcp_flags")


def _window(x: FieldChange) -> None:
    x.header(x.of_protocol(_TCP), 14, 2, behind_l4=True)
    x.columns(x.of_protocol(_TCP), "tcp_window")


def _payload(x: _Exchange) -> None:
    flow, packet = np.nonzero(x.present())
    other = x.donor[flow]
    x.to.data[flow, packet, x.header_bytes :] = x.source.data[other, packet, x.header_bytes :]


HEADER_FIELDS: Final[dict[str, Callable[[Any], None]]] = {
    "addresses": _addresses,
    "ports": _ports,
    "ttl": _ttl,
    "ip_id": _ip_id,
    "seq_ack": _seq_ack,
    "checksums": _checksums,
    "tos": _tos,
    "flags": _flags,
    "window": _window,
}
"""Fields at a fixed place, changed through `FieldChange` alone."""

_HOW: Final[dict[str, Callable[[Any], None]]] = HEADER_FIELDS | {
    "timestamps": _timestamps,
    "ip_version": _ip_version,
    "opening": _opening,
    "sizes": _sizes,
    "times": _times,
    "payload": _payload,
}
