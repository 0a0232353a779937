"""The rules of the flow table, one at a time (decision 0004)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from capture.block import PACKET_FRAGMENT
from capture.errors import UsageError
from capture.flow_batch import (
    QUALITY_DIRECTION_GUESSED,
    QUALITY_FRAGMENTS,
    QUALITY_MIDSTREAM,
    QUALITY_ONE_WAY,
    QUALITY_TIME_BACKWARDS,
    QUALITY_TRUNCATED,
    EndReason,
    KeepSpec,
)
from capture.flow_table import FlowTable, FlowTableConfig, TableSizes
from tests.flows_builder import ACK, FIN, PSH, RST, SYN, A, B, Packet, S, icmp, udp
from tests.flows_run import gather, run, steps_of

T0 = 1_700_000_000 * S
IDLE, ACTIVE, END_DETECTED, FORCED = (
    EndReason.IDLE,
    EndReason.ACTIVE,
    EndReason.END_DETECTED,
    EndReason.FORCED,
)


def handshake(ts_ns: int = T0, seq: int = 100, **changes: object) -> list[Packet]:
    syn = replace(Packet(ts_ns, tcp_flags=SYN, tcp_seq=seq, payload_len=0), **changes)  # type: ignore[arg-type]
    syn_ack = syn.answered(ts_ns + 1, tcp_flags=SYN | ACK, tcp_seq=9000, tcp_ack=seq + 1)
    return [syn, syn_ack, replace(syn, ts_ns=ts_ns + 2, tcp_flags=ACK, tcp_seq=seq + 1, tcp_ack=9001)]


def goodbye(ts_ns: int) -> list[Packet]:
    fin = Packet(ts_ns, tcp_flags=FIN | ACK, payload_len=0)
    return [fin, fin.answered(ts_ns + 1), replace(fin, ts_ns=ts_ns + 2, tcp_flags=ACK)]


def test_both_directions_are_one_flow_and_the_client_is_who_sent_first() -> None:
    first = udp(T0, src=B, dst=A, src_port=5000, payload_len=10)
    out = run([first, first.answered(T0 + S, payload_len=100), replace(first, ts_ns=T0 + 2 * S)])
    (flow,) = out.ended
    assert bytes(flow["client"]) == B
    assert (flow["client_port"], flow["server_port"]) == (5000, 53)
    assert flow["packets"].tolist() == [2, 1]
    assert flow["payload_bytes"].tolist() == [20, 100]
    assert flow["ip_bytes"].tolist() == [76, 128]
    assert flow["frame_bytes"].tolist() == [104, 142]
    assert (flow["first_ts_ns"], flow["last_ts_ns"]) == (T0, T0 + 2 * S)
    assert flow["quality"] == 0


def test_a_flow_first_seen_at_its_syn_ack_is_turned_round() -> None:
    out = run(handshake()[1:], keep=KeepSpec(2))
    (flow,) = out.ended
    assert bytes(flow["client"]) == A
    assert (flow["client_port"], flow["server_port"]) == (1000, 80)
    assert flow["packets"].tolist() == [1, 1]
    assert flow["quality"] & (QUALITY_MIDSTREAM | QUALITY_DIRECTION_GUESSED) == 0
    assert out.packets[0]["direction"].tolist() == [1, 0]


def test_tcp_without_its_opening_is_midstream_and_its_direction_a_guess() -> None:
    (flow,) = run([Packet(T0)]).ended
    assert flow["quality"] == QUALITY_MIDSTREAM | QUALITY_DIRECTION_GUESSED | QUALITY_ONE_WAY
    (flow,) = run(handshake()).ended
    assert flow["quality"] == 0


def test_one_echo_dialogue_is_one_flow_and_a_ping_back_is_another() -> None:
    request, reply = icmp(T0, 8), icmp(T0 + 1, 0, src=B, dst=A)
    out = run([request, reply, icmp(T0 + 2, 8, src=B, dst=A)])
    assert out.ended["packets"].tolist() == [[1, 1], [1, 0]]
    assert out.ended["client_port"].tolist() == [8, 8]
    assert out.ended["server_port"].tolist() == [0, 0]


def test_icmp_errors_are_one_way_flows() -> None:
    out = run([icmp(T0, 3, 1), icmp(T0 + 1, 3, 1, src=B, dst=A), icmp(T0 + 2, 3, 1)])
    assert out.ended["packets"].tolist() == [[1, 0], [2, 0]]
    assert out.ended["server_port"].tolist() == [1, 1]


def test_two_vlans_are_two_flows_unless_told_otherwise() -> None:
    packets = [udp(T0), udp(T0, vlan=(5, 0)), udp(T0, vlan=(5, 6)), udp(T0, vlan=(6, 5))]
    assert run(packets).ended["vlan"].tolist() == [[0, 0], [5, 0], [5, 6], [6, 5]]
    assert run(packets, FlowTableConfig(use_vlan=False)).ended["packets"].tolist() == [[4, 0]]


def test_an_ipv6_packet_with_mapped_addresses_is_not_the_ipv4_flow() -> None:
    assert run([udp(T0), udp(T0, ip_version=6)]).ended["ip_version"].tolist() == [4, 6]


def test_a_flow_is_idle_only_beyond_the_timeout() -> None:
    config = FlowTableConfig(idle_timeout_s=10)
    assert run([udp(T0), udp(T0 + 10 * S)], config).reasons == [FORCED]
    assert run([udp(T0), udp(T0 + 10 * S + 1)], config).reasons == [IDLE, FORCED]


def test_a_packet_of_another_flow_ends_an_idle_one() -> None:
    table = FlowTable(FlowTableConfig(idle_timeout_s=10), KeepSpec())
    other = udp(T0 + 11 * S, src_port=7)
    assert gather(steps_of(table, [udp(T0), other])).reasons == [IDLE]
    assert table.counters.flows_open == 1


def test_time_without_packets_ends_an_idle_flow() -> None:
    table = FlowTable(FlowTableConfig(idle_timeout_s=10), KeepSpec(3))
    assert list(steps_of(table, [udp(T0)])) == []
    assert list(table.advance(T0 + 10 * S)) == []
    out = gather(table.advance(T0 + 10 * S + 1), KeepSpec(3))
    assert out.reasons == [IDLE]
    assert out.ready["n_kept"].tolist() == [1]


def test_the_active_timeout_cuts_a_flow_when_a_packet_comes_and_keeps_its_direction() -> None:
    config = FlowTableConfig(active_timeout_s=60)
    opening = handshake()
    late = [opening[1].answered(T0 + n * S, tcp_flags=ACK) for n in (30, 59)]
    last = replace(opening[1], ts_ns=T0 + 60 * S + 1, tcp_flags=ACK)
    out = run([*opening, *late, last, replace(last, ts_ns=T0 + 70 * S)], config, KeepSpec(8))
    assert out.reasons == [ACTIVE, FORCED]
    assert out.ended["packets"].tolist() == [[4, 1], [0, 2]]
    assert [bytes(client) for client in out.ended["client"]] == [A, A]
    assert out.ended["quality"].tolist() == [0, QUALITY_ONE_WAY]
    assert out.ended["first_ts_ns"].tolist() == [T0, T0 + 60 * S + 1]
    assert out.ended["flow_id"][0] != out.ended["flow_id"][1]


def test_the_successor_of_a_midstream_flow_is_midstream() -> None:
    out = run([Packet(T0), Packet(T0 + 61 * S)], FlowTableConfig(active_timeout_s=60))
    assert (
        out.ended["quality"].tolist() == [QUALITY_MIDSTREAM | QUALITY_DIRECTION_GUESSED | QUALITY_ONE_WAY] * 2
    )


def test_fin_from_both_sides_ends_a_flow_after_its_late_packets() -> None:
    table = FlowTable(FlowTableConfig(tcp_linger_s=5), KeepSpec())
    late = Packet(T0 + 4 * S)
    assert list(steps_of(table, [*handshake(), *goodbye(T0 + S), late])) == []
    assert list(table.advance(T0 + 9 * S)) == []
    out = gather(table.advance(T0 + 9 * S + 1))
    assert out.reasons == [END_DETECTED]
    assert out.ended["packets"].tolist() == [[5, 2]]


def test_flows_end_in_the_order_of_their_deadlines_a_closed_one_first() -> None:
    config = FlowTableConfig(idle_timeout_s=10, tcp_linger_s=5)
    closed = Packet(T0 + 5 * S, tcp_flags=RST)
    for idle_ts_ns, order in ((T0, [END_DETECTED, IDLE]), (T0 - 1, [IDLE, END_DETECTED])):
        table = FlowTable(config, KeepSpec())
        assert list(steps_of(table, [udp(idle_ts_ns), closed])) == []
        assert gather(table.advance(T0 + 60 * S)).reasons == order


def test_fin_from_one_side_ends_nothing() -> None:
    assert run([*handshake(), goodbye(T0 + S)[0], Packet(T0 + 60 * S)]).reasons == [FORCED]


def test_a_reset_ends_a_flow() -> None:
    reset = Packet(T0 + S, tcp_flags=RST)
    assert run([*handshake(), reset, udp(T0 + 7 * S)]).reasons == [END_DETECTED, FORCED]


def test_a_flow_that_tcp_closed_is_never_forced() -> None:
    assert run([*handshake(), *goodbye(T0 + S)]).reasons == [END_DETECTED]


def test_a_new_syn_after_the_end_is_a_new_flow() -> None:
    out = run([*handshake(seq=100), *goodbye(T0 + S), *handshake(T0 + 2 * S, seq=500)])
    assert out.reasons == [END_DETECTED, FORCED]
    assert out.ended["packets"].tolist() == [[4, 2], [2, 1]]


def test_a_new_connection_may_be_opened_from_the_other_side() -> None:
    back = [packet.answered(packet.ts_ns) for packet in handshake(T0 + 2 * S, seq=500)]
    out = run([*handshake(), *goodbye(T0 + S), *back])
    assert [bytes(client) for client in out.ended["client"]] == [A, B]


def test_a_new_syn_on_an_answered_flow_that_lost_its_end_is_a_new_flow() -> None:
    out = run([*handshake(seq=100), *handshake(T0 + 2 * S, seq=500)])
    assert out.reasons == [END_DETECTED, FORCED]


def test_a_retransmitted_syn_never_splits_a_flow() -> None:
    again = replace(handshake()[0], ts_ns=T0 + S)
    reset = Packet(T0 + 2 * S, tcp_flags=RST | ACK).answered(T0 + 2 * S)
    assert len(run([again, *handshake()]).ended) == 1
    assert len(run([*handshake(), again]).ended) == 1
    assert len(run([handshake()[0], reset, replace(again, ts_ns=T0 + 3 * S)]).ended) == 1


def test_a_syn_captured_behind_its_syn_ack_is_part_of_the_flow() -> None:
    syn, syn_ack, ack = handshake()
    syn, syn_ack = replace(syn, tcp_seq=2**32 - 1), replace(syn_ack, tcp_ack=0)
    (flow,) = run([syn_ack, syn, ack]).ended
    assert flow["packets"].tolist() == [2, 1]


def test_attempts_that_nobody_answers_are_one_flow() -> None:
    attempts = [replace(handshake()[0], ts_ns=T0 + n * S, tcp_seq=n) for n in range(4)]
    assert run(attempts).ended["packets"].tolist() == [[4, 0]]


def test_a_simultaneous_open_is_one_flow() -> None:
    syn = handshake()[0]
    cross = syn.answered(T0 + 1, tcp_seq=7000)
    both = [
        replace(syn, ts_ns=T0 + 2, tcp_flags=SYN | ACK),
        replace(cross, ts_ns=T0 + 3, tcp_flags=SYN | ACK),
    ]
    assert run([syn, cross, *both, replace(syn, ts_ns=T0 + 4)]).ended["packets"].tolist() == [[3, 2]]


def test_an_older_packet_is_counted_and_never_inverts_a_flow() -> None:
    table = FlowTable(FlowTableConfig(), KeepSpec())
    steps = list(steps_of(table, [udp(T0), udp(T0 - 7 * S), udp(T0 - 8 * S)]))
    (flow,) = gather([*steps, *table.flush()]).ended
    assert (flow["first_ts_ns"], flow["last_ts_ns"]) == (T0, T0)
    assert flow["quality"] & QUALITY_TIME_BACKWARDS
    assert table.counters.packets_time_backwards == 2


@pytest.mark.parametrize("wrong_ns", [4_300_000_000 * S, 2**63 - 1])
def test_one_wrong_time_ends_flows_but_makes_none_immortal(wrong_ns: int) -> None:
    table = FlowTable(FlowTableConfig(idle_timeout_s=10), KeepSpec())
    steps = list(steps_of(table, [udp(T0), udp(wrong_ns, src_port=1)]))
    assert gather(steps).reasons == [IDLE]
    usual = [udp(T0 + n * S // 100, src_port=2) for n in range(2000)]
    assert gather(steps_of(table, usual)).ended["client_port"].tolist() == []
    # The clock has come back to the packets: silence counts again.
    late = gather(steps_of(table, [udp(T0 + 60 * S, src_port=3)]))
    assert sorted(late.ended["client_port"].tolist()) == [1, 2]
    assert set(late.reasons) == {IDLE}


def test_times_before_1970_are_times() -> None:
    config = FlowTableConfig(idle_timeout_s=10)
    assert run([udp(-(2**63)), udp(-100 * S), udp(-95 * S)], config).reasons == [IDLE, FORCED]


def test_a_flow_is_ready_at_its_kth_packet_with_the_first_k() -> None:
    keep = KeepSpec(n_packets=3, n_byte_packets=2, header_bytes=50, payload_bytes=4)
    table = FlowTable(FlowTableConfig(), keep)
    packets = [replace(packet, payload_len=n) for n, packet in enumerate(handshake())]
    out = gather(steps_of(table, [*packets, Packet(T0 + S, payload_len=99)]), keep)
    (flow,) = out.ready
    assert (flow["end_reason"], flow["n_kept"], flow["packets"].tolist()) == (0, 3, [2, 1])
    assert len(out.ended) == 0
    assert out.packets[0]["tcp_flags"].tolist() == [SYN, SYN | ACK, ACK]
    assert out.packets[0]["payload_len"].tolist() == [0, 1, 2]
    assert out.packets[0]["header_len"].tolist() == [40] * 3
    assert out.packets[0]["l4_offset"].tolist() == [20] * 3
    assert out.packets[0]["ts_ns"].tolist() == [T0, T0 + 1, T0 + 2]
    frame = packets[1].frame
    assert bytes(out.data[0, 1]) == frame[14:54] + bytes(10) + frame[54:55] + bytes(3)


@pytest.mark.parametrize(
    ("packet", "header", "payload"),
    [
        (Packet(T0, payload_len=3, padding_len=9), 40, 3),  # Ethernet padding is not the flow's
        (Packet(T0, payload_len=30, cut_len=25), 40, 5),  # cut by the snaplen in the payload
        (Packet(T0, payload_len=30, cut_len=50), 20, 0),  # in the header
        (Packet(T0, payload_len=30, cut_len=80), 0, 0),  # in front of it
        (Packet(T0, payload_len=90, header_len=60), 48, 16),  # more than is kept
    ],
)
def test_kept_bytes_are_the_packets_own_and_zero_behind(packet: Packet, header: int, payload: int) -> None:
    keep = KeepSpec(1, 1, 48, 16)
    row = bytes(run([packet], keep=keep).data[0, 0])
    start = packet.payload_offset
    assert row[:48] == packet.frame[14 : 14 + header].ljust(48, b"\0")
    assert row[48:] == packet.frame[start : start + payload].ljust(16, b"\0")


def test_a_slow_flow_is_given_out_early_with_what_is_there_and_once_more_when_ready() -> None:
    config, keep = FlowTableConfig(ready_timeout_s=1), KeepSpec(3)
    packets = [udp(T0), udp(T0 + S // 2), udp(T0 + 2 * S), udp(T0 + 3 * S)]
    out = run(packets, config, keep)
    assert out.ready["n_kept"].tolist() == [2, 3]
    assert out.is_early.tolist() == [True, False]
    assert out.ended["packets"][:, 0].tolist() == [4]


def test_the_ready_timeout_runs_from_the_first_packet_and_is_not_pushed_back_by_later_ones() -> None:
    config, keep = FlowTableConfig(ready_timeout_s=1), KeepSpec(9)
    out = run([udp(T0 + at * S // 4) for at in range(6)], config, keep)
    assert out.ready["n_kept"].tolist() == [5, 6]
    assert out.ready["end_reason"].tolist() == [EndReason.OPEN, EndReason.FORCED]


def test_a_silent_wire_gives_a_slow_flow_out_early() -> None:
    table = FlowTable(FlowTableConfig(idle_timeout_s=10, ready_timeout_s=1), KeepSpec(3))
    assert list(steps_of(table, [udp(T0)])) == []
    assert list(table.advance(T0 + S)) == []
    (step,) = table.advance(T0 + S + 1)
    assert step.is_early().tolist() == [True]
    assert len(step.ended) == 0
    assert list(table.advance(T0 + 9 * S)) == []


def test_the_successor_of_a_cut_flow_has_a_ready_timeout_of_its_own() -> None:
    config = FlowTableConfig(active_timeout_s=2, ready_timeout_s=1)
    out = run([udp(T0), udp(T0 + 3 * S), udp(T0 + 4 * S + 1)], config, KeepSpec(5))
    assert out.ready["serial"].tolist() == [0, 0, 1, 1]
    assert out.is_early.tolist() == [True, False, True, False]


def test_a_flow_that_ends_early_is_ready_in_the_same_step() -> None:
    keep = KeepSpec(5)
    out = run([*handshake(), Packet(T0 + S, tcp_flags=RST)], keep=keep)
    assert out.ready_step == out.ended_step
    assert out.ready["end_reason"].tolist() == [END_DETECTED]
    assert out.ready["n_kept"].tolist() == [4]
    assert out.packets[0]["ip_len"].tolist() == [40, 40, 40, 50, 0]


def test_truncation_and_fragments_show_in_the_quality() -> None:
    (flow,) = run([udp(T0, cut_len=2), udp(T0, flags=PACKET_FRAGMENT)]).ended
    assert flow["quality"] == QUALITY_TRUNCATED | QUALITY_FRAGMENTS | QUALITY_ONE_WAY


def test_a_rejected_packet_touches_nothing() -> None:
    table = FlowTable(FlowTableConfig(), KeepSpec())
    wrong = udp(T0 + 10_000 * S, reject=3)
    assert list(steps_of(table, [udp(T0), wrong, udp(T0 + S)])) == []
    assert table.counters.packets == 2


def test_a_flow_id_is_the_same_on_every_run_and_fits_a_double() -> None:
    packets = [udp(T0 + n, src_port=n) for n in range(1, 200)]
    once, again = (run(packets).ended["flow_id"] for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert len(set(once.tolist())) == 199
    assert once.min() > 0
    assert once.max() < 2**51
    # Recorded: ids of stored events must not change.
    assert run([udp(T0)]).ended["flow_id"].tolist() == [1003349358501469]


def test_flags_are_gathered_by_direction() -> None:
    (flow,) = run([*handshake(), Packet(T0 + S, tcp_flags=PSH | ACK)]).ended
    assert flow["tcp_flags"].tolist() == [SYN | ACK | PSH, SYN | ACK]


def test_the_table_can_be_used_after_a_flush() -> None:
    table = FlowTable(FlowTableConfig(), KeepSpec())
    for reason in (FORCED, EndReason.LACK_OF_RESOURCES):
        list(steps_of(table, [udp(T0)]))
        assert gather(table.flush(reason)).reasons == [reason]
    assert table.counters.flows_started == 2


def test_columns_that_do_not_fit_are_refused() -> None:
    from tests.flows_builder import blocks_of

    packets, _ = blocks_of([udp(T0)])
    _, decoded = blocks_of([udp(T0), udp(T0)])
    table = FlowTable(FlowTableConfig(), KeepSpec())
    with pytest.raises(ValueError, match="1 packets but 2 decoded rows"):
        list(table.push(packets, decoded))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"idle_timeout_s": 0}, "idle timeout is 0 s; give above 0 to 31536000 s"),
        ({"active_timeout_s": float("nan")}, "active timeout is nan s; give above 0 to 31536000 s"),
        ({"tcp_linger_s": -1}, "TCP linger time is -1 s; give 0 to 31536000 s"),
        ({"idle_timeout_s": 1e12}, r"idle timeout is 1e\+12 s; give above 0 to 31536000 s"),
    ],
)
def test_a_senseless_timeout_is_the_operators_error(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FlowTableConfig(**settings)  # type: ignore[arg-type]


def test_a_memory_too_small_for_flows_is_the_operators_error() -> None:
    keep = KeepSpec(5, 5, 80, 240)
    with pytest.raises(
        UsageError, match="a flow memory of 1000 bytes does not hold 16 flows; give at least"
    ) as caught:
        FlowTable(FlowTableConfig(memory_limit_bytes=1000), keep)
    enough = int(str(caught.value).split()[-2])
    assert TableSizes.within(enough, keep).n_slabs >= 16
