"""Write the captures that bench_end_to_end.py measures on; the same bytes for the same seed.

python bench/make_captures.py OUT_DIR [--packets 500000] [--flows N] [--snaplen 400] [--seed 0]

mix.pcap   the traffic of netcls.bench_traffic: TLS, QUIC, DNS, RTP, 20 % IPv6
few.pcap   the same with few flows, for what takes a second a flow
one.pcap   the first packet of mix.pcap: what a program costs before it has work
"""

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path

from netcls.bench_traffic import PACKETS_PER_FLOW, SNAPLEN_BYTES, Traffic, write_capture


@dataclass(frozen=True)
class Capture:
    """A file with what was put into it."""

    path: Path
    packets: int
    flows: int


def make(out: Path, traffic: Traffic, few_flows: int) -> tuple[Capture, Capture, Capture]:
    """Mix, few and one; ``few_flows`` is the number of flows of the second."""
    few = Traffic(
        PACKETS_PER_FLOW * few_flows, few_flows, snaplen_bytes=traffic.snaplen_bytes, seed=traffic.seed
    )
    captures = []
    for name, what, first in (("mix", traffic, None), ("few", few, None), ("one", traffic, 1)):
        path = out / f"{name}.pcap"
        n_flows = write_capture(path, what, first_packets=first)
        captures.append(Capture(path, first or what.n_packets, n_flows))
    return captures[0], captures[1], captures[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--packets", type=int, default=500_000)
    parser.add_argument("--flows", type=int, default=0, help="0: one for every 33 packets")
    parser.add_argument("--few-flows", type=int, default=200)
    parser.add_argument("--snaplen", type=int, default=SNAPLEN_BYTES, help="bytes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    traffic = Traffic(given.packets, given.flows, snaplen_bytes=given.snaplen, seed=given.seed)
    for capture in make(given.out, traffic, given.few_flows):
        digest = hashlib.sha256(capture.path.read_bytes()).hexdigest()[:16]
        size = capture.path.stat().st_size
        print(
            f"{capture.path}: {capture.packets} packets, {capture.flows} flows, {size} bytes, sha256 {digest}"
        )


if __name__ == "__main__":
    main()
