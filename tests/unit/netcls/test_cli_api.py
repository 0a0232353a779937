"""``import netcls``: the same events from Python, as dicts and as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import netcls
import netcls.api
from capture.errors import CaptureError, UsageError
from netcls.counters import Counters
from netcls.event import encode_lines
from netcls.event_batch import EventBatch
from netcls.pipeline import RunOptions
from tests.unit.netcls.batches import classified, record

BATCH = classified(record(flow_id=1), record(flow_id=2))


class FakeRun:
    def __init__(self, paths: Sequence[str], options: RunOptions, *, classify: bool, checkpoint: Any) -> None:
        assert classify
        assert checkpoint == "loaded default"
        self.paths, self.options = paths, options
        self.counters = Counters(packets_seen=40)
        self.warnings = ["cut off"]

    def __enter__(self) -> FakeRun:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def __iter__(self) -> Iterator[EventBatch]:
        if "bad" in self.paths:
            raise CaptureError("bad is not a capture")
        for _ in self.paths:
            yield BATCH


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netcls.api, "Run", FakeRun)
    monkeypatch.setattr(netcls.api, "load", lambda name="default": f"loaded {name}")


def test_events_are_the_json_lines_as_dicts() -> None:
    result = netcls.classify("a.pcap")
    expected = [json.loads(line) for line in encode_lines(BATCH).splitlines()]
    assert list(result) == expected
    assert list(result) == expected  # every iteration reads again
    assert result.warnings == ["cut off"]
    assert result.counters is not None
    assert result.counters.packets_seen == 40


def test_several_paths_are_one_result() -> None:
    assert len(list(netcls.classify(["a.pcap", "b.pcap"], top=2))) == 4


def test_a_misspelt_option_is_an_error() -> None:
    with pytest.raises(
        UsageError, match=r"classify\(\) has no option 'idle_timeout'; did you mean 'idle_timeout_s'\?"
    ):
        netcls.classify("a.pcap", idle_timeout=3)


def test_a_bad_capture_raises() -> None:
    with pytest.raises(netcls.NetclsError, match="bad is not a capture"):
        list(netcls.classify("bad"))


def test_the_tables_hold_every_event() -> None:
    result = netcls.classify(["a.pcap", "b.pcap"])
    assert result.to_arrow()["flow_id"].to_pylist() == [1, 2, 1, 2]
    assert result.to_pandas()["netcls_label"].tolist() == ["web"] * 4
    assert result.to_polars()["netcls_label"].to_list() == ["web"] * 4


def test_names_that_do_not_exist_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'netcls' has no attribute 'clasify'"):
        netcls.clasify  # type: ignore[attr-defined]  # noqa: B018
    assert set(netcls.__all__) <= set(dir(netcls))
    assert netcls.__version__.count(".") == 2
