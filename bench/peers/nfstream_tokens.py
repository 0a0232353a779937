"""From packets to NetMamba's input with nfstream: a plugin that keeps the first five packets of each flow.

python bench/peers/nfstream_tokens.py CAPTURE

A flow's input is uint8 (1600,): 5 x (80 header bytes, 240 payload bytes), addresses zeroed, padded with zeros.
"""

import json
import sys

import numpy as np
from nfstream import NFPlugin, NFStreamer

TCP = 6


class FirstPackets(NFPlugin):
    """Fills ``flow.udps.tokens`` from the first five packets."""

    def on_init(self, packet, flow):
        """The first packet."""
        flow.udps.tokens = np.zeros((5, 320), np.uint8)
        keep(packet, flow.udps.tokens[0])

    def on_update(self, packet, flow):
        """Every other one."""
        if flow.bidirectional_packets <= 5:
            keep(packet, flow.udps.tokens[flow.bidirectional_packets - 1])


def keep(packet, row):
    """Copy a packet's header and payload to its share of the tokens."""
    frame = np.frombuffer(packet.ip_packet, np.uint8)
    if packet.ip_version == 4:
        transport, addresses = 4 * (int(frame[0]) & 15), slice(12, 20)
    else:
        transport, addresses = 40, slice(8, 40)
    payload = transport + (4 * (int(frame[transport + 12]) >> 4) if packet.protocol == TCP else 8)
    header, data = frame[: min(payload, 80)], frame[payload : payload + 240]
    row[: len(header)] = header
    row[addresses] = 0
    row[80 : 80 + len(data)] = data


def main() -> None:
    n_flows = n_packets = 0
    for flow in NFStreamer(source=sys.argv[1], udps=FirstPackets(), n_dissections=0, n_meters=1):
        assert flow.udps.tokens.any()
        n_flows += 1
        n_packets += flow.bidirectional_packets
    print(json.dumps({"packets": n_packets, "flows": n_flows}))


if __name__ == "__main__":
    main()
