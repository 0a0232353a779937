"""Live runs without a wire: a source made by hand, a tiny network, and what is said of each flow when."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from capture.block import LINK_ETHERNET, PacketBlock
from capture.errors import LiveError, UsageError
from capture.live.base import LiveSource
from models.checkpoint import Checkpoint, save_checkpoint
from netcls.event import as_dict, events_of
from netcls.event_batch import EventBatch
from netcls.live import LiveOptions, LiveRun, first_flows, refuse_mixed_link_types
from netcls.live_open import Listening
from netcls.pipeline import Run, RunOptions
from tests import frames as f
from tests import handshakes as h
from tests.packets import block_of
from tests.pcap_writer import udp_flow, write_pcap
from tests.unit.models.tiny_family import checkpoint_arguments, registered

NS = 10**9


@pytest.fixture(scope="module", autouse=True)
def _tiny_family() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny", **checkpoint_arguments())


class Script(LiveSource):
    """Blocks in the order given; None in between means that nothing has come yet. A call is made for its effect."""

    def __init__(self, name: str, script: list[object], link_type: int = LINK_ETHERNET) -> None:
        super().__init__(name, link_type)
        self.script, self.is_closed, self.news = list(script), False, ""
        self._read, self._write = os.pipe()

    def fileno(self) -> int:
        return self._read

    def next_block(self) -> PacketBlock | None:
        while self.script:
            part = self.script.pop(0)
            if part is None or isinstance(part, PacketBlock):
                self.counters.n_packets += len(part) if part is not None else 0
                return part
            part()  # type: ignore[operator]
        return None

    def count(self) -> None:
        self.counters.n_kernel_packets = self.counters.n_packets

    def _look(self) -> str:
        news, self.news = self.news, ""
        return news

    def close(self) -> None:
        self.is_closed = True


def frames(client: str, port: int, n: int) -> list[bytes]:
    return [frame for _, frame in udp_flow(client, port, [40] * n)]


def block(parts: list[bytes], age_s: float = 0.0) -> PacketBlock:
    now_ns = time.time_ns() - round(age_s * NS)
    return block_of(parts, ts_ns=[now_ns + at for at in range(len(parts))])


def live(
    script: list[object], checkpoint: Checkpoint | None, *, finish: bool = True, **options: object
) -> tuple[list[EventBatch], LiveRun, Script]:
    source = Script("test0", script)
    run = LiveRun(
        [source], LiveOptions(threads=1, **options), classify=checkpoint is not None, checkpoint=checkpoint
    )  # type: ignore[arg-type]
    if finish:
        source.script.append(run.stop)
    with run:
        return list(run), run, source


def events(batches: list[EventBatch]) -> list[dict[str, object]]:
    return [as_dict(event) for batch in batches for event in events_of(batch)]


def keep_of(checkpoint: Checkpoint) -> int:
    from capture.representations import build

    return build(checkpoint.representation, checkpoint.representation_settings).keep.n_packets


def test_a_flow_is_told_when_ready_and_when_it_ends_and_the_books_balance(checkpoint: Checkpoint) -> None:
    n = keep_of(checkpoint)
    batches, run, source = live(
        [block(frames("10.0.0.1", 5, n)), None, block(frames("10.0.0.1", 5, 2))], checkpoint
    )
    said = events(batches)
    if len(said) == 1:  # the tiny network was slower than the script: the flow had ended already
        said = [said[0], said[0]]
    assert said[-1]["netcls"]["phase"] == "end"
    assert said[-1]["netcls"]["final"] is True
    assert said[-1]["netcls"]["packets_used"] == n
    assert said[-1]["netcls"]["latency_us"] >= 0
    assert said[-1]["flow"]["reason"] == "forced"
    assert {event["in_iface"] for event in said} == {"test0"}
    assert "pcap_filename" not in said[0]
    assert run.counters.books_balance()
    assert run.counters.packets_seen == n + 2 == source.counters.n_packets
    assert run.counters.predictions == 1
    assert source.is_closed


@pytest.mark.parametrize(
    ("emit", "phases"), [("both", ["ready", "end"]), ("first", ["ready"]), ("last", ["end"])]
)
def test_what_emit_means(checkpoint: Checkpoint, emit: str, phases: list[str]) -> None:
    n = keep_of(checkpoint)
    said: list[EventBatch] = []
    source = Script("test0", [block(frames("10.0.0.1", 5, n))])
    run = LiveRun([source], LiveOptions(emit=emit, threads=1), checkpoint=checkpoint)
    with run:
        # The flow ends only when its first event is here, or (for `last`) when the model was asked.
        going = iter(run)
        if emit == "last":
            source.script += [None] * 3 + [run.stop]
        else:
            said.append(next(going))
            run.stop()
        said += going
    assert [batch.phase for batch in said] == phases
    assert [batch.final for batch in said] == [False] * (len(phases) - 1) + [True]
    first = events(said)[0]
    if phases[0] == "ready":
        assert first["netcls"]["ready_by"] == "packets"
        assert "end" not in first["flow"]
        assert "end_reason" not in first["netcls"]


def test_a_slow_flow_is_answered_early_on_a_silent_wire_and_again_when_it_is_ready(
    checkpoint: Checkpoint,
) -> None:
    n = keep_of(checkpoint)
    whole = frames("10.0.0.1", 5, n)
    source = Script("test0", [block(whole[:1], age_s=0.5)])
    run = LiveRun([source], LiveOptions(ready_timeout_s=0.1, threads=1), checkpoint=checkpoint)
    with run:
        going = iter(run)
        early = next(going)
        assert early.phase == "ready"
        assert events([early])[0]["netcls"]["ready_by"] == "timeout"
        assert early.answers is not None
        assert early.answers.packets_used.tolist() == [1]
        source.script += [block(whole[1:]), run.stop]
        rest = list(going)
    last = events(rest)[-1]["netcls"]
    assert last["packets_used"] == n
    assert last["final"] is True
    if last["label"] != events([early])[0]["netcls"]["label"]:
        assert any(event["netcls"].get("changed") for event in events(rest))


def test_a_silent_wire_ends_an_idle_flow(checkpoint: Checkpoint) -> None:
    """F6."""
    source = Script("test0", [block(frames("10.0.0.1", 5, 1), age_s=0.4)])
    run = LiveRun([source], LiveOptions(idle_timeout_s=0.5, emit="last", threads=1), checkpoint=checkpoint)
    with run:
        (event,) = events([next(iter(run))])
    assert event["netcls"]["end_reason"] == "idle"


def test_live_and_file_give_the_same_flows_and_answers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """F7, without a wire: one packet after the other, however the blocks are cut."""
    packets = [
        p
        for number in range(40)
        for p in udp_flow(f"10.1.0.{number + 1}", 2000 + number, [number] * (number % 9 + 1))
    ]
    packets.sort(key=lambda packet: packet[0])
    path = write_pcap(tmp_path / "a.pcap", packets)
    from tests.packets import block_from_capture, blocks_of

    script: list[object] = list(blocks_of(block_from_capture(path), 7))
    # These are old packets: the wall clock would end them all at once.
    batches, run, _ = live(script, checkpoint, ready_timeout_s=0.001, idle_timeout_s=3e7)
    with Run([str(path)], RunOptions(threads=1), classify=True, checkpoint=checkpoint) as from_file:
        expected = events(list(from_file))
    said = [event for event in events(batches) if event["netcls"]["final"]]

    def facts(event: dict[str, object]) -> tuple[object, ...]:
        ours = event["netcls"]
        assert isinstance(ours, dict)
        return event["flow_id"], event["flow"]["pkts_toserver"], ours["label"], ours["packets_used"]  # type: ignore[index]

    assert sorted(map(facts, said)) == sorted(map(facts, expected))
    assert run.counters.books_balance()


def test_what_the_model_cannot_keep_up_with_comes_as_records_and_is_counted(checkpoint: Checkpoint) -> None:
    script: list[object] = [block([f for port in range(60) for f in frames("10.0.0.1", 100 + port, 9)])]
    batches, run, _ = live(script, checkpoint, queue_flows=16, idle_timeout_s=600)
    kinds = Counter(event["event_type"] for event in events(batches) if event["netcls"].get("final", True))
    assert kinds["netcls"] == run.counters.predictions
    assert kinds["flow"] == run.counters.flows_unanswered > 0
    assert kinds["netcls"] + kinds["flow"] == 60
    assert run.counters.queue_dropped["ready"] == run.counters.flows_unanswered
    assert run.counters.books_balance()


def test_the_last_event_has_the_server_name_of_its_flow(checkpoint: Checkpoint) -> None:
    def hello(port: int, name: bytes) -> bytes:
        segment = f.tcp(h.tls_records(h.client_hello(name)), src_port=port, dst_port=443)
        return f.ethernet(f.ipv4(segment, f.TCP))

    sent = [hello(1001, b"one.example"), frames("10.0.0.9", 9, 1)[0], hello(1002, b"two.example")]
    batches, run, _ = live([block(sent)], checkpoint, emit="last")
    names = {event["src_port"]: event["netcls"].get("sni") for event in events(batches)}
    assert names == {1001: "one.example", 1002: "two.example", 9: None}
    assert run.counters.handshakes["hellos"] == 2
    batches, _, _ = live([block(sent)], checkpoint, emit="last", sni=False)
    assert all("sni" not in event["netcls"] for event in events(batches))


def test_two_interfaces_have_flows_of_their_own(checkpoint: Checkpoint) -> None:
    same = frames("10.0.0.1", 5, 3)
    sources = [Script("a0", [block(same)]), Script("b0", [block(same), block(same)])]
    run = LiveRun(sources, LiveOptions(emit="last", threads=1), checkpoint=checkpoint)
    sources[1].script.append(run.stop)
    with run:
        said = events(list(run))
    assert {
        event["in_iface"]: event["flow"]["pkts_toserver"] + event["flow"]["pkts_toclient"] for event in said
    } == {
        "a0": 3,
        "b0": 6,
    }
    assert {name: counters.n_packets for name, counters in run.counters.interfaces.items()} == {
        "a0": 3,
        "b0": 6,
    }


def test_count_lets_in_so_many_flows_and_their_last_events() -> None:
    def batch(ids: list[int], *, final: bool) -> EventBatch:
        from capture.flow_batch import FLOW_DTYPE

        records = np.zeros(len(ids), FLOW_DTYPE)
        records["flow_id"] = ids
        return EventBatch("x", records, is_live=True, final=final)

    stopped: list[int] = []
    given = iter(
        [
            batch([1, 2], final=False),
            batch([3, 2], final=True),
            batch([4, 1], final=True),
            batch([9], final=True),
        ]
    )
    taken = list(first_flows(given, 2, lambda: stopped.append(1)))
    assert [b.records["flow_id"].tolist() for b in taken] == [[1, 2], [2], [1]]
    assert stopped
    assert next(given).records["flow_id"].tolist() == [9]


def test_news_of_an_interface_is_a_warning(checkpoint: Checkpoint) -> None:
    source = Script("test0", [None, None])
    source.news = "interface 'test0' is down; waiting for it"
    run = LiveRun([source], LiveOptions(duration_s=0.1), classify=False)
    with run:
        assert list(run) == []
    assert run.warnings == ["interface 'test0' is down; waiting for it"]


def test_a_failure_of_the_capture_side_reaches_the_reader_behind_the_last_events() -> None:
    def fail() -> None:
        raise LiveError("the interface burnt down")

    source = Script("test0", [block(frames("10.0.0.1", 5, 3)), fail])
    run = LiveRun([source], LiveOptions(), classify=False)
    said: list[EventBatch] = []
    with run, pytest.raises(LiveError, match="burnt down"):
        said.extend(run)
    assert sum(map(len, said)) == 1


def test_a_wall_clock_that_is_set_ends_no_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """P10: an hour forward in the middle of a flow."""
    real_ns, shift = time.time_ns, [0]

    def set_clock() -> None:
        shift[0] = 3600 * NS

    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + shift[0])
    parts = frames("10.0.0.1", 5, 2)

    def later() -> None:
        source.script.insert(0, block(parts[1:]))

    source = Script("test0", [block(parts[:1]), None, set_clock, *[None] * 4, later, None])
    run = LiveRun([source], LiveOptions(idle_timeout_s=60), classify=False)
    source.script.append(run.stop)
    with run:
        said = events(list(run))
    assert [event["flow"]["pkts_toserver"] + event["flow"]["pkts_toclient"] for event in said] == [2]
    assert any("wall clock was set by +3600 s" in text for text in run.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ()}, "no interface given"),
        ({"names": ("a", "a")}, "named twice"),
        ({"names": ("a",), "backend": "pcap"}, "expected one of ring, scapy"),
        ({"names": ("a",), "workers": 0}, "give 1 or more"),
        ({"names": ("a",), "workers": 2, "backend": "scapy"}, "use --workers 1"),
        ({"names": ("a",), "ring_mib": 1}, "too small"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Listening(**options)  # type: ignore[arg-type]


def test_emit_and_link_types_are_checked() -> None:
    with pytest.raises(UsageError, match="expected one of first, last, both"):
        LiveOptions(emit="never")
    with pytest.raises(Exception, match="a0 has 1, t0 has 101"):
        refuse_mixed_link_types([Script("a0", []), Script("t0", [], 101)])
