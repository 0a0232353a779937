"""Real captures, read as dpkt and scapy read them.

Known disagreements: dpkt gives pcapng times as floats, and believes the first interface only; it has no wire
lengths. Scapy and we agree on all of these captures.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import dpkt
import pytest
from scapy.utils import RawPcapNgReader, RawPcapReader

from tests.captures import packets_of
from tests.reference.pcap_reader import read_capture

CAPTURES = sorted((Path(__file__).parents[2] / "data" / "readers").glob("*.*ap*"))
EVERY_CAPTURE = pytest.mark.parametrize("path", CAPTURES, ids=[path.name for path in CAPTURES])


def plain(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def test_the_captures_are_there() -> None:
    assert len(CAPTURES) == 8


@EVERY_CAPTURE
def test_as_the_twin_reads_it(path: Path) -> None:
    got, reader = packets_of(path)
    assert (got, not reader.counters.cut) == read_capture(plain(path))
    assert got


@EVERY_CAPTURE
def test_as_scapy_reads_it(path: Path) -> None:
    got, reader = packets_of(path)
    wanted = []
    if reader.format == "pcapng":
        for data, meta in RawPcapNgReader(io.BytesIO(plain(path))):
            ns = ((meta.tshigh << 32) + meta.tslow) * 10**9 // meta.tsresol
            wanted.append((ns, meta.linktype, meta.wirelen, data))
    else:
        scapy = RawPcapReader(io.BytesIO(plain(path)))
        for data, meta in scapy:
            ns = meta.sec * 10**9 + meta.usec * (1 if scapy.nano else 1000)
            wanted.append((ns, scapy.linktype, meta.wirelen, data))
    assert [tuple(packet) for packet in got] == wanted


@EVERY_CAPTURE
def test_as_dpkt_reads_it(path: Path) -> None:
    got, reader = packets_of(path)
    peer = (dpkt.pcapng if reader.format == "pcapng" else dpkt.pcap).Reader(io.BytesIO(plain(path)))
    wanted = [(float(ts), bytes(data)) for ts, data in peer]
    assert [packet.data for packet in got] == [data for _, data in wanted]
    if path.name != "gap-data-missing.pcapng":  # interfaces of two resolutions
        assert [packet.ts_ns / 1e9 for packet in got] == pytest.approx([ts for ts, _ in wanted], abs=1e-6)
