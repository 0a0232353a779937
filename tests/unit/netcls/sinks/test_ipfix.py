"""What goes out as IPFIX is what a decoder written from the RFCs, nfcapd and tshark read."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.flow_batch import EndReason
from netcls.sinks.base import SinkError, Told
from netcls.sinks.ipfix import IpfixSink, LabelNumbers
from netcls.sinks.ipfix_messages import MAX_MESSAGE_OCTETS, fixed_text
from netcls.sinks.peer import Peer
from tests.pcap_writer import START_S, udp, write_pcap
from tests.reference.ipfix import Collector, Message, number, text
from tests.unit.netcls.batches import START_NS, address, classified, record, unclassified
from tests.unit.netcls.sinks.told import many, one, stats, told

START_MS = START_NS // 1_000_000


class PeerInMemory(Peer):
    """Keeps the messages."""

    def __init__(self) -> None:
        super().__init__("collector.example", 4739, is_udp=True)
        self.sent: list[bytes] = []
        self.n_until_refusal = 1 << 30

    def open(self) -> None: ...

    def close(self) -> None: ...

    def probe(self, datagram: bytes) -> None:
        self.send(datagram)

    def send(self, data: bytes) -> None:
        if len(self.sent) >= self.n_until_refusal:
            raise SinkError("refused")
        self.sent.append(data)

    def check_alive(self) -> None: ...


class Bench:
    """A sink, the collector behind it, and a clock that stands still."""

    def __init__(self, *, inline_names: bool = False, is_udp: bool = True) -> None:
        self.peer = PeerInMemory()
        self.now_s = 1000.0
        self.sink = IpfixSink(
            self.peer, is_udp=is_udp, domain=7, inline_names=inline_names, now_s=lambda: self.now_s
        )
        self.collector = Collector()
        self.sink.open()

    def messages(self) -> list[Message]:
        sent, self.peer.sent = self.peer.sent, []
        return [self.collector.decode(data) for data in sent]

    def records(self) -> list[dict[str, Any]]:
        return [r for message in self.messages() for r in message.records]

    def flows(self) -> list[dict[str, Any]]:
        return [r for r in self.records() if not r["is_option"]]


def test_a_flow_is_a_biflow_with_its_label() -> None:
    bench = Bench()
    bench.sink.write(one(ip_bytes=(1074, 8057), vlan=(10, 20)))
    name, flow = bench.records()
    assert (name["is_option"], text(name, "96"), text(name, "94")) == (True, "web", "web")
    assert name["95"] == flow["95"]
    assert flow["95"][0] == 6
    values = {e: number(flow, e) for e in flow if e not in ("template", "is_option", "8", "12", "95")}
    assert values == {
        "152": START_MS,
        "153": (START_NS + 3_999_999_999) // 1_000_000,
        "7": 40212,
        "11": 8443,
        "4": 6,
        "1": 1074,
        "reverse 1": 8057,
        "2": 9,
        "reverse 2": 11,
        "136": 3,
        "58": 10,
        "32": 0,
    }
    assert (socket.inet_ntoa(flow["8"]), socket.inet_ntoa(flow["12"])) == ("10.0.0.2", "10.0.0.9")


def test_an_ipv6_flow_has_its_own_template_and_icmp_its_type_and_code() -> None:
    bench = Bench()
    v6 = {"client": address("2001:db8::1"), "server": address("2001:db8::2"), "ip_version": 6}
    bench.sink.write(one(**v6, protocol=58, client_port=128, server_port=3))
    (flow,) = bench.flows()
    assert flow["template"] == 257
    assert socket.inet_ntop(socket.AF_INET6, flow["27"]) == "2001:db8::1"
    assert (number(flow, "4"), number(flow, "139"), number(flow, "7")) == (58, 128 << 8 | 3, 0)


@pytest.mark.parametrize("reason", [r for r in EndReason if r])
def test_the_end_reason_is_ipfixs(reason: EndReason) -> None:
    bench = Bench()
    bench.sink.write(one(end_reason=reason))
    assert number(bench.flows()[0], "136") == int(reason)


def test_a_flow_without_a_model_and_one_of_an_unnamed_protocol_go_out_too() -> None:
    bench = Bench()
    bench.sink.write(told(unclassified(record(protocol=47))))
    (flow,) = bench.records()
    assert (number(flow, "4"), number(flow, "95")) == (47, 0)


def test_early_answers_and_counters_are_no_records() -> None:
    early = dataclasses.replace(classified(), is_live=True, phase="ready", final=False)
    bench = Bench()
    assert bench.sink.write([*told(early, classified()), *stats()]) == 3
    assert len(bench.flows()) == 1


def test_messages_fit_a_datagram_and_lose_no_flow() -> None:
    bench = Bench(inline_names=True)
    bench.messages()
    assert bench.sink.write(many(500)) == 500
    messages = bench.messages()
    assert max(m.n_octets for m in messages) <= MAX_MESSAGE_OCTETS
    assert max(m.n_octets for m in messages) > MAX_MESSAGE_OCTETS - 130
    flows = [r for m in messages for r in m.records if not r["is_option"]]
    assert len(flows) == 500
    assert {text(flow, "96") for flow in flows} == {"web"}


def test_sequence_numbers_count_records_of_data_and_options_but_no_templates() -> None:
    bench = Bench()
    bench.sink.write(many(100))
    bench.now_s += 60
    bench.sink.write(many(3))
    expected = 0
    for message in bench.messages():
        assert (message.sequence, message.domain) == (expected, 7)
        expected += len(message.records)
    assert expected == 100 + 1 + 1 + 3


def test_templates_and_names_come_again_each_minute_over_udp_only() -> None:
    for is_udp, n_again in ((True, 3), (False, 0)):
        bench = Bench(is_udp=is_udp)
        assert sum(m.n_templates for m in bench.messages()) == 3
        bench.sink.write(many(1))
        bench.now_s += 59
        bench.sink.flush()
        assert sum(m.n_templates for m in bench.messages()) == 0
        bench.now_s += 1
        bench.sink.flush()
        messages = bench.messages()
        assert sum(m.n_templates for m in messages) == n_again
        assert [text(r, "96") for m in messages for r in m.records] == (["web"] if is_udp else [])


def test_a_message_that_fails_leaves_what_was_sent_before_it_taken() -> None:
    bench = Bench()
    batch = many(100)
    bench.peer.n_until_refusal = len(bench.peer.sent) + 2
    n_taken = bench.sink.write(batch)
    assert 0 < n_taken < 100
    assert len(bench.flows()) == n_taken
    bench.peer.n_until_refusal = 0
    with pytest.raises(SinkError):
        bench.sink.write(batch[n_taken:])


def test_a_label_that_was_never_delivered_is_told_again_when_the_sink_opens() -> None:
    bench = Bench()
    bench.messages()
    bench.peer.n_until_refusal = 0
    with pytest.raises(SinkError):
        bench.sink.write(many(1))
    bench.peer.n_until_refusal = 1 << 30
    bench.sink.open()
    bench.sink.write(many(1))
    records = bench.records()
    assert [text(r, "96") for r in records if r["is_option"]] == ["web"]
    assert len(records) == 2


def test_label_numbers_are_the_same_everywhere_and_never_shared() -> None:
    labels = [f"label {i}" for i in range(4096)]
    ours, theirs = LabelNumbers(), LabelNumbers()
    numbers = [ours.number(label)[0] for label in labels]
    assert len(set(numbers)) == 4096
    assert min(numbers) > 0
    assert max(numbers) < 1 << 24
    assert theirs.number("label 7") == (numbers[7], True)
    assert ours.number("label 7") == (numbers[7], False)
    assert ours.number("one too many") == (0, False)
    assert ours.number("") == (0, False)


@given(st.text(), st.integers(4, 64))
def test_fixed_text_is_valid_and_has_no_control_characters(label: str, n_octets: int) -> None:
    value = fixed_text(label, n_octets)
    assert len(value) == n_octets
    shown = value.rstrip(b"\0").decode()
    assert "\x1b" not in shown
    assert "\n" not in shown


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=40))
def test_any_cut_into_batches_gives_the_same_flows(sizes: list[int]) -> None:
    bench = Bench()
    batch = many(sum(sizes))
    for size in sizes:
        bench.sink.write(batch[:size])
        batch = batch[size:]
    assert len(bench.flows()) == sum(sizes)


def test_a_collector_that_is_away_is_told_and_its_return_noticed() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        host, port = bound.getsockname()
    sink = IpfixSink(Peer(host, port, is_udp=True), is_udp=True)
    with pytest.raises(SinkError, match=rf"cannot send to 127.0.0.1:{port}"):
        sink.open()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind((host, port))
        bound.settimeout(5)
        sink.open()
        sink.write(many(1))
        collector = Collector()
        messages = [collector.decode(bound.recv(2000)) for _ in range(2)]
    assert [len(m.records) for m in messages] == [0, 2]


def test_over_tcp_messages_follow_each_other(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sink = IpfixSink(Peer(*server.getsockname(), is_udp=False), is_udp=False)
        sink.open()
        connection, _ = server.accept()
        sink.write(many(50))
        sink.close()
        with connection, connection.makefile("rb") as stream:
            data = stream.read()
    collector, n_flows = Collector(), 0
    while data:
        length = int.from_bytes(data[2:4], "big")
        n_flows += sum(not r["is_option"] for r in collector.decode(data[:length]).records)
        data = data[length:]
    assert n_flows == 50


def peers_flows() -> list[Told]:
    """A flow of IPv4, one of IPv6, one on a VLAN, of two labels."""
    v6 = {"client": address("2001:db8::1"), "server": address("2001:db8::2"), "ip_version": 6}
    rows = [
        record(ip_bytes=(1074, 8057)),
        record(**v6, ip_bytes=(600, 700), protocol=17, end_reason=EndReason.IDLE),
        record(vlan=(10, 0), ip_bytes=(40, 0), packets=(1, 0), end_reason=EndReason.ACTIVE),
    ]
    return told(classified(*rows, label_index=np.array([0, 1, 1], np.int32)))


@pytest.mark.skipif(not shutil.which("nfcapd"), reason="nfdump is not installed")
def test_nfcapd_reads_the_same_flows(tmp_path: Path, nfcapd_port: int) -> None:
    process = subprocess.Popen(
        ["nfcapd", "-w", str(tmp_path), "-b", "127.0.0.1", "-p", str(nfcapd_port), "-t", "3600", "-e"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        sink = IpfixSink(Peer("127.0.0.1", nfcapd_port, is_udp=True), is_udp=True)
        _open_when_it_listens(sink)
        sink.write(peers_flows())
        sink.close()
        time.sleep(0.3)  # nfcapd reads its socket, then the signal ends it
    finally:
        process.terminate()
        log, _ = process.communicate(timeout=20)
    assert "sequence errors: 0, bad packets: 0" in log.lower()
    for word in ("fail", "unknown", "invalid", "skip", "too "):
        assert word not in log.lower()
    (file,) = [f for f in tmp_path.iterdir() if f.name.startswith("nfcapd.2")]
    rows = json.loads(f"[{_shown(file, 'json').strip().strip('[]')}]")
    rows.sort(key=lambda row: row["in_bytes"])
    expected = [(40, 1, 0, 0), (600, 9, 700, 11), (1074, 9, 8057, 11)]
    fields = ("in_bytes", "in_packets", "out_bytes", "out_packets")
    assert [tuple(row.get(f, 0) for f in fields) for row in rows] == expected
    assert [row.get("src4_addr") or row["src6_addr"] for row in rows] == [
        "10.0.0.2",
        "2001:db8::1",
        "10.0.0.2",
    ]
    assert [row["proto"] for row in rows] == [6, 17, 6]
    assert [row["src_vlan"] for row in rows] == [10, 0, 0]
    raw = _shown(file, "raw")
    assert [f"0x0{n} " in raw for n in (1, 2, 3, 4)] == [True, True, True, False]  # end reasons
    # nfdump 1.7.1 shows a number of IPFIX with its bytes the other way round, and no name for it.
    assert len(re.findall(r"app ID +=", raw)) == 3


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
def test_tshark_reads_the_same_flows(tmp_path: Path) -> None:
    bench = Bench(inline_names=True)
    bench.sink.write(peers_flows())
    frames = [udp("10.0.0.1", 40000, "10.0.0.2", 4739, data) for data in bench.peer.sent]
    write_pcap(tmp_path / "ipfix.pcap", [(START_S, frame) for frame in frames])
    command = ["tshark", "-n", "-r", str(tmp_path / "ipfix.pcap"), "-d", "udp.port==4739,cflow", "-V"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for word in ("malformed", "expert", "unknown", "no template"):
        assert word not in shown.lower()
    assert shown.count("    Flow End Reason: ") == 3
    for line in (
        "Octets: 1074",
        "Octets: 8057 (Reverse Type 1 BYTES)",
        "Packets: 11 (Reverse Type 2 PKTS)",
        "StartTime: Nov 24, 2026 10:15:02.123000000 UTC",
        "EndTime: Nov 24, 2026 10:15:06.123000000 UTC",
        "Flow End Reason: End of Flow detected (3)",
        "Flow End Reason: Active timeout (2)",
        "Vlan Id: 10",
        "SrcAddr: 2001:db8::1",
        "Classification Engine ID: USER-Defined (6)",
        "ApplicationDesc: video",
    ):
        assert line in shown, line
    assert shown.count("ApplicationName: video") == 3  # two flows, and the options record


def _shown(file: Path, form: str) -> str:
    """What nfdump prints of a file."""
    command = ["nfdump", "-q", "-r", str(file), "-o", form]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _open_when_it_listens(sink: IpfixSink) -> None:
    for _ in range(100):
        try:
            sink.open()
        except SinkError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("nfcapd did not come up")


@pytest.fixture
def nfcapd_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
