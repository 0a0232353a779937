"""Made-up traffic: the same for the same seed, and what other decoders expect of it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import dpkt
import pytest

from capture.errors import UsageError
from netcls.bench_traffic import Traffic, write_capture
from netcls.pipeline import Run

TRAFFIC = Traffic(6000, 180, snaplen_bytes=1514, seed=7)

Frame = tuple[float, bytes]


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traffic") / "traffic.pcap"
    write_capture(path, TRAFFIC)
    return path


@pytest.fixture(scope="module")
def frames(capture: Path) -> list[Frame]:
    with capture.open("rb") as file:
        return list(dpkt.pcap.Reader(file))


@pytest.fixture(scope="module")
def ips(frames: list[Frame]) -> list[Any]:
    return [dpkt.ethernet.Ethernet(frame).data for _, frame in frames]


def payloads(ips: list[Any], protocol: type[Any], port: int) -> list[tuple[bool, bytes]]:
    """Non-empty ones: whether from the server, and the bytes."""
    found = [(ip.data.sport == port, ip.data) for ip in ips if isinstance(ip.data, protocol)]
    return [(srv, t.data) for srv, t in found if port in (t.sport, t.dport) and t.data]


def test_a_seed_always_gives_the_same_bytes(tmp_path: Path, capture: Path) -> None:
    again, other = tmp_path / "again.pcap", tmp_path / "other.pcap"
    write_capture(again, TRAFFIC)
    write_capture(other, Traffic(6000, 180, snaplen_bytes=1514, seed=8))
    assert again.read_bytes() == capture.read_bytes()
    assert other.read_bytes() != capture.read_bytes()


def test_the_first_packets_are_the_beginning_of_the_whole(tmp_path: Path, capture: Path) -> None:
    path = tmp_path / "few.pcap"
    assert write_capture(path, TRAFFIC, first_packets=1) == 1
    one = path.read_bytes()
    assert len(one) > 24 + 16 + 54
    assert capture.read_bytes().startswith(one)


def test_it_holds_the_packets_and_flows_that_were_asked_for(capture: Path, ips: list[Any]) -> None:
    assert len(ips) == 6000
    ends = {frozenset([(ip.src, ip.data.sport), (ip.dst, ip.data.dport)]) for ip in ips}
    assert len(ends) == 180
    with Run([str(capture)], classify=False) as run:
        assert sum(len(batch) for batch in run) == 180
    assert (run.counters.packets_in_flows, run.counters.flows_started) == (6000, 180)
    assert run.counters.time_backwards == 0


def test_both_ip_versions_and_all_applications_occur(ips: list[Any]) -> None:
    kinds = {(type(ip), type(ip.data)) for ip in ips}
    assert len(kinds) == 4
    servers = {min(ip.data.sport, ip.data.dport) for ip in ips}
    assert servers == {443, 53, 5004}


def test_lengths_and_ipv4_checksums_are_right(frames: list[Frame], ips: list[Any]) -> None:
    for (_, frame), ip in zip(frames, ips, strict=True):
        if isinstance(ip, dpkt.ip.IP):
            assert 14 + ip.len == len(frame)
            assert dpkt.in_cksum(frame[14:34]) == 0
        else:
            assert 14 + 40 + ip.plen == len(frame)
        if isinstance(ip.data, dpkt.udp.UDP):
            assert ip.data.ulen == 8 + len(ip.data.data)
        assert 60 <= len(frame) <= 1514


def test_time_never_runs_backwards(frames: list[Frame]) -> None:
    times = [ts for ts, _ in frames]
    assert times == sorted(times)


def test_tcp_begins_with_a_handshake_and_leaves_no_byte_out(ips: list[Any]) -> None:
    by_flow = defaultdict(list)
    for ip in ips:
        if isinstance(ip.data, dpkt.tcp.TCP):
            client_port = max(ip.data.sport, ip.data.dport)
            by_flow[client_port, min(ip.src, ip.dst), max(ip.src, ip.dst)].append(ip.data)
    assert len(by_flow) > 50
    for packets in by_flow.values():
        assert [p.flags for p in packets[:3]] == [dpkt.tcp.TH_SYN, dpkt.tcp.TH_SYN | dpkt.tcp.TH_ACK, 0x10]
        expected = {packets[0].sport: packets[0].seq, packets[0].dport: packets[1].seq}
        for packet in packets:
            assert packet.seq == expected[packet.sport]
            counted = len(packet.data) + bool(packet.flags & (dpkt.tcp.TH_SYN | dpkt.tcp.TH_FIN))
            expected[packet.sport] = (packet.seq + counted) % 2**32
            if packet.flags & dpkt.tcp.TH_ACK:
                assert packet.ack == expected[packet.dport]


def test_other_decoders_understand_the_payloads(ips: list[Any]) -> None:
    tls = payloads(ips, dpkt.tcp.TCP, 443)
    hellos = [data for _, data in tls if data[:1] == b"\x16" and data[5:6] == b"\x01"]
    assert len(hellos) > 50
    for data in hellos:
        hello = dpkt.ssl.TLSHandshake(dpkt.ssl.TLSRecord(data).data).data
        assert isinstance(hello, dpkt.ssl.TLSClientHello)
        (name,) = [body for kind, body in hello.extensions if kind == 0]
        assert name[5:9] == b"host"
        assert name.endswith(b".example.org")
    assert len({data[11:43] for data in hellos}) == len(hellos)
    dns = payloads(ips, dpkt.udp.UDP, 53)
    assert len(dns) > 20
    for from_server, data in dns:
        message = dpkt.dns.DNS(data)
        assert message.qd[0].name.endswith(".example.org")
        assert (message.qr, len(message.an)) == (from_server, int(from_server))
    assert {dpkt.rtp.RTP(data).version for _, data in payloads(ips, dpkt.udp.UDP, 5004)} == {2}
    assert {data[0] >> 6 for _, data in payloads(ips, dpkt.udp.UDP, 443)} == {1, 3}


def test_a_short_snaplen_cuts_frames_and_says_their_length(tmp_path: Path, frames: list[Frame]) -> None:
    path = tmp_path / "cut.pcap"
    write_capture(path, Traffic(6000, 180, snaplen_bytes=128, seed=7))
    with path.open("rb") as file:
        cut = list(dpkt.pcap.Reader(file))
    assert [len(frame) for _, frame in cut] == [min(len(frame), 128) for _, frame in frames]
    with Run([str(path)], classify=False) as run:
        assert sum(int(batch.records["frame_bytes"].sum()) for batch in run) == sum(len(f) for _, f in frames)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"n_packets": 100, "n_flows": 10},
            "100 packets are too few for 10 flows; give at least 130",
        ),
        (
            {"n_packets": 1000, "snaplen_bytes": 60},
            "snaplen is 60 bytes; give at least 128, so that headers are whole",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(given: dict[str, int], text: str) -> None:
    with pytest.raises(UsageError) as refused:
        Traffic(**given)
    assert str(refused.value) == text
