"""The memory of the flow table: limits, evictions, floods, colliding hashes, indices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from capture.block import DecodedBlock, PacketBlock
from capture.flow_batch import EndReason, FlowStep, KeepSpec
from capture.flow_key import TCP
from capture.flow_table import FlowTable, FlowTableConfig, TableSizes
from capture.kernels.flow_order import SPARE_ENTRIES
from tests.flows_builder import SYN, Packet, S, blocks_of, udp
from tests.flows_run import HASH_KEY, gather, run, steps_of
from tests.reference.flow_table import NaiveFlowTable, key_of
from tests.reference.siphash import siphash
from tests.reference.traffic import random_traffic

T0 = 1_700_000_000 * S
LACK = EndReason.LACK_OF_RESOURCES
NETMAMBA = KeepSpec(5, 5, 80, 240)


def syn_flood(n: int, ts_ns: int, first: int) -> tuple[PacketBlock, DecodedBlock]:
    """``n`` SYNs, each from an address of its own, a microsecond apart."""
    packets, decoded = blocks_of([Packet(ts_ns, tcp_flags=SYN, payload_len=0)])
    columns = {name: np.repeat(getattr(decoded, name), n, axis=0) for name in DecodedBlock.__slots__}
    columns["src"][:, 12:] = np.arange(first, first + n, dtype=">u4").view(np.uint8).reshape(n, 4)
    block = PacketBlock(
        ts_ns=ts_ns + np.arange(n) * 1000,
        captured_len=np.repeat(packets.captured_len, n),
        wire_len=np.repeat(packets.wire_len, n),
        offset=np.repeat(packets.offset, n),
        link_type=np.repeat(packets.link_type, n),
        data=packets.data,
    )
    return block, DecodedBlock(**columns)


def test_a_syn_flood_stays_below_the_limit_and_leaves_dialogues_alone() -> None:
    limit = 16 * 1024 * 1024
    table = FlowTable(FlowTableConfig(memory_limit_bytes=limit), NETMAMBA)
    dialogue = [udp(T0, src_port=port) for port in range(1, 51)]
    steps: list[FlowStep] = list(steps_of(table, dialogue))
    for part in range(100):
        ts_ns = T0 + (part + 1) * 2_000_000
        steps += table.push(*syn_flood(2000, ts_ns, part * 2000))
        answers = [packet.answered(ts_ns + 1_900_000) for packet in dialogue]
        steps += steps_of(
            table, answers if part % 2 else [udp(a.ts_ns, src_port=a.dst_port) for a in answers]
        )
        assert table.counters.memory_bytes <= limit
    evicted = gather(steps, NETMAMBA).ended
    assert len(evicted) == table.counters.flows_ended[LACK] > 100_000
    assert set(evicted["protocol"].tolist()) == {TCP}
    last = gather(table.flush(), NETMAMBA).ended
    assert last["packets"].sum(axis=1)[last["protocol"] != TCP].tolist() == [101] * 50
    assert table.counters.slabs_held == 0


@pytest.mark.parametrize("keep", [KeepSpec(), KeepSpec(32), NETMAMBA, KeepSpec(4096, 4096, 80, 240)])
@pytest.mark.parametrize("limit", [10**6, 2**24, 2**28])
def test_a_full_table_fits_its_limit(keep: KeepSpec, limit: int) -> None:
    if keep.n_packets == 4096 and limit < 2**28:
        pytest.skip("does not hold 16 flows of this size")
    sizes = TableSizes.within(limit, keep)
    table = FlowTable(FlowTableConfig(memory_limit_bytes=limit), keep)
    held = {name: array.nbytes for name, array in table._memory.items()}
    slots = 8 << (2 * sizes.n_flows - 1).bit_length()
    # The largest index, and the smaller one that it is rebuilt from.
    assert sum(held.values()) - held["slots"] + slots * 3 // 2 <= limit + 4096
    assert (sizes.n_slabs >= 16) == (keep.n_packets > 0)


def test_the_least_recently_seen_flow_makes_room() -> None:
    sizes = TableSizes(n_flows=2, n_slabs=2)
    out = run(
        [udp(T0, src_port=1), udp(T0, src_port=2), udp(T0, src_port=1), udp(T0, src_port=3)], sizes=sizes
    )
    assert out.ended["client_port"].tolist() == [2, 1, 3]
    assert out.reasons == [LACK, EndReason.FORCED, EndReason.FORCED]


def test_a_ready_flow_keeps_its_place_when_slabs_are_short() -> None:
    keep = KeepSpec(2)
    ready = [udp(T0, src_port=1), udp(T0, src_port=1)]
    out = run([*ready, udp(T0, src_port=2), udp(T0, src_port=3)], keep=keep, sizes=TableSizes(9, 1))
    assert out.ended["client_port"].tolist() == [2, 1, 3]
    assert out.reasons[0] == LACK
    assert out.ready["client_port"].tolist() == [1, 2, 3]


def test_a_hash_key_never_changes_a_flow() -> None:
    packets = random_traffic(seed=5, n=400)
    outcomes = []
    for key in (None, bytes(16), HASH_KEY):
        table = FlowTable(
            FlowTableConfig(idle_timeout_s=3), KeepSpec(3), hash_key=key, sizes=TableSizes(8, 4)
        )
        outcomes.append(gather([*steps_of(table, packets), *table.flush()], KeepSpec(3)))
    assert outcomes[0].ended.tobytes() == outcomes[1].ended.tobytes() == outcomes[2].ended.tobytes()


def colliding_packets(n: int) -> list[Packet]:
    """Packets of ``n`` flows that all belong at one end of an index of 4096 slots, under the known key."""
    found: list[Packet] = []
    for port in range(65536):
        packet = udp(T0, src_port=port)
        (low, low_port), (high, high_port), protocol, version, *_ = key_of(packet, use_vlan=True)
        ports = low_port.to_bytes(2, "little") + high_port.to_bytes(2, "little")
        message = low + high + ports + bytes([protocol, version, 0, 0, 0, 0])
        if siphash(HASH_KEY, message, 1, 3) % 4096 in (4095, 0):
            found.append(packet)
            if len(found) == n:
                break
    return found


def test_colliding_flows_are_told_apart_while_others_come_and_go() -> None:
    flows = colliding_packets(20)
    assert len(flows) == 20
    sizes = TableSizes(n_flows=7, n_slabs=7)
    rng = np.random.default_rng(3)
    packets = [flows[at] for at in rng.integers(0, len(flows), 600)]
    out = run(packets, FlowTableConfig(), sizes=sizes)
    naive = NaiveFlowTable(FlowTableConfig(), KeepSpec(), 7, 7)
    for packet in packets:
        naive.push(packet)
    naive.flush(EndReason.FORCED)
    assert out.ended["flow_id"].tolist() == [int(record["flow_id"]) for record in naive.ended]
    assert out.ended["packets"].sum() == 600


def test_the_index_grows_without_losing_a_flow() -> None:
    table = FlowTable(FlowTableConfig(), KeepSpec())
    packets = [udp(T0, src_port=port) for port in range(10_000)]
    assert list(steps_of(table, packets)) == []
    assert list(steps_of(table, packets)) == []
    assert table.counters.flows_open == 10_000
    out = gather(table.flush())
    assert out.ended["client_port"].tolist() == list(range(10_000))
    assert set(out.ended["packets"][:, 0].tolist()) == {2}


def test_the_order_of_last_packets_is_swept_and_stays_exact() -> None:
    table = FlowTable(FlowTableConfig(), KeepSpec(4096))
    rng = np.random.default_rng(1)
    ports = rng.integers(1, 4, 12_000)
    for first in range(0, len(ports), 500):
        list(steps_of(table, [udp(T0, src_port=int(port)) for port in ports[first : first + 500]]))
        assert table._table["order_end"].max() <= 2 * 3 + SPARE_ENTRIES
    last_seen = sorted(range(1, 4), key=lambda port: int(np.flatnonzero(ports == port)[-1]))
    assert gather(table.flush(), KeepSpec(4096)).ended["client_port"].tolist() == last_seen


def test_memory_is_used_again() -> None:
    table = FlowTable(FlowTableConfig(idle_timeout_s=1), NETMAMBA)
    used = []
    for part in range(6):
        list(steps_of(table, [udp(T0 + part * 100 * S, src_port=port) for port in range(100)]))
        used.append(table.counters.memory_bytes)
    assert used[0] == used[-1]


def test_counters_tell_flows_from_start_to_end() -> None:
    table = FlowTable(FlowTableConfig(idle_timeout_s=10), KeepSpec(2))
    packets = [udp(T0), udp(T0), udp(T0, src_port=2), udp(T0 + 11 * S, src_port=3)]
    list(steps_of(table, packets))
    counters = table.counters
    assert (counters.packets, counters.flows_started, counters.flows_open) == (4, 3, 1)
    assert (counters.flows_ready, counters.slabs_held) == (2, 1)
    assert counters.flows_ended[EndReason.IDLE] == 2
    assert EndReason.OPEN not in counters.flows_ended


def test_flows_that_stop_one_packet_short_are_given_out_early_and_hold_nothing_in_the_end() -> None:
    keep = KeepSpec(3, 3, 40, 24)
    table = FlowTable(FlowTableConfig(idle_timeout_s=10, ready_timeout_s=1), keep)
    n, steps = 20_000, []
    for packet in range(2):
        block, decoded = syn_flood(n, T0 + packet * 100_000_000, 0)
        steps += table.push(block, decoded)
    assert table.counters.slabs_held == n
    steps += table.advance(T0 + 2 * S)
    early = gather(steps, keep)
    assert early.is_early.all()
    assert sorted(early.ready["serial"].tolist()) == list(range(n))
    assert set(early.ready["n_kept"].tolist()) == {2}
    assert table.counters.flows_early == n
    ended = gather(table.advance(T0 + 12 * S), keep)
    assert len(ended.ended) == n
    assert not ended.is_early.any()
    assert table.counters.slabs_held == 0


@pytest.mark.parametrize("seed", range(4))
def test_long_traffic_equals_the_naive_twin(seed: int) -> None:
    check_against_twin(seed, n=2500)


def check_against_twin(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    keep = (KeepSpec(), KeepSpec(3, 2, 30, 8), KeepSpec(5, 5, 60, 20), KeepSpec(2))[seed % 4]
    config = FlowTableConfig(
        idle_timeout_s=(4.0, 30.0)[seed % 2],
        active_timeout_s=2.0,
        tcp_linger_s=(2.0, 50.0)[seed // 2 % 2],
        ready_timeout_s=(0.0, 0.3)[seed // 2 % 2],
    )
    n_flows, n_slabs = int(rng.integers(26, 30)), int(rng.integers(20, 26))
    packets = random_traffic(seed, n)
    naive = NaiveFlowTable(config, keep, n_flows, n_slabs)
    for packet in packets:
        naive.push(packet)
    naive.flush(EndReason.FORCED)
    out = run(packets, config, keep, TableSizes(n_flows, n_slabs, 7, 9), block_size=97)
    assert out.ended.tobytes() == b"".join(record.tobytes() for record in naive.ended)
    assert out.ready.tobytes() == b"".join(record.tobytes() for record, _, _ in naive.ready)
    if keep.n_packets:
        assert out.packets.tobytes() == b"".join(kept.tobytes() for _, kept, _ in naive.ready)
        assert out.data.tobytes() == b"".join(data.tobytes() for _, _, data in naive.ready)
    # The traffic has shown every way to end.
    assert set(out.reasons) == set(EndReason) - {EndReason.OPEN}


@pytest.mark.slow  # compiles the kernels anew
def test_no_index_leaves_its_array(tmp_path: Path) -> None:
    code = (
        "from tests.unit.capture.test_flow_memory import check_against_twin, colliding_packets\n"
        "from tests.flows_run import run\n"
        "[check_against_twin(seed, 2500) for seed in range(4)]\n"
        "print(len(run(colliding_packets(20)).ended))\n"
    )
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "20\n"
