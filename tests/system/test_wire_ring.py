"""The ring on a real wire: what is sent is what is seen, down to the byte, and nothing is lost unseen."""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from capture.block import LINK_ETHERNET, LINK_RAW
from capture.decode import decode
from capture.errors import LiveError
from capture.live import filters
from capture.live.base import LiveSource, wait_for_packets
from capture.live.packet_socket import RingSizes, open_rings
from capture.live.pcap_writer import pcap_header, pcap_records
from capture.live.ring import RingSource
from tests import frames, wire
from tests.packets import DATA, block_from_capture, block_of, frames_of
from tests.wire import FAR, NEAR, needs_wire, send, tagged, until

pytestmark = [pytest.mark.root, needs_wire]

SMALL = RingSizes(block_bytes=1 << 16, n_blocks=4, retire_ms=5)


@pytest.fixture(autouse=True)
def _wire() -> Iterator[None]:
    with wire.wire():
        yield


@pytest.fixture
def demo() -> list[bytes]:
    return frames_of(block_from_capture(DATA / "captures" / "demo.pcap.zst"))[:1500]


def listen(name: str = FAR, sizes: RingSizes = SMALL, **options: object) -> RingSource:
    (ring,) = open_rings(name, sizes=sizes, **options)  # type: ignore[arg-type]
    source = RingSource(ring)
    source.begin()
    return source


def take(source: LiveSource, n: int, seconds: float = 20.0) -> list[bytes]:
    """The next ``n`` frames, as bytes."""
    taken: list[bytes] = []
    end_s = time.monotonic() + seconds
    while len(taken) < n and time.monotonic() < end_s:
        block = source.next_block()
        if block is None:
            wait_for_packets([source], 0.05)
        else:
            taken += frames_of(block)
    return taken


def udp(port: int, payload: bytes = b"x") -> bytes:
    return frames.ethernet(frames.ipv4(frames.udp(payload, src_port=port, dst_port=53), protocol=17))


def test_what_is_sent_is_what_is_seen(demo: list[bytes]) -> None:
    source = listen(sizes=RingSizes(1 << 20, 4, 5))
    before_ns = time.time_ns()
    send(demo)
    assert take(source, len(demo)) == demo
    source.count()
    counters = source.counters
    assert (counters.n_packets, counters.n_kernel_packets, counters.n_kernel_drops) == (1500, 1500, 0)
    assert counters.n_bytes == sum(map(len, demo))
    send([udp(1)])
    until(lambda: (block := source.next_block()) is not None and before_ns < block.ts_ns[0] <= time.time_ns())
    source.close()
    source.close()


def test_a_ring_goes_round_many_times() -> None:
    source = listen()
    for part in range(20):
        sent = [udp(1000 + part, bytes([part]) * size) for size in range(1, 1400, 9)]
        send(sent)
        assert take(source, len(sent)) == sent


@pytest.mark.parametrize("tpid", [0x8100, 0x88A8])
def test_vlan_tags_are_where_they_were_on_the_wire(tpid: int) -> None:
    source = listen()
    plain = udp(1)
    sent = [
        plain,
        tagged(plain, 10, tpid),
        tagged(tagged(plain, 20), 10, tpid),
        tagged(plain, 0xE005, tpid),
        plain,
    ]
    send(sent)
    seen = take(source, len(sent))
    assert seen == sent
    vlan = decode(block_of(seen)).vlan.tolist()
    assert vlan == [[0, 0], [10, 0], [10, 20], [5, 0], [0, 0]]


def test_nothing_arrives_before_the_capture_begins() -> None:
    (ring,) = open_rings(FAR, sizes=SMALL)
    source = RingSource(ring)
    send([udp(1), udp(2)])
    time.sleep(0.05)
    assert source.next_block() is None
    source.begin()
    send([udp(3)])
    assert take(source, 1) == [udp(3)]
    source.count()
    assert source.counters.n_kernel_packets == 1


def test_taken_and_dropped_are_what_was_sent() -> None:
    """P11: the reader stalls, the ring runs full."""
    source = listen(sizes=RingSizes(1 << 16, 2, 5))
    n_sent = send(udp(port % 60_000, b"y" * 500) for port in range(3000))
    n_taken = len(take(source, n_sent, seconds=0.5))
    source.count()
    assert source.counters.n_kernel_drops > 1000
    assert source.counters.n_freezes >= 1
    assert n_taken == source.counters.n_packets
    assert n_taken + source.counters.n_kernel_drops == source.counters.n_kernel_packets == n_sent
    send([udp(5)])
    assert take(source, 1) == [udp(5)]


def test_an_interface_that_goes_down_and_comes_up_again(capfd: pytest.CaptureFixture[str]) -> None:
    """P9, first half; the veth's other end cannot send while it is down."""
    source = listen()
    wire.ip("link", "set", FAR, "down")
    news: list[str] = []
    until(lambda: bool(news.append(source.check()) or news[-1]))
    assert news[-1] == f"interface '{FAR}' is down; waiting for it"
    wire.ip("link", "set", FAR, "up")
    until(lambda: bool(news.append(source.check()) or news[-1]))
    assert news[-1] == f"interface '{FAR}' is up again"
    send([udp(7)])
    assert take(source, 1) == [udp(7)]


def test_an_interface_that_is_removed_and_made_again() -> None:
    """P9, second half."""
    source = listen(promisc=True)
    send([udp(1)])
    assert take(source, 1) == [udp(1)]
    wire.ip("link", "del", NEAR)
    news: list[str] = []
    until(lambda: bool(news.append(source.check()) or news[-1]))
    assert news[-1] == f"interface '{FAR}' was removed; waiting for one of that name"
    wire.make_pair()
    until(lambda: "created again" in (news.append(source.check()) or news[-1]))
    send([udp(2)])
    assert take(source, 1) == [udp(2)]


def test_an_interface_that_is_renamed_is_followed() -> None:
    source = listen()
    wire.ip("link", "set", FAR, "down")
    wire.ip("link", "set", FAR, "name", "other0")
    wire.ip("link", "set", "other0", "up")
    news: list[str] = []
    until(lambda: "now called 'other0'" in (news.append(source.check()) or news[-1]))
    send([udp(2)])
    assert take(source, 1) == [udp(2)]


def test_both_directions_of_a_flow_reach_the_same_socket_of_a_fanout() -> None:
    rings = open_rings(FAR, sizes=SMALL, n_sockets=2)
    sources = [RingSource(ring) for ring in rings]
    for source in sources:
        source.begin()
    there = [udp(port) for port in range(2000, 2064)]
    back = [
        frames.ethernet(
            frames.ipv4(
                frames.udp(b"z", src_port=53, dst_port=port), protocol=17, src="10.0.0.2", dst="10.0.0.1"
            )
        )
        for port in range(2000, 2064)
    ]
    decoded = decode(block_of([there[0], back[0]]))
    assert decoded.src[0].tolist() == decoded.dst[1].tolist()
    send([*there, *back])
    seen: list[list[bytes]] = [take(source, 128, seconds=1.0) for source in sources]
    assert sorted(seen[0] + seen[1]) == sorted(there + back)
    for one in seen:
        assert len(one) > 10
        assert {there.index(frame) for frame in one if frame in there} == {
            back.index(frame) for frame in one if frame in back
        }


def test_a_filter_lets_in_what_matches_and_knows_of_tags_beside_the_packet() -> None:
    frame = udp(77)
    for expression, expected in (
        ("udp src port 77", [frame, tagged(frame, 10)]),
        ("vlan 10", [tagged(frame, 10)]),
        ("tcp", []),
        ("vlan 10 and udp dst port 53", [tagged(frame, 10)]),
    ):
        source = listen(bpf=expression)
        send([frame, tagged(frame, 10), udp(78)])
        assert take(source, 3, seconds=0.3) == expected, expression
        source.close()


def test_tcpdump_compiles_what_libpcap_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    by_library = filters.compile_filter("udp and vlan 10", FAR, LINK_ETHERNET)
    monkeypatch.setattr(filters, "_libpcap", lambda: None)
    if filters.shutil.which("tcpdump") is None:
        pytest.skip("needs tcpdump")
    by_tcpdump = filters.compile_filter("udp and vlan 10", FAR, LINK_ETHERNET)
    assert np.frombuffer(by_tcpdump, "u8").tolist()[:-2] == np.frombuffer(by_library, "u8").tolist()[:-2]
    with pytest.raises(LiveError, match=r"--bpf 'udp prt 53': .*syntax error"):
        filters.compile_filter("udp prt 53", FAR, LINK_ETHERNET)


def test_a_wrong_filter_is_the_operators_error() -> None:
    with pytest.raises(LiveError, match=r"--bpf 'udp prt 53': .*syntax error"):
        open_rings(FAR, sizes=SMALL, bpf="udp prt 53")


def test_loopback_shows_each_packet_once() -> None:
    source = listen("lo")
    # Somebody takes it, or an ICMP error would quote it.
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 9))
        sender.sendto(b"hello", ("127.0.0.1", 9))
    seen = [frame for frame in take(source, 4, seconds=0.5) if b"hello" in frame[-5:]]
    assert len(seen) == 1
    decoded = decode(block_of(seen))
    assert decoded.reject.tolist() == [0]
    assert decoded.dst_port.tolist() == [9]


def test_a_tunnel_interface_has_raw_ip() -> None:
    if not Path("/dev/net/tun").exists():
        pytest.skip("no /dev/net/tun")
    import fcntl
    import struct

    tunnel = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tunnel, 0x400454CA, struct.pack("16sH22x", b"tun9", 0x1001))  # TUNSETIFF, IFF_TUN | IFF_NO_PI
    wire.ip("link", "set", "tun9", "addrgenmode", "none")
    wire.ip("link", "set", "tun9", "up")
    source = listen("tun9")
    assert source.link_type == LINK_RAW
    packet = frames.ipv4(frames.udp(b"x", src_port=5, dst_port=6), protocol=17)
    os.write(tunnel, packet)
    assert take(source, 1) == [packet]
    assert decode(block_of([packet], link_type=LINK_RAW)).src_port.tolist() == [5]
    os.close(tunnel)


def test_what_is_saved_is_what_was_seen(demo: list[bytes], tmp_path: Path) -> None:
    source = listen(sizes=RingSizes(1 << 20, 4, 5))
    sent = [*demo[:300], tagged(demo[300], 7)]
    send(sent)
    saved, times = pcap_header(source.link_type), []
    while len(times) < len(sent):
        block = source.next_block()
        if block is None:
            wait_for_packets([source], 0.05)
            continue
        saved += pcap_records(block)
        times += block.ts_ns.tolist()
    path = tmp_path / "seen.pcap"
    path.write_bytes(saved)
    read = block_from_capture(path)
    assert frames_of(read) == sent
    from capture.readers import open_capture

    with open_capture(path) as reader:
        assert [ts for part in reader for ts in part.ts_ns.tolist()] == times


def test_an_unknown_interface_is_the_operators_error() -> None:
    with pytest.raises(
        LiveError, match=f"no interface 'fra0'; this machine has {FAR}, lo, {NEAR}; did you mean '{FAR}'"
    ):
        open_rings("fra0", sizes=SMALL)


def test_without_the_capability_the_error_says_how_to_grant_it() -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            libc = ctypes.CDLL(None)
            libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
            open_rings(FAR, sizes=SMALL)
        except LiveError as error:
            wanted = (
                "CAP_NET_RAW",
                "sudo netcls sniff far0",
                "AmbientCapabilities",
                "--cap-add NET_RAW",
                "setcap",
            )
            code = 0 if all(word in str(error) for word in wanted) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
