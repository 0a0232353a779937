"""``netcls serve`` as a process on a real wire: what it says, what it survives, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import netcls
from netcls.cli.ctl import ask
from tests import wire
from tests.packets import DATA, block_from_capture, frames_of
from tests.system.test_wire_sniff import NO_TIMEOUT_FLAGS, NO_TIMEOUTS, WITHOUT_TIMES, facts, udp, udp_between
from tests.wire import FAR, needs_wire, send, until

pytestmark = [pytest.mark.root, needs_wire]

NETCLS = str(Path(sys.executable).with_name("netcls"))
DEMO = DATA / "captures" / "demo.pcap.zst"


@pytest.fixture(autouse=True)
def _wire() -> Iterator[None]:
    with wire.wire():
        yield


class Daemon:
    """The process, and the folder of its files."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process, self.folder = process, folder

    def log(self) -> str:
        return (self.folder / "err").read_text()

    def says(self, text: str) -> None:
        until(lambda: text in self.log() or self.process.poll() is not None, 120)
        assert text in self.log(), self.log()

    def status(self) -> Any:
        return ask(self.folder / "c.sock", {"command": "status"})["message"]

    def stops(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        lines = (self.folder / "e.jsonl").read_bytes().splitlines()
        events = [json.loads(line) for line in lines]
        return [event for event in events if not kinds or event["event_type"] in kinds]


@contextmanager
def serving(
    folder: Path, *arguments: object, fault: str = "", wait: bool = True, **more: str
) -> Iterator[Daemon]:
    """The daemon on the far end, once it captures."""
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "NETCLS_FAULT": fault} | more
    with (folder / "err").open("ab") as err:
        process = subprocess.Popen(
            [
                *(NETCLS, "serve", "--iface", FAR, "--threads", "1", "--listen", "none"),
                *("--control", folder / "c.sock", "-o", f"file:{folder}/e.jsonl", *map(str, arguments)),
            ],
            stderr=err,
            env=environment,
        )
    daemon = Daemon(process, folder)
    try:
        if wait:
            daemon.says(f" on {FAR}")
        yield daemon
    finally:
        process.kill()
        process.wait()


def test_a_day_in_the_life(tmp_path: Path) -> None:
    """F7 and S7, P4 in short, P5; then SIGTERM ends and answers every flow."""
    config = tmp_path / "netcls.toml"
    config.write_text(f'[serve]\nmodel = "{WITHOUT_TIMES}"\n')
    demo = frames_of(block_from_capture(DEMO))
    with serving(tmp_path, "--config", config, *NO_TIMEOUT_FLAGS) as daemon:
        for task in Path(f"/proc/{daemon.process.pid}/task").iterdir():
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
            assert {status[f"Cap{name}"] for name in ("Eff", "Prm", "Inh", "Amb")} == {"0" * 16}
            assert status["NoNewPrivs"] == "1"
        half = len(demo) // 2
        send(demo[:half])
        until(lambda: daemon.status()["packets_seen"] == half)
        # A broken file, then a model of another representation: the old one goes on, and says why.
        config.write_text("[serve]\nmodle = 1\n")
        said = ask(tmp_path / "c.sock", {"command": "reload"})
        assert said["return"] == "NOK"
        assert "did you mean 'model'" in said["message"]
        config.write_text('[serve]\nmodel = "default"\n')
        said = ask(tmp_path / "c.sock", {"command": "reload"})
        assert "packets-1" in said["message"]
        assert "restart netcls to change the representation" in said["message"]
        status = daemon.status()
        assert status["config_reload_success"] == 0
        assert status["model"]["name"] == WITHOUT_TIMES
        # Rotated from outside while flows are open.
        config.write_text(f'[serve]\nmodel = "{WITHOUT_TIMES}"\nbpf = "tcp"\n')
        (tmp_path / "e.jsonl").rename(tmp_path / "old.jsonl")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.says("bpf needs a restart and stays as it was")
        assert daemon.status()["config_reload_success"] == 1
        send(demo[half:])
        until(lambda: daemon.status()["packets_seen"] == len(demo))
        assert daemon.status()["books_imbalance_packets"] == 0
        assert daemon.stops() == 0
    lines = (tmp_path / "old.jsonl").read_text().splitlines() + (
        tmp_path / "e.jsonl"
    ).read_text().splitlines()
    events = [json.loads(line) for line in lines]
    flows = [event for event in events if event["event_type"] == "netcls"]
    from_file = list(netcls.classify(DEMO, model=WITHOUT_TIMES, threads=1, **NO_TIMEOUTS))
    assert facts(flows) == facts(from_file)
    final = [event for event in flows if event["netcls"]["final"]]
    assert {event["flow"]["reason"] for event in final} <= {"shutdown", "timeout"}
    assert Counter(event["flow_id"] for event in final).most_common(1)[0][1] == 1
    actions = [event["engine"]["action"] for event in events if event["event_type"] == "engine"]
    assert actions == ["start", "reload", "reload", "reload", "stop"]
    *_, stats = (event for event in events if event["event_type"] == "stats")
    assert stats["stats"]["capture"] == {"kernel_packets": len(demo), "kernel_drops": 0}
    assert oct((tmp_path / "old.jsonl").stat().st_mode)[-3:] == "640"
    assert "0 dropped by the kernel" in daemon.log()
    assert "the books balance" in daemon.log()


def test_a_flow_on_a_wire_that_falls_silent_is_told_within_its_timeout(tmp_path: Path) -> None:
    """F6; and the watchdog is fed while all is well."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        more = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}
        with serving(tmp_path, "--idle-timeout-s", 1, **more) as daemon:
            assert manager.recv(1000).startswith(b"READY=1\nSTATUS=")
            send([udp(7)])
            until(lambda: any(e["netcls"].get("end_reason") == "idle" for e in daemon.events("netcls")), 20)
            while manager.recv(1000) != b"WATCHDOG=1":
                pass
            assert daemon.stops(signal.SIGINT) == 0


@pytest.mark.slow
@pytest.mark.parametrize("place", ["capture", "decode", "predictor", "output", "sink.file"])
def test_a_stage_that_dies_ends_the_process(tmp_path: Path, place: str) -> None:
    """P2: never half alive."""
    with serving(tmp_path, "--ready-timeout-s", 0.1, fault=f"{place}:raise:after=1") as daemon:
        send([udp(1), udp(2)])
        time.sleep(0.5)
        send([udp(3), udp(4)])
        begin_s = time.monotonic()
        assert daemon.process.wait(30) == 1
        assert time.monotonic() - begin_s < 15
        assert "died: InjectedFault" in daemon.log()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["decode", "predictor", "output", "sink.file", "tick"])
def test_a_stage_that_hangs_ends_the_process(tmp_path: Path, place: str) -> None:
    """P2: the watchdog is not fed, and the process ends by itself."""
    with serving(tmp_path, "--stall-timeout-s", 2, fault=f"{place}:stall:60s:after=1") as daemon:
        send([udp(1), udp(2)])
        time.sleep(0.5)
        send([udp(3), udp(4)])
        assert daemon.process.wait(30) == 1
        assert "has not moved for" in daemon.log()


@pytest.mark.slow
def test_ten_thousand_open_flows_are_flushed_by_sigterm(tmp_path: Path) -> None:
    """P3."""
    flood = [udp_between(number, port) for number in range(100) for port in range(1, 101)]
    with serving(tmp_path, "--ready-timeout-s", 0, "--drain-s", 60) as daemon:
        n = send(flood)
        until(lambda: daemon.status()["flows_open"] == n, 60)
        assert daemon.stops() == 0
    final = [event for event in daemon.events("netcls", "flow") if event["netcls"].get("final", True)]
    assert len(final) == n == 10_000
    assert {event["flow"]["reason"] for event in final} == {"shutdown"}
    assert {event["netcls"]["end_reason"] for event in final} == {"forced"}


@pytest.mark.slow
def test_a_killed_daemon_leaves_whole_lines_and_starts_again_by_itself(tmp_path: Path) -> None:
    """P1 in short."""
    n_before = 0
    for turn in range(4):
        with serving(tmp_path, "-o", f"unix:{tmp_path}/e.sock", "--emit", "first") as daemon:
            until(lambda: (tmp_path / "c.sock").exists())
            send(udp_between(turn, port) for port in range(1, 400))
            time.sleep(1.0 + 0.3 * turn)
            daemon.process.kill()
            daemon.process.wait()
        *lines, _last = (tmp_path / "e.jsonl").read_bytes().split(b"\n")
        assert all(json.loads(line) for line in lines)
        assert len(lines) > n_before
        n_before = len(lines)
        (tmp_path / "err").write_bytes(b"")


@pytest.mark.slow
def test_a_stalled_decoder_loses_packets_only_where_the_kernel_counts_them(tmp_path: Path) -> None:
    """P11: a small ring runs full; read + dropped = sent, exactly."""
    frames = [udp_between(number % 200, number // 200 + 1) + b"x" * 1000 for number in range(20_000)]
    with serving(
        tmp_path, "--ring-mib", 2, "--ready-timeout-s", 0, fault="decode:stall:5s:after=100"
    ) as daemon:
        n = send(frames)
        until(lambda: sum(daemon.status()["capture"][k] for k in ("kernel_packets",)) >= n, 60)
        assert daemon.stops() == 0
    *_, stats = daemon.events("stats")
    captured = stats["stats"]["capture"]
    seen = stats["stats"]["netcls"]["packets"]["seen"]
    assert captured["kernel_drops"] > 0
    assert seen + captured["kernel_drops"] == n == captured["kernel_packets"]
    assert stats["stats"]["netcls"]["packets"]["imbalance"] == 0


@pytest.mark.slow
def test_a_soak_holds_memory_and_descriptors(tmp_path: Path) -> None:
    """P12 in short: 30 s; bench/serve_latency.py --soak-s makes it longer."""
    frames = [udp_between(number % 100, number // 100 % 50 + 1) for number in range(5000)]
    with serving(tmp_path, "--idle-timeout-s", 1, "--ready-timeout-s", 0, "--stats-interval-s", 1) as daemon:
        folder = Path(f"/proc/{daemon.process.pid}")

        def rss_mib() -> float:
            return int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

        measured, descriptors = [], []
        for _ in range(15):
            send(frames[:2500])
            time.sleep(2.0)
            measured.append(rss_mib())
            descriptors.append(len(list((folder / "fd").iterdir())))
        assert daemon.stops() == 0
    assert max(measured[8:]) - measured[7] < 16
    assert len(set(descriptors[3:])) == 1
    assert all(e["stats"]["netcls"]["packets"]["imbalance"] == 0 for e in daemon.events("stats"))
