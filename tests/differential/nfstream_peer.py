"""nfstream 6.6 as an independent flow meter: its flows, and which packet it takes for what.

``meter`` runs it, in one process of its own for all captures: it forks, pins its processes to cores, and must not do
so in the process of a test. ``see`` tells from the bytes of one packet what nfstream makes of it. Where that says the
same as the counters that nfstream printed, each packet of a capture is known to be in one certain flow of nfstream,
and a difference to our flows can be put down to packets.

    python -m tests.differential.nfstream_peer IDLE_S ACTIVE_S < paths      (one JSON line a capture)
"""

from __future__ import annotations

import gzip
import ipaddress
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
TIMEOUT_S: Final = 1800

ICMP, IP_IN_IP, TCP, UDP, IPV6_IN_IP, ICMPV6 = 1, 4, 6, 17, 41, 58
_SHORTEST_FRAME: Final = 28
_IPV6_EXTENSIONS: Final = {0, 43, 44, 59, 60, 135}

_MIXED_INTERFACES: Final = "interfaces that differ in link type or snap length"

End = tuple[bytes, int]


class PeerFlow(NamedTuple):
    """A flow as nfstream reports it; pairs are source to destination, then back. Bytes are whole frames."""

    src: End
    dst: End
    protocol: int
    vlan: int
    first_ms: int
    packets: tuple[int, int]
    frame_bytes: tuple[int, int]

    @property
    def key(self) -> tuple[Any, ...]:
        return (*sorted((self.src, self.dst)), self.protocol, self.vlan)


class PeerPacket(NamedTuple):
    """A packet that nfstream counts. ``through``: what it steps over that we do not, such as an outer IP header."""

    src: End
    dst: End
    protocol: int
    vlan: int
    through: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        return (*sorted((self.src, self.dst)), self.protocol, self.vlan)


# ------------------------------------------------------------------------------------------- its flows


def meter(captures: Sequence[Path], idle_timeout_s: int, active_timeout_s: int) -> list[list[PeerFlow] | str]:
    """The flows of each capture in nfstream's order, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [_plain(path, Path(folder) / str(number)) for number, path in enumerate(captures)]
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(idle_timeout_s), str(active_timeout_s)],
            input="\n".join(map(str, paths)),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
            cwd=ROOT,
        )
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("[", '"'))]
    assert len(results) == len(captures), done.stderr
    return [
        result
        if isinstance(result, str)
        else _MIXED_INTERFACES
        if has_mixed_interfaces(path)
        else list(map(_flow, result))
        for path, result in zip(captures, results, strict=True)
    ]


def has_mixed_interfaces(path: Path) -> bool:
    """True for a pcapng whose interfaces differ in link type or snap length.

    libpcap refuses such interfaces. nfstream goes on behind the error, without the packets of these and, as their
    numbers are off by then, of other interfaces.
    """
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if raw[:4] != b"\n\r\r\n":
        return False
    order = ">" if raw[8:12] == b"\x1a\x2b\x3c\x4d" else "<"
    interfaces = set()
    at = 0
    while at + 16 <= len(raw):
        kind, size = struct.unpack_from(order + "II", raw, at)
        if kind == 1:
            interfaces.add(raw[at + 8 : at + 10] + raw[at + 12 : at + 16])
        at += max(size, 12)
    return len(interfaces) > 1


def _plain(path: Path, target: Path) -> Path:
    """nfstream reads no compressed captures."""
    if path.suffix == ".gz":
        target.write_bytes(gzip.decompress(path.read_bytes()))
    elif path.suffix == ".zst":
        import zstandard

        with path.open("rb") as packed, target.open("wb") as plain:
            zstandard.ZstdDecompressor().copy_stream(packed, plain)
    else:
        return path.resolve()
    return target


def _flow(row: list[Any]) -> PeerFlow:
    src, src_port, dst, dst_port, protocol, vlan, first_ms, *counts = row
    packets, frame_bytes = (counts[0], counts[1]), (counts[2], counts[3])
    return PeerFlow(_end(src, src_port), _end(dst, dst_port), protocol, vlan, first_ms, packets, frame_bytes)


def _end(address: str, port: int) -> End:
    return ipaddress.ip_address(address).packed, port


def _main(paths: Iterable[str], idle_timeout_s: int, active_timeout_s: int) -> None:
    from nfstream import NFStreamer

    for path in paths:
        settings = {"n_dissections": 0, "accounting_mode": 0, "decode_tunnels": False, "n_meters": 1}
        try:
            flows = NFStreamer(path, idle_timeout=idle_timeout_s, active_timeout=active_timeout_s, **settings)
            result: Any = [
                (
                    *(flow.src_ip, flow.src_port, flow.dst_ip, flow.dst_port, flow.protocol, flow.vlan_id),
                    flow.bidirectional_first_seen_ms,
                    *(flow.src2dst_packets, flow.dst2src_packets, flow.src2dst_bytes, flow.dst2src_bytes),
                )
                for flow in flows
            ]
        except ValueError as error:
            result = str(error)
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


# ----------------------------------------------------------------------------------------- its packets


def see(frame: bytes, link_type: int) -> PeerPacket | str:
    """What nfstream makes of a packet, or why it passes it over."""
    if len(frame) < _SHORTEST_FRAME:
        return "short_frame"
    link = _link(frame, link_type)
    if isinstance(link, str):
        return link
    ether_type, at = link
    through = ""
    vlan = 0
    while ether_type in (0x8100, 0x8847, 0x8848, 0x8864):
        if ether_type == 0x8864:
            ether_type, at, through = 0x0800, at + 8, "pppoe"
            continue
        if at + 4 >= len(frame):
            return "short_frame"
        if ether_type == 0x8100:
            vlan = _u16(frame, at) & 0xFFF
            ether_type, at = _u16(frame, at + 2), at + 4
            continue
        through = "mpls"
        while not frame[at + 2] & 1 and at + 8 < len(frame):
            at += 4
        ether_type, at = 0x0800, at + 4
    return _ip(frame, at, vlan, ether_type == 0x0800, through)


def _link(frame: bytes, link_type: int) -> tuple[int, int] | str:
    """EtherType (0 if there is none) and where the next header begins."""
    if link_type in (12, 14, 101, 228, 229):
        is_4 = link_type == 228 or (link_type != 229 and frame[0] >> 4 == 4)
        return (0x0800 if is_4 else 0x86DD), 0
    if link_type == 0:
        return (0x0800 if struct.unpack_from(">I", frame)[0] == 2 else 0x86DD), 4
    if link_type == 113:
        return _u16(frame, 14), 16
    if link_type in (9, 50, 104):
        is_hdlc = link_type == 50 or frame[0] in (0x0F, 0x8F)
        return _u16(frame, 2 if is_hdlc else 0), 4 if is_hdlc else 2
    if link_type != 1:
        return "link_type"
    ether_type = _u16(frame, 12)
    if ether_type >= 1536:
        return ether_type, 14
    if 0 < ether_type <= 1500:
        if 0xAA in frame[14:16]:
            return int.from_bytes(frame[20:22], "little"), 22  # it forgets to swap the bytes
        if 0x42 in frame[14:16]:
            return "not_ip"
    return 0, 14


def _ip(frame: bytes, at: int, vlan: int, is_ipv4_type: bool, through: str) -> PeerPacket | str:
    """It looks at the version, not at the EtherType, and always steps into IP in IP."""
    fragment = 0
    while True:
        if len(frame) < at + 20:
            return "short_ip" if is_ipv4_type else "not_ip"
        version = frame[at] >> 4
        if is_ipv4_type:
            fragment = _u16(frame, at + 6) & 0x1FFF
        if version == 4:
            header_len = 4 * (frame[at] & 15)
            if frame[at + 9] in (IP_IN_IP, IPV6_IN_IP) and header_len:
                at, through = at + header_len, "ip_in_ip"
                continue
            if fragment:
                return "later_fragment"
            return _ipv4(frame, at, vlan, through)
        if version != 6:
            return "not_ip"
        behind = _ipv6_transport(frame, at)
        if isinstance(behind, str):
            return behind
        protocol, l4, l4_len = behind
        if protocol not in (IP_IN_IP, IPV6_IN_IP):
            ends = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
            return _transport(frame, *ends, protocol, l4, l4_len, vlan, through)
        at, through = l4, "ip_in_ip"


def _ipv4(frame: bytes, at: int, vlan: int, through: str) -> PeerPacket | str:
    total_len, header_len = _u16(frame, at + 2), 4 * (frame[at] & 15)
    if header_len > len(frame) - at:
        return "ip_header_length"
    if total_len < header_len:
        return "ip_total_length"
    src, dst = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
    return _transport(frame, src, dst, frame[at + 9], at + header_len, total_len - header_len, vlan, through)


def _ipv6_transport(frame: bytes, at: int) -> tuple[int, int, int] | str:
    """Protocol, position and length behind the extension headers."""
    if len(frame) < at + 40:
        return "short_ip"
    left, protocol, l4 = _u16(frame, at + 4), frame[at + 6], at + 40
    if len(frame) < l4 + left:
        return "truncated_ipv6"
    while protocol in _IPV6_EXTENSIONS:
        if protocol == 59:
            return "no_next_header"
        if left < 8:
            return "ipv6_extension"
        size = 8
        if protocol == 44:
            if _u16(frame, l4 + 2) >> 3:
                return "later_fragment"
        else:
            size = 8 * frame[l4 + 1] + 8
        if size > left:
            return "ipv6_extension"
        protocol, left, l4 = frame[l4], left - size, l4 + size
    return protocol, l4, left


def _transport(
    frame: bytes, src: bytes, dst: bytes, protocol: int, at: int, length: int, vlan: int, through: str
) -> PeerPacket | str:
    ports = 0, 0
    if (protocol == TCP and length >= 20) or (protocol == UDP and length >= 8):
        if len(frame) < at + 4:
            return "ports_not_captured"  # it reads on in memory that is not the packet's
        ports = _u16(frame, at), _u16(frame, at + 2)
    return PeerPacket((src, ports[0]), (dst, ports[1]), protocol, vlan, through)


def _u16(frame: bytes, at: int) -> int:
    return frame[at] << 8 | frame[at + 1]


if __name__ == "__main__":
    _main(sys.stdin.read().splitlines(), int(sys.argv[1]), int(sys.argv[2]))
