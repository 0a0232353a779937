"""How long `netcls serve` takes from the packet that makes a flow ready to the event, and what it does when overloaded.

    .venv/bin/python -m bench.serve_latency                     # three loads, 10 s each
    .venv/bin/python -m bench.serve_latency --overload 1000     # flows a second, for 40 s, then 30 s of rest

Needs root. A namespace of its own with a veth pair; the daemon is a process with all its threads, the sender another.
Latency is measured outside: from the moment the flow's last packet was handed to the kernel until its line came out of
the unix socket. Flows have as many packets as the default model wants. Sender, daemon and whatever else runs share the
cores: `sent_per_s` is what was really sent.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests import frames, wire

NETCLS = str(Path(sys.executable).with_name("netcls"))


def packets_of(flow: int, n: int) -> list[bytes]:
    """A UDP flow, two packets to the server and one back, of growing size."""
    client, server = f"10.{flow >> 16 & 255}.{flow >> 8 & 255}.{flow & 255}", "192.0.2.1"
    to_server = [frames.udp(b"x" * (40 + 20 * i), src_port=4000, dst_port=443) for i in range(n)]
    to_client = [frames.udp(b"y" * (200 + 20 * i), src_port=443, dst_port=4000) for i in range(n)]
    made = []
    for i in range(n):
        back = i % 3 == 2
        packet = frames.ipv4(
            to_client[i] if back else to_server[i],
            protocol=17,
            src=server if back else client,
            dst=client if back else server,
        )
        made.append(frames.ethernet(packet))
    return made


class Reader(threading.Thread):
    """Notes when the first event of each client's flow came, and all others."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.came_s: dict[str, float] = {}
        self.n: dict[str, int] = {}
        self.engine: list[dict[str, Any]] = []
        self.stats: dict[str, Any] = {}

    def run(self) -> None:
        """Until the socket ends."""
        rest = b""
        while data := self.socket.recv(1 << 20):
            now_s = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                event = json.loads(line)
                kind = event["event_type"]
                self.n[kind] = self.n.get(kind, 0) + 1
                if kind == "netcls":
                    self.came_s.setdefault(event["src_ip"], now_s)
                elif kind == "engine":
                    self.engine.append(event["engine"] | {"at_s": now_s})
                elif kind == "stats":
                    self.stats = event["stats"]


def send_flows(first: int, per_s: float, seconds: float, n_packets: int) -> tuple[dict[str, float], float]:
    """Send flow after flow; returns when the last packet of each was sent, and the rate that was reached."""
    sent_s: dict[str, float] = {}
    n = int(per_s * seconds)
    flows = [packets_of(first + number, n_packets) for number in range(n)]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((wire.NEAR, 0))
        begin_s = time.monotonic()
        for number, flow in enumerate(flows):
            time.sleep(max(begin_s + number / per_s - time.monotonic(), 0))
            for packet in flow:
                sender.send(packet)
            which = first + number
            sent_s[f"10.{which >> 16 & 255}.{which >> 8 & 255}.{which & 255}"] = time.monotonic()
        return sent_s, n / (time.monotonic() - begin_s)


def percentiles_ms(sent_s: dict[str, float], came_s: dict[str, float]) -> dict[str, Any]:
    latency = np.array([came_s[key] - at for key, at in sent_s.items() if key in came_s]) * 1000
    if not latency.size:
        return {"answered": 0}
    p50, p95, p99 = np.percentile(latency, (50, 95, 99)).round(1).tolist()
    return {
        "answered": len(latency),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "max_ms": round(float(latency.max()), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flows-per-s", type=float, nargs="*", default=[10, 50, 150])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--packets", type=int, default=32, help="of a flow; what the default model wants")
    parser.add_argument("--model", default="default")
    parser.add_argument("--overload", type=float, help="flows a second")
    parser.add_argument("--overload-s", type=float, default=40)
    parser.add_argument("--rest-s", type=float, default=30)
    parser.add_argument("--queue-flows", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-latency-ms", type=float, default=20)
    given = parser.parse_args()
    wire.NEAR, wire.FAR = "near0", "far0"
    with tempfile.TemporaryDirectory() as folder, wire.wire():
        events, log = Path(folder) / "e.sock", Path(folder) / "log"
        arguments = [
            "--iface",
            wire.FAR,
            "-o",
            f"unix:{events}",
            "--listen",
            "none",
            "--control",
            f"{folder}/c.sock",
        ]
        arguments += [
            "--threads",
            str(given.threads),
            "--queue-flows",
            str(given.queue_flows),
            "--idle-timeout-s",
            "5",
        ]
        arguments += [
            "--max-latency-ms",
            str(given.max_latency_ms),
            "--stats-interval-s",
            "1",
            "--drain-s",
            "60",
        ]
        arguments += ["--model", given.model]
        with log.open("wb") as err:
            daemon = subprocess.Popen(
                [NETCLS, "serve", *arguments], stderr=err, env=os.environ | {"OMP_WAIT_POLICY": "passive"}
            )
        try:
            wire.until(lambda: b" on far0" in log.read_bytes() or daemon.poll() is not None, 120)
            wire.until(events.exists)
            reader = Reader(events)
            reader.start()
            first = 1
            loads = [(rate, given.seconds, 3.0) for rate in given.flows_per_s]
            if given.overload:
                loads = [(given.overload, given.overload_s, given.rest_s)]
            for rate, seconds, rest_s in loads:
                sent_s, reached = send_flows(first, rate, seconds, given.packets)
                first += len(sent_s)
                time.sleep(rest_s)
                found = percentiles_ms(sent_s, reader.came_s)
                print(json.dumps({"flows": len(sent_s), "sent_per_s": round(reached, 1)} | found), flush=True)
            daemon.send_signal(signal.SIGTERM)
            code = daemon.wait(90)
            reader.join(5)
        finally:
            daemon.kill()
        begin_s = reader.engine[0]["at_s"] if reader.engine else 0.0
        for engine in reader.engine:
            print(json.dumps({"at_s": round(engine.pop("at_s") - begin_s, 1)} | engine))
        stats = reader.stats.get("netcls", {})
        print(
            json.dumps(
                {
                    "exit": code,
                    "events": reader.n,
                    "capture": reader.stats.get("capture"),
                    "flows": stats.get("flows"),
                    "predictions": stats.get("predictions"),
                    "unanswered": stats.get("unanswered"),
                    "queue_dropped": stats.get("queue_dropped"),
                    "imbalance": stats.get("packets", {}).get("imbalance"),
                }
            )
        )


if __name__ == "__main__":
    main()
