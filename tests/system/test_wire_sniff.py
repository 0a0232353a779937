"""``netcls sniff`` and ``netcls.sniff`` on a real wire: they say of a replay what ``classify`` says of the file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import netcls
from capture.live.scapy_source import ScapySource
from models.checkpoint import Checkpoint, save_checkpoint
from tests import frames, wire
from tests.packets import DATA, block_from_capture, frames_of
from tests.unit.models.tiny_family import checkpoint_arguments, registered
from tests.wire import FAR, needs_wire, send, tagged, until

pytestmark = [pytest.mark.root, needs_wire]

NETCLS = str(Path(sys.executable).with_name("netcls"))
DEMO = DATA / "captures" / "demo.pcap.zst"
# A replay takes milliseconds, the capture took minutes: only without timeouts are the flows the same.
NO_TIMEOUTS = {"idle_timeout_s": 3e7, "active_timeout_s": 3e7, "tcp_linger_s": 3e7}
# Gaps between packets are the replay's, so only a model that does not see them must say the same.
WITHOUT_TIMES = "netmamba-lab"
NO_TIMEOUT_FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in NO_TIMEOUTS.items()]


@pytest.fixture(autouse=True)
def _wire() -> Iterator[None]:
    with wire.wire():
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    with registered():
        yield save_checkpoint(tmp_path_factory.mktemp("models") / "tiny", **checkpoint_arguments())


@contextmanager
def sniffing(*arguments: object, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, once it captures; its output goes to ``folder``."""
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [NETCLS, "sniff", *map(str, arguments), "-f", "jsonl", "--threads", "1"],
            stdout=out,
            stderr=err,
            # A background job of a shell without job control ignores SIGINT, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            until(lambda: b"capturing on" in (folder / "err").read_bytes() or process.poll() is not None, 120)
            yield process
        finally:
            process.kill()
            process.wait()


def events_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out").read_text().splitlines()]


def facts(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What must be the same live and from a file (not bytes: a replay of cut frames has shorter frames on the wire)."""
    return sorted(
        (
            event["community_id"],
            event["flow"]["pkts_toserver"],
            event["flow"]["pkts_toclient"],
            event["netcls"]["label"],
            event["netcls"]["packets_used"],
        )
        for event in events
        if event["event_type"] == "netcls" and event["netcls"]["final"]
    )


def test_sniff_says_of_a_replay_what_classify_says_of_the_file(tmp_path: Path) -> None:
    """F7; on the way: no privilege is left, Ctrl-C delivers everything, what is saved is what was seen."""
    demo = frames_of(block_from_capture(DEMO))
    saved = tmp_path / "seen.pcap"
    with sniffing(
        FAR, "-m", WITHOUT_TIMES, "--stats", "--write", saved, *NO_TIMEOUT_FLAGS, folder=tmp_path
    ) as process:
        tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
        assert len(tasks) > 1
        for task in tasks:
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
            assert {status[f"Cap{name}"] for name in ("Eff", "Prm", "Inh", "Amb")} == {"0" * 16}
            assert status["NoNewPrivs"] == "1"
        send(demo)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    *events, stats = events_in(tmp_path)
    from_file = list(netcls.classify(DEMO, model=WITHOUT_TIMES, threads=1, **NO_TIMEOUTS))
    assert facts(events) == facts(from_file)
    assert len(facts(events)) == len({event["flow_id"] for event in events}) > 100
    assert {event["in_iface"] for event in events} == {FAR}
    assert stats["stats"]["capture"] == {"kernel_packets": len(demo), "kernel_drops": 0}
    assert stats["stats"]["netcls"]["packets"]["imbalance"] == 0
    again = list(netcls.classify(saved, model=WITHOUT_TIMES, threads=1, **NO_TIMEOUTS))
    assert {e["flow_id"]: e["netcls"]["label"] for e in again} == {
        e["flow_id"]: e["netcls"]["label"] for e in events if e["netcls"]["final"]
    }
    assert (tmp_path / "err").read_text().splitlines()[1:] == [
        f"netcls: {FAR}: {len(demo):,} packets, 0 dropped by the kernel",
        f"netcls: {len(from_file)} flows, {len(from_file)} answered, 0 not, 0 left out by the queue; the books balance",
    ]


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for arguments, words in (
        (["fra0"], "no interface 'fra0'"),
        ([FAR, "--bpf", "udp prt 53"], "--bpf 'udp prt 53'"),
        ([FAR, "--workers", "2", "--write", tmp_path / "x.pcap"], "use --workers 1"),
        ([FAR, FAR], "named twice"),
        ([FAR, "--stats", "-f", "csv"], "--stats has no place"),
        ([FAR, "--model", tmp_path / "none", "--write", tmp_path / "x.pcap"], "none"),
    ):
        done = subprocess.run(
            [NETCLS, "sniff", *map(str, arguments)], capture_output=True, text=True, check=False
        )
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert line.startswith("netcls: error: ")
        assert words in line
        assert list(tmp_path.iterdir()) == []


def test_a_stream_gives_events_as_they_come_and_leaves_the_interface(tiny: Checkpoint) -> None:
    n_sockets = len(packet_sockets())
    # A thread keeps the namespace that it was in: send from one that is in it.
    with netcls.sniff(FAR, model=tiny, idle_timeout_s=0.3, emit="last", threads=1, ring_mib=2) as stream:
        sender = threading.Timer(0.2, send, args=([udp(7), tagged(udp(8), 30)],))
        sender.start()
        told = [next(stream), next(stream)]
        sender.join()
        assert len(packet_sockets()) == n_sockets + 1
    assert len(packet_sockets()) == n_sockets
    assert {event["src_port"]: event.get("vlan") for event in told} == {7: None, 8: [30]}
    assert {event["netcls"]["end_reason"] for event in told} == {"idle"}


def test_a_stream_ends_by_itself_after_so_many_flows_or_seconds(tiny: Checkpoint) -> None:
    with netcls.sniff(FAR, model=tiny, count=2, threads=1, ring_mib=2) as stream:
        sender = threading.Timer(0.2, send, args=([udp(port) for port in range(1, 6)],))
        sender.start()
        told = list(stream)
        sender.join()
    assert len({event["flow_id"] for event in told}) == 2
    assert sum(event["netcls"]["final"] for event in told) == 2
    with netcls.sniff(FAR, model=tiny, duration_s=0.2, threads=1, ring_mib=2) as stream:
        assert list(stream) == []
    assert stream.counters.books_balance()


def packet_sockets() -> list[str]:
    return Path("/proc/thread-self/net/packet").read_text().splitlines()[1:]


def udp(port: int) -> bytes:
    return frames.ethernet(frames.ipv4(frames.udp(b"x", src_port=port, dst_port=53), protocol=17))


def test_scapy_sees_what_the_ring_sees() -> None:
    source = ScapySource(FAR, promisc=True)
    sent = [udp(1), tagged(udp(2), 10), udp(3)]
    send(sent)
    seen: list[bytes] = []
    link_types: set[int] = set()

    def look() -> bool:
        block = source.next_block()
        if block is not None:
            seen.extend(frames_of(block))
            link_types.update(block.link_type.tolist())
        return len(seen) == 3

    until(look)
    assert seen == sent
    assert link_types == {1}
    assert source.counters.n_packets == 3
    assert not source.counters.counts_drops
    source.close()


def statuses() -> Iterator[str]:
    """Of all processes."""
    for path in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            yield path.read_text()


@pytest.mark.slow
def test_workers_share_the_packets_and_say_the_same(tmp_path: Path) -> None:
    demo = frames_of(block_from_capture(DEMO))
    with sniffing(
        FAR, "-m", WITHOUT_TIMES, "--workers", 2, "--stats", *NO_TIMEOUT_FLAGS, folder=tmp_path
    ) as process:
        children = [status for status in statuses() if f"PPid:\t{process.pid}\n" in status]
        assert len(children) >= 2
        assert all("CapEff:\t0000000000000000" in status for status in children)
        send(demo)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    *events, stats = events_in(tmp_path)
    assert facts(events) == facts(list(netcls.classify(DEMO, model=WITHOUT_TIMES, threads=1, **NO_TIMEOUTS)))
    assert stats["stats"]["capture"] == {"kernel_packets": len(demo), "kernel_drops": 0}
    assert stats["stats"]["netcls"]["packets"]["imbalance"] == 0


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    # So many flows that their last answers take a while.
    flood = [udp_between(number, port) for number in range(100) for port in range(1, 101)]
    with sniffing(FAR, "--ready-timeout-s", 0, "--write", tmp_path / "x.pcap", folder=tmp_path) as process:
        send(flood)
        process.send_signal(signal.SIGINT)
        until(lambda: b"\n" in (tmp_path / "out").read_bytes(), 60)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    # The last line may be torn: nobody waited for it.
    assert 0 < (tmp_path / "out").read_bytes().count(b"\n") < len(flood)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err", "out"]


def udp_between(number: int, port: int) -> bytes:
    packet = frames.ipv4(frames.udp(b"x", src_port=port, dst_port=53), protocol=17, src=f"10.1.1.{number}")
    return frames.ethernet(packet)


@pytest.mark.slow
def test_an_interface_that_is_removed_and_made_again_is_taken_up_without_any_privilege(
    tmp_path: Path,
) -> None:
    with sniffing(FAR, "--idle-timeout-s", 1, folder=tmp_path) as process:
        send([udp(1)])
        wire.ip("link", "del", wire.NEAR)
        until(lambda: b"was removed" in (tmp_path / "err").read_bytes())
        wire.make_pair()
        until(lambda: b"created again" in (tmp_path / "err").read_bytes())
        send([udp(2)])
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert {event["src_port"] for event in events_in(tmp_path)} == {1, 2}
