"""A row of a table labels the flow that it describes, in either direction, at its time."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest

from capture.errors import DataError
from capture.flow_batch import FLOW_DTYPE
from netcls.datasets.labels import CONTRADICTORY, DROPPED, UNLABELLED, match_flows
from netcls.datasets.sources import FLOW_ROW_DTYPE, FOREVER_NS

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
