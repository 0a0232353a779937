"""Made-up traffic to measure with: a capture like that of an office's uplink, the same bytes for the same seed.

TLS over TCP 60 %, QUIC 17 %, DNS 18 %, RTP 5 % of the flows, heavy-tailed in packets, 20 % over IPv6, in bursts.
Headers, sequence numbers, handshakes and IPv4 checksums are right; what would be encrypted is random; TCP and UDP
checksums are a filler, as most of a payload lies behind the snaplen and is never made.

F is the number of flows, n of packets. Flows are planned first, then their packets, then bytes, in columns throughout.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import UsageError
from netcls import bench_frames
from netcls.bench_frames import ACK, DNS, FIN, MSS, PSH, QUIC, RTP, SYN, TLS, Flows, Packets

SNAPLEN_BYTES: Final = 400
LEAST_SNAPLEN_BYTES: Final = 128  # holds every header
PACKETS_PER_FLOW: Final = 33

_SHARES: Final = (0.60, 0.17, 0.18, 0.05)  # of TLS, QUIC, DNS, RTP
_FEWEST_PACKETS: Final = np.array([13, 6, 2, 8])
_IPV6_SHARE: Final = 0.2
_EPOCH_NS: Final = 1_760_000_000 * 10**9
_N_CLIENTS: Final = 4000
_N_SERVERS: Final = 3000
_CHUNK_PACKETS: Final = 50_000
_LONGEST_PAUSE_US: Final = 20e6
# SYN, SYN-ACK, ACK, ClientHello, ACK, two segments of ServerHello, ACK, Finished.
_OPENING_TO_CLIENT: Final = np.array([0, 1, 0, 0, 1, 1, 1, 0, 0], bool)
_OPENING_BYTES: Final = np.array([0, 0, 0, 517, 0, MSS, MSS, 0, 80])
_CLOSING_PACKETS: Final = 3  # FIN of the client, FIN of the server, ACK
_CLOSING_SHARE: Final = 0.9
_QUIC_OPENING_TO_CLIENT: Final = np.array([0, 1, 1, 0], bool)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What to make.

    Attributes:
        n_packets: of all flows together.
        n_flows: 0: one for every 33 packets.
        snaplen_bytes: captured of each frame at most; 128 or more.
        starts_s: flows start within so many seconds.
        seed: of everything.

    Raises:
        UsageError: from the constructor, if a flow could not have its opening, or headers would be cut.
    """

    n_packets: int
    n_flows: int = 0
    snaplen_bytes: int = SNAPLEN_BYTES
    starts_s: int = 240
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_flows == 0:
            object.__setattr__(self, "n_flows", max(self.n_packets // PACKETS_PER_FLOW, 1))
        needed = int(_FEWEST_PACKETS.max()) * self.n_flows
        if self.n_flows < 1 or self.n_packets < needed:
            raise UsageError(
                f"{self.n_packets} packets are too few for {self.n_flows} flows; give at least {needed}"
            )
        if self.snaplen_bytes < LEAST_SNAPLEN_BYTES:
            raise UsageError(
                f"snaplen is {self.snaplen_bytes} bytes; give at least {LEAST_SNAPLEN_BYTES}, so that headers are whole"
            )


def write_capture(path: str | os.PathLike[str], traffic: Traffic, *, first_packets: int | None = None) -> int:
    """Write a classic pcap (microseconds, Ethernet).

    Args:
        path: of the file; overwritten.
        traffic: what it holds.
        first_packets: write only so many; None: all.

    Returns:
        Flows in the file.
    """
    rng = np.random.default_rng(traffic.seed)
    flows = _plan_flows(rng, traffic)
    packets = _plan_packets(rng, flows)
    if first_packets is not None:
        packets = packets.rows(slice(0, first_packets))
    with Path(path).open("wb") as file:
        file.write(bench_frames.file_header(traffic.snaplen_bytes))
        for start in range(0, len(packets), _CHUNK_PACKETS):
            chunk = packets.rows(slice(start, start + _CHUNK_PACKETS))
            file.write(bench_frames.records(rng, flows, chunk, traffic.snaplen_bytes).data)
    return len(np.unique(packets.flow))


def _plan_flows(rng: np.random.Generator, traffic: Traffic) -> Flows:
    n_flows = traffic.n_flows
    application = rng.choice(len(_SHARES), n_flows, p=_SHARES)
    application[0] = TLS  # takes the packets that rounding leaves over, so it cannot be DNS
    weight = np.where(application == DNS, 0.0, rng.lognormal(0.0, 1.5, n_flows))
    n_packets = _FEWEST_PACKETS[application]
    spare = traffic.n_packets - int(n_packets.sum())
    n_packets = n_packets + np.floor(weight / weight.sum() * spare).astype(np.int64)
    n_packets[0] += traffic.n_packets - int(n_packets.sum())
    # Client and client port together are a number of their own for every flow: no two flows share a five-tuple.
    round_of_ports, client = np.divmod(rng.permutation(n_flows), _N_CLIENTS)
    server = rng.integers(0, _N_SERVERS, n_flows)
    return Flows(
        application=application,
        n_packets=n_packets,
        is_ipv6=rng.random(n_flows) < _IPV6_SHARE,
        start_ns=_EPOCH_NS + np.sort(rng.integers(0, traffic.starts_s * 10**9, n_flows)),
        client=client,
        server=np.where(application == DNS, server % 8, server),
        client_port=20_000 + (round_of_ports * 7919 + client * 31) % 40_000,
        server_port=np.array([443, 443, 53, 5004])[application],
        first_seq=rng.integers(1, 2**32, (n_flows, 2)),
        connection_id=rng.integers(0, 256, (n_flows, 8), dtype=np.uint8),
        closes=rng.random(n_flows) < _CLOSING_SHARE,
    )


def _plan_packets(rng: np.random.Generator, flows: Flows) -> Packets:
    """All packets in the order of time."""
    n_flows, n = len(flows.n_packets), int(flows.n_packets.sum())
    flow = np.repeat(np.arange(n_flows), flows.n_packets)
    first = np.cumsum(flows.n_packets) - flows.n_packets
    place = np.arange(n) - first[flow]
    application = flows.application[flow]
    closing = (application == TLS) & flows.closes[flow]
    from_end = flows.n_packets[flow] - place
    closing &= from_end <= _CLOSING_PACKETS
    to_client, payload = _directions_and_sizes(rng, application, place)
    to_client[closing] = from_end[closing] == 2
    payload[closing] = 0
    # The IPv6 header is 20 bytes longer and the MTU is the same.
    payload = np.minimum(payload, np.where(flows.is_ipv6[flow] & (application == TLS), MSS - 20, MSS))
    tcp_flags = np.where(payload > 0, ACK | PSH, ACK)
    tcp_flags[place == 0] = SYN
    tcp_flags[place == 1] = SYN | ACK
    tcp_flags[closing & (from_end >= 2)] = FIN | ACK
    tcp_flags[application != TLS] = 0
    seq, ack = _sequence_numbers(flows, flow, first, to_client, payload, tcp_flags)
    ack[place == 0] = 0
    ts_ns = flows.start_ns[flow] + _elapsed_ns(rng, flow, first, place)
    packets = Packets(ts_ns, flow, place, application, to_client, payload, tcp_flags, seq, ack)
    return packets.rows(np.argsort(ts_ns, kind="stable"))


def _directions_and_sizes(
    rng: np.random.Generator, application: NDArray[np.int64], place: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Who sends each packet, and how many bytes of payload."""
    n = len(place)
    roll, size = rng.random(n), rng.random(n)
    to_client = rng.random(n) < np.array([0.6, 0.7, 0.5, 0.5])[application]
    payload = np.full(n, 172)  # RTP: 20 ms of G.711 and its header

    rows = application == TLS
    segment = np.where(roll < 0.8, MSS, 40 + (size * 1400).astype(np.int64))
    request = np.where(roll < 0.7, 0, 30 + (size * 600).astype(np.int64))
    payload[rows] = np.where(to_client, segment, request)[rows]
    rows &= place < len(_OPENING_BYTES)
    to_client[rows] = _OPENING_TO_CLIENT[place[rows]]
    payload[rows] = _OPENING_BYTES[place[rows]]

    rows = application == QUIC
    segment = np.where(roll < 0.85, 1252, 60 + (size * 1150).astype(np.int64))
    payload[rows] = np.where(to_client, segment, 25 + (size * 50).astype(np.int64))[rows]
    rows &= place < len(_QUIC_OPENING_TO_CLIENT)
    to_client[rows] = _QUIC_OPENING_TO_CLIENT[place[rows]]
    payload[rows] = 1200

    rows = application == DNS
    to_client[rows] = place[rows] % 2 == 1
    payload[rows] = np.where(to_client, bench_frames.DNS_ANSWER_BYTES, bench_frames.DNS_QUERY_BYTES)[rows]
    to_client[(application == RTP) & (place == 0)] = False
    return to_client, payload


def _sequence_numbers(
    flows: Flows,
    flow: NDArray[np.int64],
    first: NDArray[np.int64],
    to_client: NDArray[np.bool_],
    payload: NDArray[np.int64],
    tcp_flags: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``seq`` and ``ack`` of each packet: what its side, and the other, has sent before; SYN and FIN count one."""
    step = payload + ((tcp_flags & (SYN | FIN)) > 0)
    sent: list[NDArray[Any]] = []
    for side in (0, 1):
        total = np.concatenate(([0], np.cumsum(np.where(to_client == side, step, 0))[:-1]))
        sent.append(flows.first_seq[flow, side] + total - total[first][flow])
    seq, ack = np.where(to_client, sent[::-1], sent)
    return seq & 0xFFFFFFFF, ack & 0xFFFFFFFF


def _elapsed_ns(
    rng: np.random.Generator, flow: NDArray[np.int64], first: NDArray[np.int64], place: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Since the flow's first packet: short gaps in bursts, and now and then a pause."""
    gap_us = rng.exponential(800.0, len(flow))
    pauses = rng.random(len(flow)) < 0.12
    gap_us[pauses] = np.minimum(rng.lognormal(11.0, 1.0, int(pauses.sum())), _LONGEST_PAUSE_US)
    gap_us[place == 0] = 0
    elapsed = np.cumsum(1000 * (1 + gap_us.astype(np.int64)))
    return np.asarray(elapsed - elapsed[first][flow])
