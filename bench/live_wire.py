"""What each receiver takes from a veth pair: netcls's ring, a Python socket loop, nfstream, scapy.

    .venv/bin/python -m bench.live_wire     # 300,000 packets/s of 680 bytes for 6 s, each receiver in turn
    .venv/bin/python -m bench.live_wire --pps 50000 --seconds 3 --only scapy

Needs root and tcpreplay. Makes a network namespace of its own, in which everything happens. A receiver's CPU seconds
are those of its process (the copy into the ring is charged to the sender); its start-up is not counted. The kernel's
counters are read where there are any. Sender and receivers share the cores with whatever else runs: look at
`sent_pps` before anything else.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

NEAR, FAR = "bench0", "bench1"
KINDS = ("netcls-ring", "netcls-flows", "recv_into", "nfstream", "scapy")
_CLONE_NEWNET = 0x40000000
_SOL_PACKET, _PACKET_STATISTICS = 263, 6


def cpu_s() -> float:
    """Of this process and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def running_children_cpu_s() -> float:
    """Of the children that run: what they used up to now is their start-up."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def write_capture(path: Path, n: int, n_flows: int, size: int) -> None:
    from bench.flow_frames import frames
    from capture.live.pcap_writer import pcap_header, pcap_records

    numbers = np.random.default_rng(0).integers(0, n_flows, n)
    block = frames(numbers, np.arange(n) * 1000, size=size)
    path.write_bytes(pcap_header(1) + pcap_records(block))


# ------------------------------------------------------------------------------------------------ receivers


def receive(kind: str, seconds: float) -> dict[str, Any]:
    """Run in a process of its own; says ``ready`` on standard error when packets may come."""
    if kind == "recv_into":
        return _recv_into(seconds)
    if kind == "scapy":
        return _scapy(seconds)
    if kind == "nfstream":
        return _nfstream(seconds)
    return _netcls(seconds, flows=kind == "netcls-flows")


def _netcls(seconds: float, *, flows: bool) -> dict[str, Any]:
    from netcls.live import LiveOptions, LiveRun
    from netcls.live_open import Listening, open_interfaces

    sources = open_interfaces(Listening((FAR,))).sources()
    if not flows:
        return _walk_only(sources[0], seconds)
    sys.setswitchinterval(0.0005)
    run = LiveRun(sources, LiveOptions(duration_s=seconds), classify=False)
    with run:
        going = iter(run)
        _say_ready()
        before_s = cpu_s()
        n_flows = sum(len(batch) for batch in going)
        used_s = cpu_s() - before_s
    live = run.counters.interfaces[FAR]
    return {
        "packets": live.n_packets,
        "dropped": live.n_kernel_drops,
        "cpu_s": used_s,
        "flows": n_flows,
        "books": [
            live.n_kernel_packets - live.n_kernel_drops - live.n_packets,
            run.counters.imbalance_packets(),
        ],
    }


def _walk_only(source: Any, seconds: float) -> dict[str, Any]:
    from capture.live.base import wait_for_packets

    source.warm_up()
    source.begin()
    _say_ready()
    before_s, end_s = cpu_s(), time.monotonic() + seconds
    while time.monotonic() < end_s:
        if source.next_block() is None:
            wait_for_packets([source], 0.05)
    used_s = cpu_s() - before_s
    source.count()
    live = source.counters
    return {"packets": live.n_packets, "dropped": live.n_kernel_drops, "cpu_s": used_s}


def _recv_into(seconds: float) -> dict[str, Any]:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    opened.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE, as large as the ring
    opened.bind((FAR, 0))
    opened.settimeout(0.2)
    buffer, packets = bytearray(2048), 0
    _say_ready()
    before_s, end_s = cpu_s(), time.monotonic() + seconds
    while True:
        try:
            opened.recv_into(buffer)
            packets += 1
        except TimeoutError:
            if time.monotonic() > end_s:
                break
        if packets % 256 == 0 and time.monotonic() > end_s:
            break
    used_s = cpu_s() - before_s
    _, dropped = struct.unpack("II", opened.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    return {"packets": packets, "dropped": dropped, "cpu_s": used_s}


def _scapy(seconds: float) -> dict[str, Any]:
    import scapy.layers.inet
    import scapy.layers.l2  # noqa: F401
    from scapy.sendrecv import AsyncSniffer

    packets = 0

    def count(_packet: Any) -> None:
        nonlocal packets
        packets += 1

    sniffer = AsyncSniffer(iface=FAR, prn=count, store=False)
    sniffer.start()
    time.sleep(1)
    _say_ready()
    before_s = cpu_s()
    time.sleep(seconds)
    used_s = cpu_s() - before_s
    return {"packets": packets, "dropped": None, "cpu_s": used_s}


def _nfstream(seconds: float) -> dict[str, Any]:
    """One meter, no dissection. An interrupt, its only end, loses its open flows: its own report says what it took."""
    import nfstream.streamer

    os.setpgrp()
    before_s = 0.0
    said = {"packets": 0, "dropped": 0}

    def note(performances: Any, _is_linux: bool, _n_flows: Any) -> None:
        said["packets"] = performances[0][1].value
        said["dropped"] = performances[0][0].value

    def tell_and_stop() -> None:
        nonlocal before_s
        time.sleep(3)
        before_s = cpu_s() + running_children_cpu_s()
        _say_ready()
        time.sleep(seconds + 2)  # it reports once a second
        os.killpg(0, signal.SIGINT)

    nfstream.streamer.update_performances = note
    threading.Thread(target=tell_and_stop, daemon=True).start()
    # The buffer is as large as the ring of netcls.
    streamer = nfstream.streamer.NFStreamer(
        source=FAR, n_dissections=0, n_meters=1, performance_report=1, socket_buffer_size=32 << 20
    )
    n_flows = sum(1 for _ in streamer)
    return said | {"cpu_s": cpu_s() - before_s, "flows": n_flows}


def _say_ready() -> None:
    print("ready", file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------------------------- sender


def arrived() -> int:
    text = Path("/proc/thread-self/net/dev").read_text()
    found = re.search(rf"{FAR}:\s*\d+\s+(\d+)", text)
    return int(found.group(1)) if found else 0


def one_run(kind: str, capture: Path, pps: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.live_wire", "--receive", kind, "--seconds", str(seconds + 1.5)]
    receiver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert receiver.stderr is not None
    for line in receiver.stderr:
        if line == "ready\n":
            break
    before, began_s = arrived(), time.monotonic()
    rate = f"--pps={pps}" if pps else "--topspeed"
    subprocess.run(
        ["timeout", "-s", "INT", str(seconds + 3), "tcpreplay", "-q", "-K", rate, f"--duration={seconds:g}",
         "--loop=0", "-i", NEAR, str(capture)],
        capture_output=True, check=False,
    )  # fmt: skip
    took_s, sent = time.monotonic() - began_s, arrived() - before
    said, _ = receiver.communicate(timeout=seconds + 120)
    result: dict[str, Any] = {"kind": kind, "sent": sent, "sent_pps": round(sent / min(took_s, seconds + 1))}
    result |= json.loads(said.splitlines()[-1])
    result["lost_share"] = round(1 - result["packets"] / sent, 4) if sent else None
    result["packets_per_cpu_s"] = round(result["packets"] / max(result["cpu_s"], 0.01))
    return result


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pps", type=int, default=300_000, help="asked of tcpreplay; 0: as fast as it can")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--bytes", type=int, default=680)
    parser.add_argument("--flows", type=int, default=18_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=KINDS, action="append")
    parser.add_argument("--receive", choices=KINDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.receive:
        print(json.dumps(receive(given.receive, given.seconds)), flush=True)
        os._exit(0)  # scapy's thread would go on
    if os.geteuid() != 0 or shutil.which("tcpreplay") is None:
        sys.exit("needs root (for a network namespace) and tcpreplay (apt-get install tcpreplay)")
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        sys.exit(f"no network namespace here: {os.strerror(ctypes.get_errno())}")
    ip("link", "add", NEAR, "type", "veth", "peer", "name", FAR)
    for name in (NEAR, FAR):
        ip("link", "set", name, "addrgenmode", "none")
        ip("link", "set", name, "up")
    with tempfile.TemporaryDirectory() as folder:
        capture = Path(folder) / "wire.pcap"
        write_capture(capture, 100_000, given.flows, given.bytes)
        for _ in range(given.rounds):
            for kind in given.only or KINDS:
                print(json.dumps(one_run(kind, capture, given.pps, given.seconds)), flush=True)


if __name__ == "__main__":
    main()
