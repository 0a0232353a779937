"""A row of a table labels the flow that it describes, in either direction, at its time."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest

from capture.errors import DataError
from capture.flow_batch import FLOW_DTYPE
from netcls.datasets.labels import CONTRADICTORY, DROPPED, UNLABELLED, match_flows
from netcls.datasets.sources import FLOW_ROW_DTYPE, FOREVER_NS
from tests.reference import flow_labels as reference

S = 1_000_000_000


def address(text):
    ip = ipaddress.ip_address(text)
    packed = ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed
    return np.frombuffer(packed, np.uint8)


def flow(client, client_port, server, server_port, first_s=0.0, last_s=1.0, protocol=6):
    record = np.zeros(1, FLOW_DTYPE)
    record["client"], record["server"] = address(client), address(server)
    record["client_port"], record["server_port"], record["protocol"] = client_port, server_port, protocol
    record["first_ts_ns"], record["last_ts_ns"] = first_s * S, last_s * S
    return record


def row(src, src_port, dst, dst_port, label, first_s=None, last_s=None, protocol=6, group=0):
    first = 0 if first_s is None else round(first_s * S)
    last = FOREVER_NS if last_s is None else round(last_s * S)
    return np.array(
        [(address(src), address(dst), src_port, dst_port, protocol, label, group, first, last)],
        FLOW_ROW_DTYPE,
    )


def labels_of(flows, rows, **options):
    return match_flows(np.concatenate(flows), np.concatenate(rows), **options).labels.tolist()


def test_the_five_tuple_matches_in_either_direction():
    flows = [flow("10.0.0.1", 1000, "10.0.0.2", 80), flow("10.0.0.2", 80, "10.0.0.1", 1000)]
    assert labels_of(flows, [row("10.0.0.2", 80, "10.0.0.1", 1000, 4)]) == [4, 4]


@pytest.mark.parametrize(
    "other",
    [
        row("10.0.0.1", 80, "10.0.0.2", 1000, 4),  # ports at the wrong ends
        row("10.0.0.1", 1000, "10.0.0.2", 80, 4, protocol=17),
        row("10.0.0.1", 1000, "10.0.0.3", 80, 4),
        row("10.0.0.1", 1001, "10.0.0.2", 80, 4),
    ],
)
def test_another_five_tuple_does_not_match(other):
    matches = match_flows(flow("10.0.0.1", 1000, "10.0.0.2", 80), other)
    assert matches.labels.tolist() == [UNLABELLED]
    assert matches.n_rows_unmatched == 1


def test_reused_ports_are_told_apart_by_time():
    flows = [flow("::1", 5, "::2", 6, 100, 110), flow("::1", 5, "::2", 6, 200, 210)]
    rows = [row("::1", 5, "::2", 6, 1, 100, 110.2), row("::1", 5, "::2", 6, 2, 199.9, 210)]
    assert labels_of(flows, rows) == [1, 2]


def test_a_time_that_misses_by_less_than_the_tolerance_matches():
    flows = [flow("::1", 5, "::2", 6, 100, 110)]
    rows = [row("::1", 5, "::2", 6, 1, 110.6, 120)]
    assert labels_of(flows, rows) == [1]
    assert labels_of(flows, rows, tolerance_s=0.5) == [UNLABELLED]


def test_the_longest_overlap_wins_and_equal_claims_contradict():
    flows = [flow("::1", 5, "::2", 6, 100, 110)]
    long, short = row("::1", 5, "::2", 6, 1, 90, 109), row("::1", 5, "::2", 6, 2, 109, 130)
    assert labels_of(flows, [short, long]) == [1]
    assert labels_of(flows, [long, row("::1", 5, "::2", 6, 2, 104, 130)]) == [CONTRADICTORY]
    assert labels_of(flows, [row("::1", 5, "::2", 6, 1), row("::2", 6, "::1", 5, 1)]) == [1]


def test_a_single_packet_flow_is_labelled_by_the_row_around_it():
    flows = [flow("::1", 5, "::2", 6, 100, 100)]
    assert labels_of(
        flows, [row("::1", 5, "::2", 6, 1, 95, 105), row("::1", 5, "::2", 6, 2, 100.5, 105)]
    ) == [1]
    assert labels_of(flows, [row("::1", 5, "::2", 6, 1, 95, 105), row("::1", 5, "::2", 6, 2, 99, 105)]) == [
        CONTRADICTORY
    ]


def test_a_dropped_label_is_not_an_unlabelled_flow():
    matches = match_flows(flow("::1", 5, "::2", 6), row("::1", 5, "::2", 6, -1))
    assert matches.labels.tolist() == [DROPPED]
    assert matches.n_rows_unmatched == 0


def test_icmp_matches_by_type_and_code_by_echo_identifier_or_by_hosts():
    echo = flow("10.0.0.1", 8, "10.0.0.2", 0, protocol=1)
    error = flow("10.0.0.2", 3, "10.0.0.1", 1, protocol=1)
    hosts = row("10.0.0.2", 0, "10.0.0.1", 0, 1, protocol=1)
    identifier = row("10.0.0.1", 777, "10.0.0.2", 777, 2, protocol=1)
    kind = row("10.0.0.1", 8, "10.0.0.2", 0, 3, protocol=1)
    assert labels_of([echo, error], [hosts]) == [1, 1]
    assert labels_of([echo, error], [hosts, identifier]) == [2, 1]
    assert labels_of([echo, error], [hosts, identifier, kind]) == [3, 1]
    assert labels_of([echo, error], [identifier]) == [2, UNLABELLED]


def test_a_tcp_row_with_ports_0_matches_no_other_ports():
    assert labels_of([flow("::1", 5, "::2", 6)], [row("::1", 0, "::2", 0, 1)]) == [UNLABELLED]


def test_the_group_of_the_matching_row_is_given():
    matches = match_flows(flow("::1", 5, "::2", 6), row("::1", 5, "::2", 6, 1, group=7))
    assert matches.groups.tolist() == [7]


def test_a_negative_tolerance_is_refused():
    with pytest.raises(DataError, match=r"the tolerance is -1 s; expected a time from 0"):
        match_flows(flow("::1", 5, "::2", 6), row("::1", 5, "::2", 6, 1), -1)


def test_the_fast_matcher_is_the_slow_one():
    rng = np.random.default_rng(3)
    for _ in range(40):
        n_flows, n_rows = int(rng.integers(0, 60)), int(rng.integers(0, 60))
        hosts = [address(text) for text in ("10.0.0.1", "10.0.0.2", "::1", "10.0.0.0")]
        records, rows = np.zeros(n_flows, FLOW_DTYPE), np.zeros(n_rows, FLOW_ROW_DTYPE)
        for made, names in (
            (records, ("client", "server", "client_port", "server_port")),
            (rows, ("src", "dst", "src_port", "dst_port")),
        ):
            for name in names[:2]:
                made[name] = [hosts[number] for number in rng.integers(0, 4, len(made))]
            for name in names[2:]:
                made[name] = rng.choice([0, 3, 8, 256], len(made))
            made["protocol"] = rng.choice([1, 6, 58], len(made))
            made["first_ts_ns"] = rng.integers(0, 12, len(made)) * S
            made["last_ts_ns"] = made["first_ts_ns"] + rng.integers(0, 5, len(made)) * S
        rows["label"], rows["group"] = rng.integers(-1, 3, n_rows), rng.integers(0, 5, n_rows)
        rows["last_ts_ns"][rng.random(n_rows) < 0.2] = FOREVER_NS
        labels, groups, matched = reference.match_flows(records, rows, 0.5)
        fast = match_flows(records, rows, 0.5)
        assert fast.labels.tolist() == labels.tolist()
        assert fast.groups.tolist() == groups.tolist()
        assert fast.row_matched.tolist() == matched.tolist()


def test_many_flows_of_one_five_tuple_are_matched_in_parts(monkeypatch):
    monkeypatch.setattr("netcls.datasets.labels._MAX_PAIRS", 7)
    flows = [flow("::1", 5, "::2", 6, 100 * n, 100 * n + 1) for n in range(10)]
    rows = [row("::1", 5, "::2", 6, n % 4, 100 * n, 100 * n + 1) for n in range(10)]
    assert labels_of(flows, rows) == [n % 4 for n in range(10)]


@pytest.mark.parametrize("offset_s", [3600.0, -7.5])
def test_a_constant_clock_offset_is_seen_and_applied_when_asked(offset_s):
    flows = [flow("::1", n, "::2", 6, 9000 + 50 * n, 9010 + 50 * n) for n in range(6)]
    rows = [row("::1", n, "::2", 6, n, 9000 + 50 * n - offset_s, 9001 + 50 * n - offset_s) for n in range(6)]
    matches = match_flows(np.concatenate(flows), np.concatenate(rows))
    assert (matches.clock_offset_seen_s, matches.clock_offset_s) == (offset_s, 0.0)
    if offset_s == 3600:
        assert matches.n_rows_unmatched == 6
    assert labels_of(flows, rows, clock_offset="auto") == list(range(6))
    assert labels_of(flows, rows, clock_offset=offset_s) == list(range(6))


@pytest.mark.parametrize(
    "starts",
    [
        [0, 0, 0, 0, 0],  # the clocks agree
        [0.4, 0.4, 0.4, 0.4, 0.4],  # within the tolerance
        [10, 20, 30, 40, 50],  # nothing constant
        [10, 10],  # too few to tell
    ],
)
def test_clocks_that_agree_or_jump_have_no_offset(starts):
    flows = [flow("::1", n, "::2", 6, 1000 + start, 1010 + start) for n, start in enumerate(starts)]
    rows = [row("::1", n, "::2", 6, 0, 1000, 1010) for n in range(len(starts))]
    assert match_flows(np.concatenate(flows), np.concatenate(rows)).clock_offset_seen_s is None


def test_rows_without_a_time_are_not_moved():
    flows = [flow("::1", n, "::2", 6, 1000, 1010) for n in range(5)]
    rows = [row("::1", n, "::2", 6, n) for n in range(5)]
    assert labels_of(flows, rows, clock_offset=86400.0) == list(range(5))
    with pytest.raises(DataError, match=r"the clock offset is 10000000000.0 s; expected a time, or auto"):
        labels_of(flows, rows, clock_offset=1e10)
