"""The event is the contract with everything outside: names, types, order, what is absent."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.flow_batch import EndReason
from netcls.event import as_dict, encode_line, encode_lines, events_of, stats_event, timestamp_text
from netcls.event_batch import EventBatch
from tests.unit.netcls.batches import START_NS, address, classified, record, unclassified


def event_of(batch: EventBatch) -> dict[str, Any]:
    (event,) = events_of(batch)
    return json.loads(encode_line(event))


def test_a_classified_flow_is_this_line() -> None:
    expected = {
        "timestamp": "2026-11-24T10:15:02.124456+0000",
        "flow_id": 1187423905567123,
        "event_type": "netcls",
        "pcap_filename": "a.pcap",
        "src_ip": "10.0.0.2",
        "src_port": 40212,
        "dest_ip": "10.0.0.9",
        "dest_port": 8443,
        "proto": "TCP",
        "ip_v": 4,
        "community_id": "1:LVFcLGgiant8VSOwvi6BkCZv22Q=",
        "flow": {
            "start": "2026-11-24T10:15:02.123456+0000",
            "end": "2026-11-24T10:15:06.123456+0000",
            "age": 3,
            "pkts_toserver": 9,
            "pkts_toclient": 11,
            "bytes_toserver": 1200,
            "bytes_toclient": 8211,
            "ip_bytes_toserver": 1074,
            "ip_bytes_toclient": 8057,
            "reason": "timeout",
        },
        "netcls": {
            "v": 1,
            "label": "web",
            "probability": 0.9431,
            "runner_up": {"label": "video", "probability": 0.0412},
            "unknown": False,
            "unknown_score": 0.08,
            "phase": "end",
            "final": True,
            "packets_used": 5,
            "model": "lab-small",
            "checkpoint": "3f9c1a7be204",
            "representation": "netmamba-1",
            "end_reason": "end_detected",
        },
    }
    got = event_of(classified())
    assert got == expected
    assert [list(got), list(got["flow"]), list(got["netcls"])] == [
        list(expected),
        list(expected["flow"]),  # type: ignore[call-overload]
        list(expected["netcls"]),  # type: ignore[call-overload]
    ]


def test_a_flow_without_a_model_has_no_label_fields() -> None:
    event = event_of(unclassified(record(quality=1)))
    assert event["event_type"] == "flow"
    assert event["timestamp"] == event["flow"]["end"]
    assert event["netcls"] == {"v": 1, "end_reason": "end_detected", "quality": ["midstream"]}


def test_an_unknown_flow_names_the_nearest_label() -> None:
    ours = event_of(classified(unknown=np.array([True]), unknown_score=np.array([0.97], np.float32)))[
        "netcls"
    ]
    assert (ours["label"], ours["nearest"], ours["unknown"], ours["unknown_score"]) == (
        "unknown",
        "web",
        True,
        0.97,
    )


def test_top_gives_as_many_labels_as_asked_for_best_first() -> None:
    ours = event_of(classified(n_top=3))["netcls"]
    assert ours["top"] == [
        {"label": "web", "probability": 0.9},
        {"label": "video", "probability": 0.5},
        {"label": "=cmd()", "probability": 0.1},
    ]


def test_a_model_of_one_label_has_no_runner_up() -> None:
    assert "runner_up" not in event_of(classified(runner_up_index=np.array([-1], np.int32)))["netcls"]


@pytest.mark.parametrize(("protocol", "name", "ip_v"), [(1, "ICMP", 4), (58, "IPv6-ICMP", 6)])
def test_icmp_has_type_and_code_and_no_ports(protocol: int, name: str, ip_v: int) -> None:
    ip = address("2001:db8::1" if ip_v == 6 else "192.0.2.1")
    event = event_of(
        unclassified(
            record(protocol=protocol, ip_version=ip_v, client=ip, server=ip, client_port=8, server_port=0)
        )
    )
    assert (event["proto"], event["icmp_type"], event["icmp_code"]) == (name, 8, 0)
    assert not {"src_port", "dest_port"} & set(event)


def test_an_unknown_protocol_is_its_number_and_has_neither_ports_nor_types() -> None:
    event = event_of(unclassified(record(protocol=47, client_port=0, server_port=0)))
    assert event["proto"] == "47"
    assert not {"src_port", "dest_port", "icmp_type", "icmp_code"} & set(event)


def test_addresses_are_written_as_their_version_says() -> None:
    six = event_of(unclassified(record(ip_version=6, client=address("2001:db8::1"), server=address("::1"))))
    assert (six["src_ip"], six["dest_ip"], six["ip_v"]) == ("2001:db8::1", "::1", 6)


@pytest.mark.parametrize(
    ("tags", "expected"), [((0, 0), None), ((10, 0), [10]), ((10, 20), [10, 20]), ((0, 20), [20])]
)
def test_vlan_is_there_only_when_tagged(tags: tuple[int, int], expected: list[int] | None) -> None:
    assert event_of(unclassified(record(vlan=tags))).get("vlan") == expected


@pytest.mark.parametrize(
    ("reason", "eve"),
    [
        (EndReason.IDLE, "timeout"),
        (EndReason.ACTIVE, "timeout"),
        (EndReason.END_DETECTED, "timeout"),
        (EndReason.FORCED, "forced"),
        (EndReason.LACK_OF_RESOURCES, "forced"),
    ],
)
def test_five_ipfix_reasons_become_eves_words(reason: EndReason, eve: str) -> None:
    event = event_of(unclassified(record(end_reason=reason)))
    assert (event["flow"]["reason"], event["netcls"]["end_reason"]) == (eve, reason.name.lower())


def test_an_open_flow_has_neither_end_nor_reason() -> None:
    event = event_of(classified(record(end_reason=EndReason.OPEN)))
    assert not {"end", "reason"} & set(event["flow"])
    assert "end_reason" not in event["netcls"]


def test_quality_names_every_bit() -> None:
    names = ["midstream", "truncated", "one_way", "fragments", "direction_guessed", "time_backwards"]
    assert event_of(unclassified(record(quality=63)))["netcls"]["quality"] == names
    for bit, name in enumerate(names):
        assert event_of(unclassified(record(quality=1 << bit)))["netcls"]["quality"] == [name]


def test_age_is_never_negative() -> None:
    assert event_of(unclassified(record(last_ts_ns=START_NS - 10_000_000_000)))["flow"]["age"] == 0


def test_lines_of_a_batch_are_the_lines_of_its_events() -> None:
    batch = classified(record(), record(flow_id=7), record(protocol=17))
    lines = encode_lines(batch)
    assert lines == b"".join(map(encode_line, events_of(batch)))
    assert [json.loads(line) for line in lines.splitlines()] == [as_dict(event) for event in events_of(batch)]


def test_an_empty_batch_has_no_events() -> None:
    assert encode_lines(unclassified(record()[:0])) == b""


def test_a_hostile_label_or_name_stays_one_valid_line() -> None:
    batch = classified(label_index=np.array([3], np.int32), source="a\udcff\n\x1b.pcap")
    line = encode_lines(batch)
    assert line.count(b"\n") == 1
    assert b"\x1b" not in line
    event = json.loads(line)
    assert event["pcap_filename"] == "a\\udcff\n\x1b.pcap"
    assert event["netcls"]["label"] == "evil\x1b[31m\n"


@given(st.integers(-(2**62), 2**63 - 1))
def test_a_timestamp_is_that_of_datetime_cut_to_microseconds(ts_ns: int) -> None:
    second, ns = divmod(ts_ns, 10**9)
    expected = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ns // 1000:06d}+0000"
    assert timestamp_text(ts_ns) == expected


def test_stats_name_their_capture_only_when_there_is_one() -> None:
    one = json.loads(encode_line(stats_event({"netcls": {"predictions": 3}}, START_NS, {"a.pcap"})))
    assert one == {
        "timestamp": "2026-11-24T10:15:02.123456+0000",
        "event_type": "stats",
        "pcap_filename": "a.pcap",
        "stats": {"netcls": {"predictions": 3}},
    }
    assert "pcap_filename" not in as_dict(stats_event({}, START_NS, {"a.pcap", "b.pcap"}))
