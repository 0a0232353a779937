"""Planted leaks are found and named; sound data is not accused; data without information is called that."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netcls.cli.main import main
from netcls.datasets import probe_scores
from netcls.datasets.build import BuildOptions
from netcls.datasets.dataset_build import DatasetOptions, build_dataset
from netcls.datasets.probe import run_probe
from netcls.datasets.probe_fields import _timestamp
from netcls.datasets.probe_scores import cross_validated, folds_by_unit, least_above_chance
from tests.pcap_writer import START_S, Packet, udp_flow, write_pcap

pytest.importorskip("sklearn")

N_CAPTURES, N_FLOWS = 8, 6
OPTIONS = BuildOptions(threads=1)


@pytest.fixture(autouse=True)
def small_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight captures a class need no thirty trees."""
    monkeypatch.setattr(probe_scores, "_TREES", 6)


# What one flow of a class in a capture is made of: keyword arguments of `udp_flow`, and its TTL.
Plan = Callable[[int, int, random.Random], dict[str, Any]]


def labelled(folder: Path, plan: Plan, n_captures: int = N_CAPTURES) -> Path:
    """Two classes of captures; all that ``plan`` does not set is drawn alike for both."""
    rng = random.Random(1)
    for number in range(n_captures):
        for label, name in enumerate(("one", "two")):
            packets: list[Packet] = []
            for flow in range(N_FLOWS):
                chosen = {
                    "port": rng.randrange(1024, 65536),
                    "sizes": [rng.randrange(20, 400) for _ in range(4)],
                }
                chosen |= plan(label, number, rng)
                ttl = chosen.pop("ttl", 64)
                start_s = START_S + number * 100 + flow + rng.random() + chosen.pop("day_s", 0)
                made = udp_flow(
                    chosen.pop("client", "10.0.0.1"),
                    chosen.pop("port"),
                    chosen.pop("sizes"),
                    start_s=start_s,
                    **chosen,
                )
                packets += [(time_s, frame[:22] + bytes([ttl]) + frame[23:]) for time_s, frame in made]
            write_pcap(folder / name / f"{number}.pcap", packets)
    return folder


def leaks_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {leak["field"]: leak for leak in result["leaks"]}


def test_a_class_that_equals_the_ttl_is_found(tmp_path):
    result = run_probe(labelled(tmp_path, lambda label, *_: {"ttl": 64 + 64 * label}), None, OPTIONS)
    leaks = leaks_of(result)
    assert list(leaks) == ["ttl"]
    assert leaks["ttl"]["score"] == 1.0
    assert leaks["ttl"]["split"] == "capture"
    assert "ttl alone tells the label" in result["verdict"]
    assert "No usable information" in result["verdict"]


def test_a_class_that_equals_the_source_port_is_found(tmp_path):
    plan = lambda label, _number, rng: {"port": rng.randrange(2000, 2100) + 30000 * label}  # noqa: E731
    leaks = leaks_of(run_probe(labelled(tmp_path, plan), None, OPTIONS))
    assert list(leaks) == ["source_port"]
    assert leaks["source_port"]["score"] > 0.95


def test_a_class_that_equals_the_host_is_found(tmp_path):
    by_address = leaks_of(
        run_probe(
            labelled(tmp_path / "a", lambda label, *_: {"client": f"10.0.0.{label + 1}"}), None, OPTIONS
        )
    )
    assert list(by_address) == ["source_address"]
    assert by_address["source_address"]["score"] == 1.0
    # Behind one address, but the table says who it was: hosts 0 to 3 make class one, 4 to 7 class two.
    folder = labelled(tmp_path / "b", lambda *_: {})
    rows = [
        f"{name}/{number}.pcap,{name},h{4 * label + number % 4}"
        for label, name in enumerate(("one", "two"))
        for number in range(N_CAPTURES)
    ]
    (folder / "t.csv").write_text("\n".join(["path,label,host", *rows, ""]))
    result = run_probe(folder / "t.csv", None, OPTIONS)
    assert list(leaks_of(result)) == ["host"]
    assert "host alone tells the label (1.00" in result["verdict"]
    hosts_mixed = (folder / "t.csv").read_text().replace(",h4", ",h0").replace(",h5", ",h1")
    (folder / "t.csv").write_text(hosts_mixed.replace(",h6", ",h2").replace(",h7", ",h3"))
    assert leaks_of(run_probe(folder / "t.csv", None, OPTIONS)) == {}


def test_a_class_that_equals_the_time_of_day_is_found(tmp_path):
    plan = lambda label, number, _rng: {"day_s": 86400 * number + 6 * 3600 * label}  # noqa: E731
    result = run_probe(labelled(tmp_path, plan), None, OPTIONS)
    assert list(leaks_of(result)) == ["time_of_day"]
    assert "time_of_day alone tells the label" in result["verdict"]


def test_classes_recorded_one_after_the_other_are_a_remark_and_no_leak(tmp_path):
    plan = lambda label, number, _rng: {"day_s": 7200 * number + 3 * 86400 * label}  # noqa: E731
    result = run_probe(labelled(tmp_path, plan), None, OPTIONS)
    assert result["leaks"] == []
    assert any("classes were recorded at different times" in remark for remark in result["remarks"])


def test_a_dataset_gives_the_verdict_of_its_captures(tmp_path):
    data = labelled(tmp_path / "d", lambda label, *_: {"ttl": 64 + 64 * label})
    build_dataset(DatasetOptions(str(data), str(tmp_path / "set")))
    of_captures = run_probe(data, None, OPTIONS)
    of_dataset = run_probe(tmp_path / "set", None, OPTIONS)
    for key in ("verdict", "leaks", "fields", "information", "classes", "duplicates"):
        assert of_dataset[key] == of_captures[key], key


def test_a_label_that_only_the_capture_tells_is_found(tmp_path):
    # Sizes are the capture's own, in an order that has nothing to do with the class.
    places = list(range(2 * N_CAPTURES))
    random.Random(5).shuffle(places)
    plan = lambda label, number, rng: {"sizes": [20 + 60 * places[2 * number + label]] * 4}  # noqa: E731
    result = run_probe(labelled(tmp_path, plan), None, OPTIONS)
    leak = leaks_of(result)["capture"]
    assert leak["split"] == "flow"
    assert leak["score"] > 0.9
    assert "split by capture" in result["verdict"]


def test_one_capture_a_class_measures_nothing(tmp_path):
    plan = lambda label, _number, rng: {"sizes": [40 + 100 * label] * 4}  # noqa: E731
    result = run_probe(labelled(tmp_path, plan, n_captures=1), None, OPTIONS)
    assert leaks_of(result)["capture"]["split"] == "flow"
    assert "cannot be told apart" in result["verdict"]


def test_classes_that_differ_in_behaviour_are_not_accused(tmp_path):
    plan = lambda label, _number, rng: {  # noqa: E731
        "sizes": [rng.randrange(40, 80) + 200 * label for _ in range(4)],
        "gap_s": 0.01 + 0.05 * label,
    }
    result = run_probe(labelled(tmp_path, plan), None, OPTIONS)
    assert result["leaks"] == []
    assert result["information"]["is_usable"]
    assert "No field that names a place gives the label away" in result["verdict"]


def test_classes_that_do_not_differ_hold_no_usable_information(tmp_path):
    result = run_probe(labelled(tmp_path, lambda *_: {}), None, OPTIONS)
    assert result["leaks"] == []
    assert not result["information"]["is_usable"]
    assert "No usable information" in result["verdict"]


def test_inputs_that_two_classes_share_bound_the_accuracy(tmp_path):
    result = run_probe(labelled(tmp_path, lambda *_: {"sizes": [50, 50]}), None, OPTIONS)
    twice = result["duplicates"]
    assert twice["across_classes_share"] == 1.0
    assert twice["best_possible_accuracy"] == 0.5


def test_folds_keep_units_together_and_spread_each_class():
    labels = np.repeat([0, 1], 30)
    units = np.repeat(np.arange(12), 5)
    folds = folds_by_unit(units, labels, np.random.default_rng(0))
    assert all(len(np.unique(folds[units == unit])) == 1 for unit in range(12))
    assert all(len(np.unique(folds[labels == label])) == 5 for label in (0, 1))
    equal = labels[:, None].astype(np.float32)
    assert cross_validated(equal, labels, folds, 0) == 1.0
    assert cross_validated(np.zeros_like(equal), labels, folds, 0) == 0.5
    assert 0.5 < least_above_chance(2, 12) < least_above_chance(2, 8) <= 0.97


def test_a_timestamp_is_found_behind_other_options_and_never_past_the_kept_bytes():
    tcp = bytes(12) + bytes([10 << 4]) + bytes(7)
    options = bytes([1, 4, 2, 8, 10]) + (123456).to_bytes(4, "big") + bytes(11)
    header = bytes(20) + tcp + options
    assert _timestamp(header, 20) == 123456
    assert [_timestamp(header[:n], 20) for n in range(48)] == [None] * 48
    assert _timestamp(bytes(20) + tcp + bytes([5, 0]) + bytes(18), 20) is None


def test_the_command_prints_the_verdict_or_json(tmp_path, capfd):
    data = labelled(tmp_path, lambda label, *_: {"ttl": 64 + 64 * label})
    assert main(["dataset", "probe", str(data), "--json", "--threads", "1"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["leaks"][0]["field"] == "ttl"
    assert [row["captures"] for row in result["classes"]] == [N_CAPTURES, N_CAPTURES]
    assert main(["dataset", "probe", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: does not exist" in capfd.readouterr().err
