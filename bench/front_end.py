"""The capture front end against its peers on one large capture, in CPU seconds: the lines of issue 4.

python bench/front_end.py [--packets 2000000] [--rounds 3]

netcls flows (without server names, which the peers do not look for, and with), nfstream (no dissection), a dpkt decode
loop, tcpdump -r FILE -w /dev/null; netcls tokens (NetMamba's) and nfstream with a plugin that keeps five packets.
In turn; the ratio is the result. Prints JSON. About 4 CPU minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from bench_end_to_end import NETCLS, netcls_counts, peer, peer_counts
from cpu_rounds import Road, ratio_of, run, run_in_turn

from netcls.bench_traffic import SNAPLEN_BYTES

# ours, theirs, what is asked: at least so many times, of work or of the whole command.
LINES = (
    ("netcls flows", "nfstream", "work", ">= 15"),
    ("netcls flows", "dpkt decode", "work", ">= 30"),
    ("tcpdump", "netcls flows", "work", "<= 2.5"),
    ("netcls tokens", "nfstream tokens", "work", ">= 30"),
    ("netcls flows", "nfstream", "whole", ">= 5"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packets", type=int, default=2_000_000)
    parser.add_argument("--snaplen", type=int, default=SNAPLEN_BYTES)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        tokens = str(Path(folder) / "tokens.npz")
        # In a process of its own: what a child is said to have used in memory begins at what its parent has.
        size = [f"--packets={given.packets}", f"--snaplen={given.snaplen}"]
        script = Path(__file__).with_name("make_captures.py")
        run([sys.executable, str(script), folder, *size])
        mix, one = Path(folder) / "mix.pcap", Path(folder) / "one.pcap"
        roads = [
            Road(
                "netcls flows", lambda c: [NETCLS, "flows", c, "-f", "none", "-v", "--no-sni"], netcls_counts
            ),
            Road(
                "netcls flows with names", lambda c: [NETCLS, "flows", c, "-f", "none", "-v"], netcls_counts
            ),
            Road("tcpdump", lambda c: ["tcpdump", "-r", c, "-w", "/dev/null"], lambda _: (None, 0)),
            Road("nfstream", peer("nfstream_flows"), peer_counts),
            Road("dpkt decode", peer("dpkt_decode"), peer_counts),
            Road(
                "netcls tokens",
                lambda c: [NETCLS, "tokens", c, "--representation", "netmamba", "-f", "npz", "-o", tokens],
                lambda _: (None, 0),
            ),
            Road("nfstream tokens", peer("nfstream_tokens"), peer_counts),
        ]
        run_in_turn(roads, str(mix), str(one), given.rounds)
    cost = {road.name: road for road in roads}
    ratios = {}
    for ours, theirs, part, bar in LINES:
        pair = [cost[name] for name in (ours, theirs)]
        seconds = [road.work_cpu_s() if part == "work" else [c.cpu_s for c in road.whole] for road in pair]
        ratios[f"{theirs} / {ours}, {part} ({bar})"] = ratio_of(*seconds)
    result = {
        "packets": given.packets,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "cpu_s": {road.name: round(statistics.median(c.cpu_s for c in road.whole), 2) for road in roads},
        "start_up_cpu_s": {road.name: round(road.start_up_cpu_s, 2) for road in roads},
        "peak_mib": {road.name: round(max(c.peak_mib for c in road.whole)) for road in roads},
        "packets_counted": {road.name: road.count(road.whole[0].said)[0] for road in roads},
        "ratios": ratios,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
