"""From packets to NetMamba's input as most research code does it: dpkt, a dictionary of flows, numpy.

python bench/peers/dpkt_tokens.py CAPTURE

No timeouts, no bound on memory, files only. A flow's input is as in nfstream_tokens.py.
"""

import json
import sys

import dpkt
import numpy as np


def tokens_of(path):
    """Packets of the capture, and uint8 (flows, 1600)."""
    flows = {}
    n_packets = 0
    with open(path, "rb") as file:  # noqa: PTH123 - as one finds it
        for _, frame in dpkt.pcap.Reader(file):
            n_packets += 1
            ip = dpkt.ethernet.Ethernet(frame).data
            transport = ip.data
            if not isinstance(transport, dpkt.tcp.TCP | dpkt.udp.UDP):
                continue
            ends = (ip.src, transport.sport), (ip.dst, transport.dport)
            first = flows.setdefault((min(ends), max(ends), type(transport)), [])
            if len(first) < 5:
                first.append(cut(frame, ip, transport))
    tokens = np.zeros((len(flows), 5, 320), np.uint8)
    for row, first in zip(tokens, flows.values(), strict=True):
        for place, (header, payload) in enumerate(first):
            row[place, : len(header)] = np.frombuffer(header, np.uint8)
            row[place, 80 : 80 + len(payload)] = np.frombuffer(payload, np.uint8)
    return n_packets, tokens.reshape(len(flows), 1600)


def cut(frame, ip, transport):
    """Header without addresses, and payload, of an Ethernet frame."""
    is_ipv4 = isinstance(ip, dpkt.ip.IP)
    ip_len = 4 * ip.hl if is_ipv4 else 40
    end = 14 + ip_len + (4 * transport.off if isinstance(transport, dpkt.tcp.TCP) else 8)
    header = bytearray(frame[14:end][:80])
    addresses = slice(12, 20) if is_ipv4 else slice(8, 40)
    header[addresses] = bytes(addresses.stop - addresses.start)
    return header, frame[end : end + 240]


def main() -> None:
    n_packets, tokens = tokens_of(sys.argv[1])
    assert tokens.any(axis=1).all()
    print(json.dumps({"packets": n_packets, "flows": len(tokens)}))


if __name__ == "__main__":
    main()
