"""Flows in tunnels: told apart by what names the tunnel, both directions together."""

from __future__ import annotations

import random

import pytest

from capture.flow_batch import KeepSpec
from capture.flow_table import FlowTable, FlowTableConfig, TableSizes
from capture.kernels.flow_index import MAX_TWINS
from capture.tunnel import TunnelKind
from tests.flows_builder import Packet, S, udp
from tests.flows_run import HASH_KEY, gather, plain, run, steps_of
from tests.reference.flow_table import NaiveFlowTable

T0 = 1_700_000_000 * S


def vxlan(packet_path: int, **changes: object) -> Packet:
    changes |= {"tunnel_kind": TunnelKind.VXLAN, "tunnel_depth": 1, "tunnel_id": packet_path}
    return udp(T0, tunnel_path=packet_path, **changes)


def gtpu(teid: int, ts_ns: int = T0, path: int = 99, **changes: object) -> Packet:
    return udp(
        ts_ns, tunnel_kind=TunnelKind.GTPU, tunnel_depth=1, tunnel_id=teid, tunnel_path=path, **changes
    )


def test_two_tunnels_and_none_are_three_flows() -> None:
    flows = [udp(T0), vxlan(7), vxlan(8)]
    out = run([*flows, *(packet.answered(T0 + 1) for packet in flows)])
    assert out.ended["packets"].tolist() == [[1, 1]] * 3
    assert out.ended["tunnel_kind"].tolist() == [0, TunnelKind.VXLAN, TunnelKind.VXLAN]
    assert out.ended["tunnel_id"].tolist() == [[0, 0], [7, 7], [8, 8]]
    assert len(set(out.ended["flow_id"].tolist())) == 3


def test_directions_with_ids_of_their_own_are_one_flow() -> None:
    out = run([gtpu(1), gtpu(1).answered(T0 + 1, tunnel_id=51), gtpu(1), gtpu(1).answered(T0, tunnel_id=51)])
    assert out.ended["packets"].tolist() == [[2, 2]]
    assert out.ended["tunnel_id"].tolist() == [[1, 51]]


def test_the_same_dialogue_in_two_such_tunnels_is_two_flows() -> None:
    one, two = gtpu(1), gtpu(2)
    answers = [one.answered(T0 + 1, tunnel_id=51), two.answered(T0 + 2, tunnel_id=52)]
    out = run([one, two, *answers, two, one, *reversed(answers)])
    assert out.ended["packets"].tolist() == [[2, 2]] * 2
    assert sorted(out.ended["tunnel_id"].tolist()) == [[1, 51], [2, 52]]


def test_other_endpoints_are_another_tunnel_whatever_the_id() -> None:
    out = run([gtpu(1), gtpu(1, path=100)])
    assert len(out.ended) == 2


@pytest.mark.parametrize("keep", [KeepSpec(), KeepSpec(2, 1, 28, 4)])
def test_many_tunnels_with_one_inner_flow_are_as_the_twin_says(keep: KeepSpec) -> None:
    rng = random.Random(4)
    sizes = TableSizes(n_flows=30, n_slabs=30)
    packets = []
    for number in range(600):
        packet = gtpu(rng.randrange(1, 2 * MAX_TWINS), T0 + number, src_port=rng.choice((1, 2)))
        packets.append(packet.answered(packet.ts_ns) if rng.random() < 0.3 else packet)
    out = run(packets, FlowTableConfig(), keep, sizes)
    naive = NaiveFlowTable(FlowTableConfig(), keep, 30, 30)
    for packet in packets:
        naive.push(packet)
    naive.flush(4)  # type: ignore[arg-type]
    assert plain(out.ended) == plain(naive.ended)


def test_a_flood_of_tunnel_ids_does_not_make_one_long_chain() -> None:
    """100,000 TEIDs around one inner flow cost what 100,000 flows cost, in steps of the index."""
    n = 20_000
    packets = [gtpu(teid) for teid in range(1, n + 1)]
    table = FlowTable(FlowTableConfig(), KeepSpec(), hash_key=HASH_KEY)
    out = gather([*steps_of(table, packets, 4096), *table.flush()])
    assert len(out.ended) == n
    tags = table._memory["flows"]["tag"][2 : n + 2]
    assert len(set(tags.tolist())) > n - 2 * MAX_TWINS
