"""Traffic that is out of order, doubled, half seen, cut, or aimed at the hash: flows and work stay what they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from capture.block import DecodedBlock, PacketBlock
from capture.decode import decode
from capture.flow_batch import QUALITY_ONE_WAY, QUALITY_TRUNCATED, KeepSpec
from capture.flow_table import _DECODED_COLUMNS, _PACKET_COLUMNS, FlowTable, FlowTableConfig, _columns
from capture.kernels.flow_packets import ROW_DTYPE, pack_packets
from capture.reject import Reject
from tests.flows_builder import blocks_of, udp
from tests.flows_run import HASH_KEY, gather
from tests.packets import DATA, block_from_capture

T0 = 1_700_000_000 * 10**9
N_COLLIDING = 100_000
CRAFTED_BITS = 0x7F


# ------------------------------------------------------------------------------------- aimed at the hash


def flows_from(addresses: NDArray[np.uint32]) -> tuple[PacketBlock, DecodedBlock]:
    """One packet from each IPv4 address."""
    packets, decoded = blocks_of([udp(T0)])
    n = len(addresses)
    columns = {name: np.repeat(getattr(decoded, name), n, axis=0) for name in DecodedBlock.__slots__}
    columns["src"][:, 12:] = addresses.astype(">u4").view(np.uint8).reshape(n, 4)
    names = ("ts_ns", "captured_len", "wire_len", "offset", "link_type")
    block = PacketBlock(*(np.repeat(getattr(packets, name), n) for name in names), packets.data)
    return block, DecodedBlock(**columns)


def table_of(addresses: NDArray[np.uint32], hash_key: bytes | None) -> FlowTable:
    table = FlowTable(FlowTableConfig(), KeepSpec(), hash_key=hash_key)
    assert list(table.push(*flows_from(addresses))) == []
    assert table.counters.flows_open == len(addresses)
    return table


def probes(table: FlowTable) -> NDArray[np.int64]:
    """How many slots are looked at to find each flow: the work of a packet that an attacker can raise."""
    slots = table._memory["slots"]
    at = np.flatnonzero(slots)
    home = (slots[at] >> np.uint64(32)).astype(np.int64) & (len(slots) - 1)
    return ((at - home) & (len(slots) - 1)) + 1


def crafted(n: int) -> NDArray[np.uint32]:
    """Addresses whose flows crowd into one slot of 128, under ``HASH_KEY``."""
    found: list[NDArray[np.uint32]] = []
    table = FlowTable(FlowTableConfig(), KeepSpec(), hash_key=HASH_KEY)
    addresses = np.arange(1, 100_001, dtype=np.uint32)
    block, decoded = flows_from(addresses)
    rows = np.empty(len(addresses), ROW_DTYPE)
    packets, heads = _columns(block, _PACKET_COLUMNS), _columns(decoded, _DECODED_COLUMNS)
    while sum(map(len, found)) < n:
        decoded.src[:, 12:] = addresses.astype(">u4").view(np.uint8).reshape(-1, 4)
        src, dst = decoded.src.view("<u8"), decoded.dst.view("<u8")
        pack_packets(packets, heads, src, dst, True, table._k0, table._k1, rows)
        found.append(addresses[rows["tag"] & CRAFTED_BITS == 0])
        addresses = addresses + np.uint32(len(addresses))
    return np.concatenate(found)[:n]


def test_tuples_that_collide_under_one_key_cost_no_more_than_others_under_another() -> None:
    aimed = crafted(N_COLLIDING)
    hit = probes(table_of(aimed, HASH_KEY))
    assert hit.max() > 64, "they do collide where the key is known"
    others = probes(table_of(np.arange(1, N_COLLIDING + 1, dtype=np.uint32), HASH_KEY))
    for key in (None, HASH_KEY[::-1]):
        missed = probes(table_of(aimed, key))
        assert missed.max() <= 64
        # Throughput at least 80 %, as work done.
        assert missed.sum() <= others.sum() / 0.8


# --------------------------------------------------------------------------- out of order, doubled, half, cut


@pytest.fixture(scope="module")
def demo() -> PacketBlock:
    return block_from_capture(DATA / "captures" / "demo.pcap.zst")


def reordered(block: PacketBlock, order: NDArray[np.intp]) -> PacketBlock:
    names = ("ts_ns", "captured_len", "wire_len", "offset", "link_type")
    return PacketBlock(*(getattr(block, name)[order] for name in names), block.data)


def flows_of(block: PacketBlock, keep: KeepSpec | None = None) -> NDArray[Any]:
    keep = keep or KeepSpec(4, 4, 40, 16)
    table = FlowTable(FlowTableConfig(), keep)
    decoded = decode(block)
    records = gather([*table.push(block, decoded), *table.flush()], keep).ended
    assert records["packets"].sum() == np.count_nonzero(decoded.reject == 0)
    return records


def names_of(records: NDArray[Any], *, factor: int = 1) -> list[tuple[Any, ...]]:
    """Endpoints in order of their bytes, protocol, packets: what a flow is, whoever came first."""
    out = []
    for record in records:
        ends = sorted((bytes(record[side]), int(record[f"{side}_port"])) for side in ("client", "server"))
        out.append((*ends, int(record["protocol"]), int(record["packets"].sum()) // factor))
    return sorted(out)


@pytest.mark.parametrize("within", [3, 10, 100])
def test_packets_out_of_order_make_the_same_flows(demo: PacketBlock, within: int) -> None:
    rng = np.random.default_rng(within)
    order = np.argsort(np.arange(len(demo)) + rng.uniform(0, within, len(demo)))
    assert (order != np.arange(len(demo))).mean() > 0.3
    assert names_of(flows_of(reordered(demo, order))) == names_of(flows_of(demo))


def test_every_packet_twice_makes_the_same_flows_with_twice_the_packets(demo: PacketBlock) -> None:
    twice = reordered(demo, np.repeat(np.arange(len(demo)), 2))
    assert names_of(flows_of(twice), factor=2) == names_of(flows_of(demo))


def test_one_direction_alone_makes_the_same_flows_one_way(demo: PacketBlock) -> None:
    """Of each flow, what its client sent; a flow whose client is silent is not there."""
    decoded, whole = decode(demo), flows_of(demo)
    clients = {
        (bytes(r["client"]), int(r["client_port"]), bytes(r["server"]), int(r["server_port"])) for r in whole
    }
    sent = [
        at
        for at in range(len(demo))
        if decoded.reject[at] == 0
        and (
            decoded.src[at].tobytes(),
            int(decoded.src_port[at]),
            decoded.dst[at].tobytes(),
            int(decoded.dst_port[at]),
        )
        in clients
    ]
    half = flows_of(reordered(demo, np.array(sent)))
    assert len(half) == len(whole)
    assert (half["quality"] & QUALITY_ONE_WAY).all()
    assert sorted(half["packets"][:, 0].tolist()) == sorted(whole["packets"][:, 0].tolist())


@pytest.mark.parametrize("snaplen", [64, 96, 128, 256])
def test_a_short_snaplen_loses_packets_by_name_and_marks_flows(demo: PacketBlock, snaplen: int) -> None:
    names = ("ts_ns", "wire_len", "offset", "link_type")
    ts_ns, wire_len, offset, link_type = (getattr(demo, name) for name in names)
    captured = np.minimum(demo.captured_len, snaplen).astype(np.uint32)
    short = PacketBlock(ts_ns, captured, wire_len, offset, link_type, demo.data)
    decoded, whole = decode(short), decode(demo)
    lost = (decoded.reject != whole.reject).nonzero()[0]
    assert {Reject(r) for r in decoded.reject[lost]} <= {
        Reject.TRUNCATED_TRANSPORT,
        Reject.TRUNCATED_EXTENSION,
    }
    assert len(lost) == 0 or snaplen == 64
    records = flows_of(short)
    truncated = (records["quality"] & QUALITY_TRUNCATED) != 0
    is_longest = records["frame_bytes"].sum(axis=1) > snaplen * records["packets"].sum(axis=1)
    assert truncated[is_longest].all()
    if not len(lost):
        assert names_of(records) == names_of(flows_of(demo))
