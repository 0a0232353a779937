"""Long, seeded, unpleasant traffic: few hosts, any flags, time that jumps both ways."""

from __future__ import annotations

import random

from capture.flow_key import ICMP, TCP, UDP
from tests.flows_builder import ACK, FIN, PSH, RST, SYN, A, B, Packet, S, ip4

_FLAGS = (ACK, ACK, PSH | ACK, SYN, SYN | ACK, FIN | ACK, RST)
_STEPS_NS = (0, 1000, S // 100, S // 100, S // 10, S // 10, S, -S // 10, -S)
_JUMPS_NS = (40 * S, 500 * S, -20 * S)


def random_traffic(seed: int, n: int) -> list[Packet]:
    """``n`` packets of about fifty tuples, the 300th from the far future."""
    rng = random.Random(seed)
    ts_ns, packets = 10**18, []
    for number in range(n):
        jumps = rng.random() < 0.01
        ts_ns += rng.choice(_JUMPS_NS if jumps else _STEPS_NS)
        protocol = rng.choice((TCP, TCP, TCP, UDP, ICMP))
        ports = rng.choice((80, 1000)), rng.choice((80, 1000))
        if protocol == ICMP:
            ports = rng.choice((0, 8, 3)), rng.choice((0, 1))
        packets.append(
            Packet(
                2**62 if number == 299 else ts_ns,
                rng.choice((A, B, ip4("10.9.0.1"))),
                rng.choice((A, B)),
                *ports,
                protocol=protocol,
                tcp_flags=rng.choice(_FLAGS) if protocol == TCP else 0,
                tcp_seq=rng.choice((1, 2)),
                tcp_ack=rng.choice((1, 2)),
                payload_len=rng.choice((0, 5, 40)),
                header_len=rng.choice((28, 40, 60)),
                padding_len=rng.choice((0, 6)),
                cut_len=rng.choice((0, 0, 0, 3, 60, 150)),
                reject=rng.choice((0, 0, 0, 0, 7)),
                filler=rng.randrange(255),
            )
        )
    return packets
