"""The store keeps the newest of each flow, within its bounds, over restarts, whatever happens to its file."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.errors import UsageError
from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE, FlowBatch, KeepSpec
from netcls.sinks.base import SinkError
from netcls.store import FlowFilter, Store, StoreOptions
from netcls.store.kept import KeptFlow, KeptFlows
from netcls.store.reading import flow_page, labels, one_flow, summary
from netcls.store.schema import StoreError
from netcls.store.store import SlowQueryError
from tests.web_appliance import as_json, event, told


def opened(path=None, **options) -> Store:
    store = Store(StoreOptions(path=path, **options))
    store.open()
    return store


def ids(store: Store, query: str = "", limit: int = 100) -> list[int]:
    pairs = [tuple(part.split("=", 1)) for part in query.split("&") if part]
    return [as_json(line)["flow_id"] for line in flow_page(store, FlowFilter.of_query(pairs), limit).lines]


def some_flows() -> list:
    return [
        event(1, "web", 0.9, sni="example.org"),
        event(2, "video", 0.3, src_ip="10.0.0.3"),
        event(3, "web", 0.4, src_ip="2001:db8::1", dest_ip="2001:db8::2", proto="UDP", dest_port=53),
        event(4, "dns", 0.8, unknown=True),
    ]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [4, 3, 2, 1]),
        ("label=web", [3, 1]),
        ("label=web&label=video", [3, 2, 1]),
        ("not.label=web", [4, 2]),
        ("not.label=web&not.label=unknown", [2]),
        ("ip=10.0.0.3", [2]),
        ("ip=10.0.0.0/24", [4, 2, 1]),
        ("not.ip=10.0.0.0/24", [3]),
        ("src_ip=2001:db8::/32", [3]),
        ("port=53", [3]),
        ("not.port=53", [4, 2, 1]),
        ("proto=UDP", [3]),
        ("text=EXAMPLE", [1]),
        ("text=example&text=db8", [3, 1]),
        ("min_probability=0.8", [4, 1]),
        ("max_probability=0.4", [3, 2]),
        ("unknown=true", [4]),
        ("unknown=false&label=web", [3, 1]),
        ("until=10", []),
    ],
)
def test_filters(query, expected):
    store = opened()
    store.write(told(some_flows()))
    assert ids(store, query) == expected


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_filter_of_the_store_and_that_of_live_events_agree(data):
    flows = some_flows()
    choices = {
        "label": ["web", "video", "unknown", "nothing"],
        "ip": ["10.0.0.2", "10.0.0.0/8", "::/0", "2001:db8::2"],
        "port": ["53", "443", "1"],
        "proto": ["TCP", "UDP"],
        "text": ["example", "10.0", "%", "web"],
    }
    pairs = []
    for name, values in choices.items():
        for no in ("", "not."):
            pairs += [
                (no + name, value) for value in data.draw(st.lists(st.sampled_from(values), max_size=2))
            ]
    pairs += [
        (n, v)
        for n, v in (("min_probability", "0.4"), ("unknown", "false"), ("final", "true"))
        if data.draw(st.booleans())
    ]
    asked = FlowFilter.of_query(pairs)
    store = opened()
    store.write(told(flows))
    held = [each.flow_id for each in reversed(flows) if asked.holds(each, time.time())]
    assert [as_json(line)["flow_id"] for line in flow_page(store, asked, 100).lines] == held


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("lable", "x")], "did you mean 'label'"),
        ([("ip", "10.0.0.300")], "expected an address"),
        ([("port", "99999")], "expected 0 to 65535"),
        ([("min_probability", "nan")], "expected a number from 0 to 1"),
        ([("unknown", "maybe")], "expected true or false"),
        ([("unknown", "true"), ("unknown", "true")], "given twice"),
        ([("text", "x" * 300)], "expected at most 256"),
        ([("label", "x")] * 65, "more than 64 filters"),
    ],
)
def test_a_filter_that_cannot_be_is_refused_by_name(pairs, message):
    with pytest.raises(UsageError, match=message):
        FlowFilter.of_query(pairs)


def test_pages_join_without_gap_or_repeat():
    store = opened()
    store.write(told([event(number) for number in range(1, 26)]))
    seen, cursor = [], None
    while True:
        page = flow_page(store, FlowFilter(), 10, cursor)
        seen += [as_json(line)["flow_id"] for line in page.lines]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == list(range(25, 0, -1))


def test_a_flow_is_one_row_and_keeps_how_its_answer_developed():
    store = opened()
    store.write(told([event(7, "web", 0.5, final=False, n_bytes=100)]))
    store.write(told([event(7, "video", 0.8, n_bytes=900, changed=True, was="web")], 2))
    assert ids(store) == [7]
    found = one_flow(store, 7)
    assert [each["netcls"]["label"] for each in found["earlier"]] == ["web"]
    assert found["event"]["netcls"]["label"] == "video"
    told_of = {each["label"]: each for each in summary(store, 900)["labels"]}
    # It counts once, for what it turned out to be; its bytes for what it was thought to be when they came.
    assert (told_of["web"]["all_flows"], told_of["video"]["all_flows"]) == (0, 1)
    assert (told_of["web"]["all_bytes"], told_of["video"]["all_bytes"]) == (100, 800)


def test_many_answers_of_one_flow_stay_bounded():
    store = opened()
    for number in range(40):
        store.write(told([event(7, f"label{number}", final=False)]))
    earlier = [each["netcls"]["label"] for each in one_flow(store, 7)["earlier"]]
    assert len(earlier) == 16
    assert (earlier[0], earlier[-1]) == ("label0", "label38")


def test_summary_counts_flows_bytes_and_talkers():
    store = opened()
    store.write(
        told([event(1, "web", src_ip="10.0.0.1", n_bytes=10), event(2, "web", src_ip="10.0.0.2", n_bytes=30)])
    )
    told_of = summary(store, 900)
    (web,) = told_of["labels"]
    assert (web["all_flows"], web["all_bytes"], sum(web["flows"])) == (2, 40, 2)
    assert told_of["talkers"]["clients"] == [
        {"ip": "10.0.0.2", "flows": 1, "bytes": 30},
        {"ip": "10.0.0.1", "flows": 1, "bytes": 10},
    ]
    assert len(told_of["times"]) == 91
    assert len(summary(store, 86_400)["times"]) == 289
    assert len(summary(store, 30 * 86_400)["times"]) <= 401


def test_history_survives_a_restart(tmp_path):
    path = tmp_path / "flows.db"
    store = opened(path)
    store.write(told(some_flows()))
    store.put_label(2, "sport")
    store.close()
    again = opened(path)
    assert ids(again) == [4, 3, 2, 1]
    assert [each["label"] for each in labels(again)] == ["sport"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    again.close()


def test_a_damaged_file_is_set_aside_and_history_begins_anew(tmp_path):
    path = tmp_path / "flows.db"
    path.write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    store = opened(path)
    store.write(told(some_flows()))
    assert ids(store) == [4, 3, 2, 1]
    assert "it was set aside as flows.db.damaged-" in store.warnings[0]
    assert len(list(tmp_path.glob("flows.db.damaged-*"))) == 1
    store.close()


def test_a_file_damaged_while_it_runs_is_set_aside_when_the_sink_is_opened_again(tmp_path):
    path = tmp_path / "flows.db"
    store = opened(path)
    store.write(told([event(number) for number in range(200)]))
    store.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    store.open()
    with_trouble = False
    try:
        store.write(told([event(number) for number in range(100, 400)]))
    except SinkError:
        with_trouble = True
        store.open()
        store.write(told([event(number) for number in range(100, 400)]))
    assert with_trouble or store.warnings
    assert ids(store, limit=1) == [399]
    store.close()


def test_the_file_of_another_program_is_never_touched(tmp_path):
    path = tmp_path / "bookmarks.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(SinkError, match="of another program"):
        opened(path)
    assert path.read_bytes() == before


def test_a_later_version_is_refused(tmp_path):
    path = tmp_path / "flows.db"
    opened(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(SinkError, match="has version 99, expected at most 1"):
        opened(path)


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(SinkError, match="No such file"):
        opened(tmp_path / "none" / "flows.db")


def test_the_number_of_flows_is_bounded():
    store = opened(max_flows=100)
    for first in range(0, 1000, 50):
        store.write(told([event(number) for number in range(first, first + 50)]))
    assert len(ids(store, limit=1000)) <= 200
    assert ids(store, limit=1) == [999]


def test_the_size_of_the_file_is_bounded(tmp_path):
    path = tmp_path / "flows.db"
    store = opened(path, max_bytes=1 << 20)
    for first in range(0, 6000, 500):
        store._next_retention_s = 0.0
        store.write(told([event(number) for number in range(first, first + 500)]))
    assert store.size_bytes() <= 1 << 20
    assert ids(store, limit=1) == [5999]
    store.close()


def test_old_flows_are_forgotten():
    store = opened(max_age_s=3600)
    store.write(told(some_flows()))
    store._forget(time.time() + 3700)
    assert ids(store) == []
    assert store.counters["flows_expired"] == 4


def test_a_query_that_takes_too_long_is_ended():
    store = opened()
    store.write(told([event(number) for number in range(300)]))
    with pytest.raises(SlowQueryError, match="took longer"), store.reading(limit_s=0.0) as database:
        database.execute("SELECT count(*) FROM flows a, flows b, flows c").fetchone()
    assert len(ids(store, limit=3)) == 3


def test_a_closed_store_says_so(tmp_path):
    store = opened(tmp_path / "flows.db")
    store.close()
    with pytest.raises(StoreError, match="not open"):
        ids(store)


KEEP = KeepSpec(4, 2, 6, 3)


def ready(flow_ids: list[int], keep: KeepSpec = KEEP) -> FlowBatch:
    n = len(flow_ids)
    records = np.zeros(n, FLOW_DTYPE)
    records["flow_id"], records["n_kept"] = flow_ids, 3
    packets = np.zeros((n, keep.n_packets), PACKET_DTYPE)
    packets["ts_ns"][:, :3] = [5_000, 8_000, 12_000]
    packets["wire_len"][:, :3] = [60, 1500, 40]
    packets["direction"][:, :3] = [0, 1, 0]
    data = np.full((n, keep.n_byte_packets, keep.row_bytes), 7, np.uint8)
    return FlowBatch(records, packets, data)


def test_kept_packets_come_back_as_they_were():
    kept = KeptFlows()
    kept.see(ready([5, 6]), KEEP)
    again = KeptFlow.unpack(kept.of(6).pack())
    assert again.keep == KEEP
    assert again.flow.records["flow_id"].tolist() == [6]
    np.testing.assert_array_equal(again.flow.packets, ready([6]).packets)
    np.testing.assert_array_equal(again.flow.data, ready([6]).data)
    assert again.shape() == {"bytes": [60, -1500, 40], "at_us": [0, 3, 7]}


def test_the_ring_of_kept_packets_forgets_the_oldest():
    kept = KeptFlows(limit_bytes=1)  # the least it takes is 16 flows
    kept.see(ready(list(range(1, 21))), KEEP)
    assert len(kept) == 16
    assert kept.of(4) is None
    assert kept.of(5) is not None
    kept.see(ready([20, 21]), KEEP)
    assert kept.of(5) is None
    assert kept.of(20).flow.records["flow_id"][0] == 20


def test_another_representation_begins_a_new_ring():
    kept = KeptFlows()
    kept.see(ready([1]), KEEP)
    other = KeepSpec(8, 0, 0, 0)
    kept.see(ready([2], other), other)
    assert kept.of(1) is None
    assert kept.of(2).keep == other


@pytest.mark.parametrize("damage", [b"", b"no", None])
def test_damaged_kept_packets_are_none(damage):
    packed = KeptFlow(ready([1]), KEEP).pack()
    assert KeptFlow.unpack(packed[:-9] if damage is None else damage) is None


def test_labels_take_the_packets_along_and_outlive_the_flow():
    kept = KeptFlows()
    kept.see(ready([3]), KEEP)
    store = Store(StoreOptions(max_flows=10), kept)
    store.open()
    store.write(told([event(3), event(4)]))
    assert store.put_label(3, "sport", "seen on site") is True
    assert store.put_label(4, "sport") is False
    with pytest.raises(KeyError):
        store.put_label(99, "sport")
    store._forget(time.time() + 40 * 86_400)
    found = one_flow(store, 3)
    assert found["label"]["label"] == "sport"
    assert found["packets"]["bytes"] == [60, -1500, 40]
    assert one_flow(store, 4)["can_teach"] is False
    assert store.remove_label(4)
    assert [each["flow_id"] for each in labels(store)] == [3]


def test_hostile_strings_stay_what_they_are():
    store = opened()
    hostile = "<script>alert(1)</script>'; DROP TABLE flows; --\u202e\0"
    store.write(told([event(1, hostile, sni=hostile)]))
    assert ids(store, f"label={hostile}") == [1]
    assert json.loads(flow_page(store, FlowFilter(), 1).lines[0])["netcls"]["sni"] == hostile
