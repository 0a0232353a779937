"""Ways to hide from a meter: each capture has the outcome that docs/evasions.md says, and its books balance."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from capture.decode import DecodeOptions, Decoder, count_rejects
from capture.flow_batch import EndReason, KeepSpec
from capture.flow_table import FlowTable, FlowTableConfig
from capture.reject import Reject
from tests import encapsulations as e
from tests import frames as f
from tests.packets import block_of

RAW = 101
MS, S = 10**6, 10**9
TABLE = Path(__file__).parents[3] / "docs" / "evasions.md"
PROTOCOLS = {1: "icmp", 4: "ipip", 6: "tcp", 17: "udp", 47: "gre"}
CLIENT, SERVER = "10.0.0.1", "10.0.0.2"
BACK = {"src": SERVER, "dst": CLIENT}
Timed = tuple[float, bytes]


class Case:
    """Raw IP packets (or Ethernet frames) with their times in seconds, and how they are decoded."""

    def __init__(
        self,
        packets: Sequence[bytes | Timed],
        link_type: int = RAW,
        check_checksums: bool = False,
    ) -> None:
        timed = [p if isinstance(p, tuple) else (at * 0.01, p) for at, p in enumerate(packets)]
        self.times = [S + round(at * S) for at, _ in timed]
        self.frames = [frame for _, frame in timed]
        self.link_type, self.check_checksums = link_type, check_checksums

    def outcome(self) -> str:
        """Flows with packets to server + to client (and end, where TCP ended it), then what belongs to none."""
        decoder = Decoder(DecodeOptions(check_checksums=self.check_checksums))
        block = block_of(self.frames, self.link_type, ts_ns=self.times)
        decoded = decoder.decode(block)
        table = FlowTable(FlowTableConfig(), KeepSpec(4, 4, 60, 20))
        steps = [*table.push(block, decoded), *table.flush()]
        flows = [row for step in steps for row in step.ended.records]
        counts = count_rejects(decoded)
        assert counts.n_decoded + counts.rejected.total() + counts.ignored.total() == len(self.frames)
        assert sum(int(flow["packets"].sum()) for flow in flows) == counts.n_decoded
        assert sum(len(step.ready) for step in steps) == len(flows)
        said = []
        for flow in flows:
            ends = " ended" if flow["end_reason"] == EndReason.END_DETECTED else ""
            tunnel = f" in {flow['tunnel_depth']} tunnels" if flow["tunnel_depth"] else ""
            name = PROTOCOLS[int(flow["protocol"])]
            said.append(f"{name} {flow['packets'][0]}+{flow['packets'][1]}{tunnel}{ends}")
        lost: Counter[str] = counts.rejected + counts.ignored
        said += [f"`{name}` {n}" for name, n in sorted(lost.items())]
        stops = {Reject(at).name.lower(): int(n) for at, n in enumerate(decoder.n_unfollowed) if n}
        return ", ".join(said + [f"`{name}` {n} (tunnel)" for name, n in stops.items()])


def tcp(flags: int, *, seq: int = 1, payload: bytes = b"", back: bool = False, **ip: object) -> bytes:
    ports = {"src_port": 443, "dst_port": 50000} if back else {"src_port": 50000, "dst_port": 443}
    segment = f.tcp(payload, flags=flags, seq=seq, **ports)  # type: ignore[arg-type]
    return f.ipv4(segment, 6, **(BACK if back else {}), **ip)  # type: ignore[arg-type]


def piece(offset: int, data: bytes, *, more: bool = True, ident: int = 7, **ip: object) -> bytes:
    word = offset // 8 | (0x2000 if more else 0)
    return f.ipv4(data, 17, fragment=word, ident=ident, **ip)  # type: ignore[arg-type]


def first(n: int, port: int = 53, **ip: object) -> bytes:
    return piece(0, f.udp(bytes(n - 8), dst_port=port, length=4000), **ip)


def piece6(offset: int, data: bytes, *, more: bool = True) -> bytes:
    return f.ipv6(f.fragment_header(17, offset=offset // 8, more=more) + data, f.FRAGMENT)


def chained(n: int) -> bytes:
    chain = b"".join(f.extension(60 if at < n - 1 else 17) for at in range(n))
    return f.ipv6(chain + f.udp(b"x"), 60)


def nested(depth: int) -> bytes:
    packet = f.ipv4(f.udp(b"inside"), src="192.168.0.1", dst="192.168.0.2")
    for level in range(depth):
        packet = f.ipv4(packet, 4, src=f"10.0.{level}.1", dst=f"10.0.{level}.2")
    return packet


SYN, ACK, FIN, RST, PSH = f.SYN, f.ACK, f.FIN, f.RST, f.PSH
OPEN = [tcp(SYN), tcp(SYN | ACK, seq=900, back=True), tcp(ACK, seq=2)]
TCP_BYTES = f.tcp(b"secret", flags=SYN, dst_port=443)

CASES: dict[str, Callable[[], Case]] = {
    # Fragments.
    "first fragment ends inside the TCP header": lambda: Case(
        [
            f.ipv4(TCP_BYTES[:16], 6, fragment=0x2000, ident=7),
            f.ipv4(TCP_BYTES[16:], 6, fragment=2, ident=7),
        ]
    ),
    "first fragment of eight bytes": lambda: Case([first(8), piece(8, bytes(64), more=False)]),
    "first fragment without a byte": lambda: Case([piece(0, b""), piece(8, bytes(64), more=False)]),
    "a second first fragment with other ports": lambda: Case(
        [first(24, 53), first(24, 80), piece(24, bytes(8), more=False)]
    ),
    "fragment overlaps the one before": lambda: Case(
        [first(24), piece(16, b"x" * 16), piece(32, bytes(8), more=False)]
    ),
    "fragment inside of one that was seen (teardrop)": lambda: Case(
        [first(64), piece(24, b"x" * 8, more=False)]
    ),
    "fragment around one that was seen": lambda: Case(
        [first(24), piece(32, bytes(8)), piece(24, bytes(32), more=False)]
    ),
    "the same fragment twice": lambda: Case([first(24), piece(24, bytes(8)), piece(24, bytes(8))]),
    "fragment past byte 65,535 (ping of death)": lambda: Case(
        [first(24), piece(65528, bytes(64), more=False)]
    ),
    "later fragment before its first": lambda: Case([piece(24, bytes(8), more=False), first(24)]),
    "later fragments without a first": lambda: Case([piece(24, bytes(8)), piece(32, bytes(8), more=False)]),
    "the last fragment never comes": lambda: Case([first(24), piece(24, bytes(8))]),
    "130 fragments of eight bytes": lambda: Case(
        [first(8), *(piece(8 * n, bytes(8)) for n in range(1, 130))]
    ),
    "later fragment 31 s after its first": lambda: Case([(0.0, first(24)), (31.0, piece(24, bytes(8)))]),
    "later fragment of another protocol": lambda: Case([first(24), f.ipv4(bytes(8), 6, fragment=3, ident=7)]),
    "fragments of two TTLs": lambda: Case([first(24, ttl=64), piece(24, bytes(8), more=False, ttl=1)]),
    "IPv6 fragments that overlap": lambda: Case(
        [piece6(0, f.udp(bytes(16), length=400)), piece6(16, bytes(16)), piece6(24, bytes(8), more=False)]
    ),
    "IPv6 packet that is one fragment": lambda: Case([piece6(0, f.udp(b"x"), more=False)]),
    # TCP.
    "segments that overlap with other bytes": lambda: Case(
        [*OPEN, tcp(PSH | ACK, seq=2, payload=b"GET /a"), tcp(PSH | ACK, seq=4, payload=b"XXXXXX")]
    ),
    "segment with a TTL of 1": lambda: Case([*OPEN, tcp(PSH | ACK, seq=2, payload=b"decoy", ttl=1)]),
    "SYN with data": lambda: Case([tcp(SYN, payload=b"early"), *OPEN[1:]]),
    "data before any SYN": lambda: Case([tcp(PSH | ACK, seq=2, payload=b"x"), tcp(ACK, back=True)]),
    "ports used again within 1 s": lambda: Case(
        [
            *OPEN,
            tcp(FIN | ACK, seq=2),
            tcp(FIN | ACK, seq=901, back=True),
            tcp(SYN, seq=5000),
            tcp(SYN | ACK, seq=7000, back=True),
        ]
    ),
    "SYN sent again with another number, unanswered": lambda: Case([tcp(SYN), tcp(SYN, seq=77)]),
    "SYN in the middle of a connection": lambda: Case([*OPEN, tcp(SYN, seq=999_999)]),
    "RST with a number outside of the window": lambda: Case(
        [*OPEN, tcp(RST, seq=3_000_000_000), tcp(PSH | ACK, seq=2, payload=b"goes on")]
    ),
    "FIN, then data": lambda: Case([*OPEN, tcp(FIN | ACK, seq=2), tcp(PSH | ACK, seq=2, payload=b"more")]),
    "SYN and FIN together": lambda: Case([tcp(SYN | FIN)]),
    "no flag at all": lambda: Case([tcp(0), tcp(0)]),
    "every flag at once": lambda: Case([tcp(0xFF)]),
    "both ends are one (land)": lambda: Case(
        [f.ipv4(f.tcp(b"", flags=SYN, src_port=139, dst_port=139), 6, src=CLIENT, dst=CLIENT)] * 2
    ),
    "TCP data offset below 5": lambda: Case([*OPEN, f.ipv4(f.tcp(b"x", data_offset=4), 6)]),
    "TCP data offset beyond the segment": lambda: Case([*OPEN, f.ipv4(f.tcp(b"x", data_offset=15), 6)]),
    # Checksums.
    "wrong TCP checksum": lambda: Case([tcp(PSH | ACK, payload=b"decoy")]),
    "wrong checksums, `--check-checksums`": lambda: Case(
        [tcp(PSH | ACK, payload=b"decoy")], check_checksums=True
    ),
    # IP and below.
    "IPv4 total length below its header": lambda: Case([f.ipv4(f.udp(b"x"), total_len=12)]),
    "IPv4 total length beyond the frame": lambda: Case([f.ipv4(f.udp(b"x"), total_len=1400)]),
    "IPv4 header length below 5": lambda: Case([f.ipv4(f.udp(b"x"), ihl=4)]),
    "UDP length below 8": lambda: Case([f.ipv4(f.udp(b"x", length=4))]),
    "UDP length beyond the packet": lambda: Case([f.ipv4(f.udp(b"x", length=900))]),
    "data in the Ethernet padding": lambda: Case([f.ethernet(f.ipv4(f.udp(b"")) + b"hidden" * 3)], 1),
    "8 IPv6 extension headers": lambda: Case([chained(8)]),
    "20 IPv6 extension headers": lambda: Case([chained(20)]),
    "3 VLAN tags": lambda: Case([f.ethernet(f.ipv4(f.udp(b"x")), vlans=[1, 2, 3])], 1),
    "4 VLAN tags": lambda: Case([f.ethernet(f.ipv4(f.udp(b"x")), vlans=[1, 2, 3, 4])], 1),
    "tunnels 4 deep": lambda: Case([nested(4)]),
    "tunnels 9 deep": lambda: Case([nested(9)]),
    "VXLAN around half a packet": lambda: Case(
        [e.in_udp(e.vxlan(f.ethernet(f.ipv4(f.udp(b"x"), total_len=900))), 4789)]
    ),
}


def documented() -> dict[str, str]:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|", TABLE.read_text(), re.MULTILINE)
    return {name.strip(): outcome.strip() for name, outcome in rows if name.strip() in CASES}


@pytest.mark.parametrize("name", CASES)
def test_an_evasion_has_its_documented_outcome(name: str) -> None:
    assert CASES[name]().outcome() == documented()[name]


def test_there_are_forty_and_the_table_has_no_others() -> None:
    rows = re.findall(r"^\| (?!capture|---)([^|]+) \|", TABLE.read_text(), re.MULTILINE)
    assert [row.strip() for row in rows] == list(CASES)
    assert len(CASES) >= 40
