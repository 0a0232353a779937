"""nfstream as a plain flow meter: no dissection, one meter, every record walked.

python bench/peers/nfstream_flows.py CAPTURE
"""

import json
import sys

from nfstream import NFStreamer


def main() -> None:
    n_flows = n_packets = 0
    for flow in NFStreamer(source=sys.argv[1], n_dissections=0, n_meters=1):
        n_flows += 1
        n_packets += flow.bidirectional_packets
    print(json.dumps({"packets": n_packets, "flows": n_flows}))


if __name__ == "__main__":
    main()
