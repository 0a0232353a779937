"""Write the captures of the golden cases: python -m tests.golden.make_cases

Made with scapy, so that no decoder or writer of ours is on both sides. What `netcls flows` must say of each is in
`expected.jsonl`, written by `python -m tests.golden.update` and read by a person before it is committed.
"""

from __future__ import annotations

from pathlib import Path

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import CookedLinux, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgWriter, PcapWriter

CASES = Path(__file__).parent / "cases"
START_S = 1_790_000_000
C, S = "192.0.2.1", "198.51.100.9"


def tcp(flags: str, *, up: bool = True, seq: int = 1, payload: bytes = b"", port: int = 40000) -> Packet:
    ends = {"src": C, "dst": S} if up else {"src": S, "dst": C}
    ports = {"sport": port, "dport": 443} if up else {"sport": 443, "dport": port}
    packet = Ether() / IP(**ends) / TCP(**ports, flags=flags, seq=seq)
    return packet / Raw(payload) if payload else packet


OPENING = [tcp("S", seq=100), tcp("SA", up=False, seq=900), tcp("A", seq=101)]
CLOSING = [tcp("FA", seq=101), tcp("FA", up=False, seq=901), tcp("A", seq=102)]

WHAT: dict[str, tuple[str, list[Packet]]] = {
    "tcp_closed_by_fin": (
        "A connection that opens, sends and closes ends with end_detected; the last ACK belongs to it.",
        [*OPENING, tcp("PA", seq=101, payload=b"hello"), *CLOSING],
    ),
    "tcp_closed_by_rst": (
        "RST ends a connection; a late packet within the linger time still belongs to it.",
        [*OPENING, tcp("R", up=False, seq=901), tcp("A", seq=101)],
    ),
    "port_reuse": (
        "A SYN with another sequence number on the ports of a closed connection begins a new flow.",
        [*OPENING, *CLOSING, tcp("S", seq=5000), tcp("SA", up=False, seq=7000), tcp("A", seq=5001)],
    ),
    "syn_retransmitted": (
        "The same SYN again is the same connection.",
        [tcp("S", seq=100), tcp("S", seq=100), *OPENING[1:]],
    ),
    "syn_ack_first": (
        "The receiver of a SYN-ACK is the client, although the server is seen first.",
        OPENING[1:],
    ),
    "midstream": (
        "TCP without its opening: the client is who was seen first, and quality says that this is a guess.",
        [tcp("PA", up=False, seq=5, payload=b"x"), tcp("A", seq=9)],
    ),
    "icmp_dialogue": (
        "Echo request and reply are one flow; the error about another packet is a second one, in one direction.",
        [
            Ether() / IP(src=C, dst=S) / ICMP(type=8, id=7) / Raw(b"ping"),
            Ether() / IP(src=S, dst=C) / ICMP(type=0, id=7) / Raw(b"ping"),
            Ether() / IP(src=S, dst=C) / ICMP(type=3, code=3) / IP(src=C, dst=S) / UDP(sport=1, dport=2),
        ],
    ),
    "vlan_and_qinq": (
        "The same five-tuple untagged, on VLAN 10, and on VLAN 10 inside 20: three flows.",
        [
            Ether() / IP(src=C, dst=S) / UDP(sport=1000, dport=53) / Raw(b"q"),
            Ether() / Dot1Q(vlan=10) / IP(src=C, dst=S) / UDP(sport=1000, dport=53) / Raw(b"q"),
            Ether(type=0x88A8)
            / Dot1Q(vlan=20)
            / Dot1Q(vlan=10)
            / IP(src=C, dst=S)
            / UDP(sport=1000, dport=53)
            / Raw(b"q"),
        ],
    ),
    "fragments": (
        "The first fragment makes the flow, with quality fragments; the later ones are ignored by name, IPv4 and IPv6.",
        [
            Ether() / IP(src=C, dst=S, flags="MF", id=9) / UDP(sport=9, dport=9, len=3000) / Raw(bytes(1000)),
            Ether() / IP(src=C, dst=S, frag=126, id=9, proto=17) / Raw(bytes(900)),
            Ether()
            / IPv6(src="2001:db8::1", dst="2001:db8::2")
            / IPv6ExtHdrFragment(m=1, id=3)
            / UDP(sport=9, dport=9, len=3000, chksum=1)
            / Raw(bytes(1000)),
            Ether()
            / IPv6(src="2001:db8::1", dst="2001:db8::2")
            / IPv6ExtHdrFragment(offset=126, id=3, nh=17)
            / Raw(bytes(900)),
        ],
    ),
    "ipv6_extension_headers": (
        "TCP behind a hop-by-hop header is TCP.",
        [
            Ether()
            / IPv6(src="2001:db8::1", dst="2001:db8::2")
            / IPv6ExtHdrHopByHop()
            / TCP(sport=1, dport=2, flags="S")
        ],
    ),
    "idle_timeout": (
        "130 s of silence end a flow with reason idle; the next packet begins another.",
        [
            Ether() / IP(src=C, dst=S) / UDP(sport=1, dport=2) / Raw(b"a"),
            Ether() / IP(src=C, dst=S) / UDP(sport=1, dport=2) / Raw(b"b"),
        ],
    ),
}


def timed(packets: list[Packet], gap_s: float) -> list[Packet]:
    """Copies, the given time apart."""
    copies = [packet.copy() for packet in packets]
    for place, copy in enumerate(copies):
        copy.time = START_S + place * gap_s
    return copies


def main() -> None:
    for name, (what, packets) in WHAT.items():
        folder = CASES / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(
            f"{what}\n\nMade by `tests/golden/make_cases.py` with scapy. MIT.\n"
        )
        with PcapWriter(str(folder / "capture.pcap"), linktype=1) as writer:
            writer.write(timed(packets, 130 if name == "idle_timeout" else 0.25))
    write_variants()


def write_variants() -> None:
    """The same connection in other file formats, and cut off."""
    copies = timed([*OPENING, *CLOSING], 0.25)
    variants = {
        "nanoseconds": "A pcap with nanoseconds and the other byte order says the same as one with microseconds.",
        "pcapng": "A pcapng says the same as a pcap.",
        "pcapng_two_interfaces": "Ethernet and Linux cooked in one file: both directions meet in one flow.",
        "linux_cooked": "Linux cooked frames carry the same connection, with two bytes more a frame.",
        "cut_off": "A capture that ends in the middle of its last record is read up to there.",
    }
    for name, what in variants.items():
        folder = CASES / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(
            f"{what}\n\nMade by `tests/golden/make_cases.py` with scapy. MIT.\n"
        )
    with PcapWriter(str(CASES / "nanoseconds/capture.pcap"), linktype=1, nano=True, endianness=">") as writer:
        writer.write(copies)
    with PcapNgWriter(str(CASES / "pcapng/capture.pcap")) as ng:
        ng.write(copies)
    cooked = timed([CookedLinux(proto=0x0800) / packet[IP] for packet in [*OPENING, *CLOSING]], 0.25)
    with PcapWriter(str(CASES / "linux_cooked/capture.pcap"), linktype=113) as writer:
        writer.write(cooked)
    mixed = [sll if sll[IP].src == S else ether for ether, sll in zip(copies, cooked, strict=True)]
    for packet in mixed:
        packet.sniffed_on = "any" if CookedLinux in packet else "eth0"
    with PcapNgWriter(str(CASES / "pcapng_two_interfaces/capture.pcap")) as ng:
        for packet in mixed:
            ng.write(packet)
    whole = (CASES / "tcp_closed_by_fin/capture.pcap").read_bytes()
    (CASES / "cut_off/capture.pcap").write_bytes(whole[:-20])


if __name__ == "__main__":
    main()
