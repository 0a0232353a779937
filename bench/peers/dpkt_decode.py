"""A decode loop of dpkt: addresses, ports, flags of every packet, nothing kept.

python bench/peers/dpkt_decode.py CAPTURE
"""

import json
import sys

import dpkt


def main() -> None:
    n_packets = total = 0
    with open(sys.argv[1], "rb") as file:  # noqa: PTH123 - as one finds it
        for _, frame in dpkt.pcap.Reader(file):
            n_packets += 1
            ip = dpkt.ethernet.Ethernet(frame).data
            transport = ip.data
            if isinstance(transport, dpkt.tcp.TCP):
                total += transport.sport + transport.dport + transport.flags + len(ip.src) + len(ip.dst)
            elif isinstance(transport, dpkt.udp.UDP):
                total += transport.sport + transport.dport + len(ip.src) + len(ip.dst)
    assert total
    print(json.dumps({"packets": n_packets, "flows": 0}))


if __name__ == "__main__":
    main()
