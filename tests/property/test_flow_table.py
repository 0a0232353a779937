"""The flow table against its plain twin, over any packets in any order of time, with little memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.flow_batch import EndReason, KeepSpec
from capture.flow_key import ICMP, ICMPV6, TCP, UDP
from capture.flow_table import FlowTable, FlowTableConfig, TableSizes
from capture.tunnel import DIRECTIONAL, TunnelKind
from tests.flows_builder import ACK, FIN, PSH, RST, SYN, A, B, Packet, S, ip4
from tests.flows_run import HASH_KEY, Outcome, gather, plain, run, steps_of
from tests.reference.flow_table import NaiveFlowTable, key_of

HOSTS = (A, B, ip4("10.0.1.1"), ip4("200.0.0.9"))
FLAGS = (ACK, ACK, ACK | PSH, SYN, SYN, SYN | ACK, FIN | ACK, FIN | ACK, RST, RST | ACK, SYN | RST, 0)
STEPS_NS = (0, 0, 1, S // 2, S, 3 * S, 5 * S, 5 * S + 1, 40 * S, 200 * S, -1, -S, -50 * S, -500 * S, 2**61)
NO_TUNNEL: dict[str, int] = {}
TUNNELS = (
    *([NO_TUNNEL] * 6),
    {"tunnel_kind": TunnelKind.VXLAN, "tunnel_depth": 1, "tunnel_id": 7, "tunnel_path": 1 << 63 | 7},
    {"tunnel_kind": TunnelKind.VXLAN, "tunnel_depth": 1, "tunnel_id": 8, "tunnel_path": 1 << 63 | 8},
    *(
        {"tunnel_kind": TunnelKind.GTPU, "tunnel_depth": 2, "tunnel_id": teid, "tunnel_path": 99}
        for teid in (0, 1, 2, 3, 2**32 - 1)
    ),
)
BIG = TableSizes(n_flows=64, n_slabs=64, n_ended_rows=64, n_ready_rows=64)


@st.composite
def packet_at(draw: st.DrawFn, ts_ns: int) -> Packet:
    protocol = draw(st.sampled_from((TCP, TCP, TCP, UDP, ICMP, ICMPV6, 47)))
    src, dst = draw(st.sampled_from(HOSTS)), draw(st.sampled_from(HOSTS))
    if protocol in (ICMP, ICMPV6):
        kinds = (0, 8, 3, 13) if protocol == ICMP else (128, 129, 1, 135)
        ports = draw(st.sampled_from(kinds)), draw(st.sampled_from((0, 1)))
    elif protocol == 47:
        ports = 0, 0
    else:
        ports = draw(st.sampled_from((80, 1000))), draw(st.sampled_from((80, 1000)))
    return Packet(
        ts_ns,
        src,
        dst,
        *ports,
        protocol=protocol,
        ip_version=draw(st.sampled_from((4, 4, 4, 6))),
        vlan=draw(st.sampled_from(((0, 0), (0, 0), (7, 0), (7, 9)))),
        tcp_flags=draw(st.sampled_from(FLAGS)) if protocol == TCP else 0,
        tcp_seq=draw(st.sampled_from((0, 1, 2**32 - 1))),
        tcp_ack=draw(st.sampled_from((0, 1, 2))),
        l3_offset=draw(st.sampled_from((0, 14, 18))),
        header_len=draw(st.sampled_from((28, 40, 60))),
        payload_len=draw(st.sampled_from((0, 1, 9, 30))),
        padding_len=draw(st.sampled_from((0, 6))),
        cut_len=draw(st.sampled_from((0, 0, 0, 5, 40, 200))),
        flags=draw(st.sampled_from((0, 0, 2))),
        reject=draw(st.sampled_from((0, 0, 0, 0, 0, 12))),
        filler=draw(st.integers(0, 254)),
        **draw(st.sampled_from(TUNNELS)),
    )


@st.composite
def traffic(draw: st.DrawFn) -> list[Packet]:
    ts_ns, packets = 10**18, []
    for step_ns in draw(st.lists(st.sampled_from(STEPS_NS), max_size=60)):
        ts_ns = min(ts_ns + step_ns, 2**62)
        packets.append(draw(packet_at(ts_ns)))
    return packets


configs = st.builds(
    FlowTableConfig,
    idle_timeout_s=st.sampled_from((1.0, 4.0, 120.0)),
    active_timeout_s=st.sampled_from((0.5, 6.0, 1800.0)),
    tcp_linger_s=st.sampled_from((0.0, 2.0, 5.0, 300.0)),
    ready_timeout_s=st.sampled_from((0.0, 0.0, 0.5, 2.0, 50.0)),
    use_vlan=st.booleans(),
)
keeps = st.sampled_from(
    (KeepSpec(), KeepSpec(1, 1, 4, 4), KeepSpec(3), KeepSpec(4, 2, 30, 0), KeepSpec(5, 5, 80, 24))
)


@dataclass(frozen=True)
class Memory:
    n_flows: int
    n_slabs: int
    n_ended_rows: int
    n_ready_rows: int
    block_size: int
    hash_key: bytes


memories = st.builds(
    Memory,
    n_flows=st.sampled_from((1, 2, 3, 40)),
    n_slabs=st.sampled_from((1, 2, 40)),
    n_ended_rows=st.sampled_from((4, 5, 100)),
    n_ready_rows=st.sampled_from((4, 6, 100)),
    block_size=st.sampled_from((1, 3, 1000)),
    hash_key=st.binary(min_size=16, max_size=16),
)


def naive_run(
    packets: list[Packet], config: FlowTableConfig, keep: KeepSpec, memory: Memory
) -> NaiveFlowTable:
    naive = NaiveFlowTable(config, keep, memory.n_flows, memory.n_slabs)
    for packet in packets:
        naive.push(packet)
    naive.flush(EndReason.FORCED)
    return naive


def fast_run(
    packets: list[Packet], config: FlowTableConfig, keep: KeepSpec, memory: Memory
) -> tuple[FlowTable, Outcome]:
    sizes = TableSizes(memory.n_flows, memory.n_slabs, memory.n_ended_rows, memory.n_ready_rows)
    table = FlowTable(config, keep, hash_key=memory.hash_key, sizes=sizes)
    steps = list(steps_of(table, packets, memory.block_size))
    return table, gather([*steps, *table.flush()], keep)


@settings(max_examples=250, deadline=None)
@given(traffic(), configs, keeps, memories)
def test_the_table_equals_its_naive_twin(
    packets: list[Packet], config: FlowTableConfig, keep: KeepSpec, memory: Memory
) -> None:
    ref = naive_run(packets, config, keep, memory)
    table, comp = fast_run(packets, config, keep, memory)
    assert plain(comp.ended) == plain(ref.ended)
    assert plain(comp.ready) == plain(record for record, _, _ in ref.ready)
    for row, (_, kept, data) in enumerate(ref.ready):
        assert comp.packets[row].tolist() == kept.tolist()
        np.testing.assert_array_equal(comp.data[row], data)
    counters = table.counters
    assert counters.packets == ref.n_packets == sum(packet.reject == 0 for packet in packets)
    assert counters.packets_time_backwards == ref.n_backwards
    assert counters.flows_started == len(ref.ended)
    assert counters.flows_ready + counters.flows_early == len(ref.ready)


@settings(max_examples=80, deadline=None)
@given(traffic(), configs, keeps, memories)
def test_every_flow_is_ready_once_and_ends_once_and_not_before(
    packets: list[Packet], config: FlowTableConfig, keep: KeepSpec, memory: Memory
) -> None:
    table, comp = fast_run(packets, config, keep, memory)
    started = list(range(table.counters.flows_started))
    assert sorted(comp.ended["serial"].tolist()) == started
    assert sorted(comp.ready["serial"][~comp.is_early].tolist()) == (started if keep.n_packets else [])
    ended_step = dict(zip(comp.ended["serial"].tolist(), comp.ended_step, strict=True))
    for serial, step in zip(comp.ready["serial"].tolist(), comp.ready_step, strict=True):
        assert step <= ended_step[serial]
    early = comp.ready["serial"][comp.is_early].tolist()
    assert len(early) == len(set(early)) == table.counters.flows_early
    assert config.ready_timeout_s > 0 or not early
    order = comp.ready["serial"].tolist()
    for serial in early:
        assert order.count(serial) == 2
        assert comp.is_early[order.index(serial)]
    assert int(comp.ended["packets"].sum()) == table.counters.packets
    assert (comp.ended["first_ts_ns"] <= comp.ended["last_ts_ns"]).all()
    assert table.counters.flows_open == 0
    assert table.counters.slabs_held == 0
    assert sum(table.counters.flows_ended.values()) == len(started)


@settings(max_examples=60, deadline=None)
@given(traffic(), configs, keeps, st.sampled_from((1, 2, 7)))
def test_a_block_size_never_changes_a_flow(
    packets: list[Packet], config: FlowTableConfig, keep: KeepSpec, block_size: int
) -> None:
    whole = run(packets, config, keep, BIG)
    cut = run(packets, config, keep, BIG, block_size)
    assert whole.ended.tobytes() == cut.ended.tobytes()
    assert whole.ready.tobytes() == cut.ready.tobytes()
    if len(whole.ready):
        assert whole.packets.tobytes() == cut.packets.tobytes()
        assert whole.data.tobytes() == cut.data.tobytes()


def turned(packet: Packet) -> Packet:
    """The packet as if the other end had sent it: an echo request becomes an echo reply."""
    low, high, *_ = key_of(packet, use_vlan=True)
    if packet.protocol in (ICMP, ICMPV6):
        ports = {low, high} - {(packet.src, packet.src_port)}
        return replace(packet, src=packet.dst, dst=packet.src, src_port=min(ports)[1])
    return packet.answered(packet.ts_ns)


# Without tunnels whose directions have ids of their own: there, who sends is part of the key.
two_way = packet_at(10**18).filter(
    lambda p: (
        p.reject == 0
        and not (p.protocol in (ICMP, ICMPV6) and p.src_port in (3, 1))
        and p.src != p.dst
        and p.tunnel_kind not in DIRECTIONAL
    )
)


@settings(max_examples=80, deadline=None)
@given(st.lists(two_way, min_size=1, max_size=12), st.data())
def test_who_sends_never_changes_the_key(packets: list[Packet], data: st.DataObject) -> None:
    config = FlowTableConfig(tcp_linger_s=300.0)
    sent = [replace(packet, tcp_flags=ACK if packet.protocol == TCP else 0) for packet in packets]
    mixed = [turned(packet) if data.draw(st.booleans()) else packet for packet in sent]
    one, other = run(sent, config, sizes=BIG), run(mixed, config, sizes=BIG)
    assert sorted(one.ended["flow_id"].tolist()) == sorted(other.ended["flow_id"].tolist())
    assert len(one.ended) == len({key_of(packet, use_vlan=True) for packet in sent})


@settings(max_examples=40, deadline=None)
@given(traffic(), configs, keeps, st.integers(0, 2**62), st.integers(-(2**63), 2**63 - 1))
def test_any_time_may_pass_without_packets(
    packets: list[Packet], config: FlowTableConfig, keep: KeepSpec, first_ns: int, second_ns: int
) -> None:
    naive = NaiveFlowTable(config, keep, 64, 64)
    table = FlowTable(config, keep, hash_key=HASH_KEY, sizes=TableSizes(64, 64, 4, 4))
    steps = []
    for now_ns, part in ((first_ns, packets[::2]), (second_ns, packets[1::2])):
        for packet in part:
            naive.push(packet)
        naive.advance(now_ns)
        steps += [*steps_of(table, part), *table.advance(now_ns)]
    naive.flush(EndReason.FORCED)
    comp = gather([*steps, *table.flush()], keep)
    assert plain(comp.ended) == plain(naive.ended)
