"""Labels as they come: too few, nobody's, everybody's, missing, and with names that no one expects."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from capture.errors import DataError
from capture.representations import build
from models.checkpoint_files import check_labels
from netcls.cli.main import main
from netcls.datasets.build import BuildOptions, build_flows
from netcls.datasets.dataset_build import DatasetOptions, build_dataset
from netcls.datasets.prepare import prepare
from netcls.datasets.sources import DataOptions, read_source
from netcls.datasets.splits import SplitOptions
from netcls.evaluation.baselines import BaselineInput, run_baselines
from tests.pcap_writer import START_S, udp_flow, write_pcap

REPRESENTATION = build("netmamba", {"n_packets": 3, "header_bytes": 40, "payload_bytes": 16})
ODD_NAMES = ("a/b/../c", "🦊 и ñ", "<script>alert(1)</script>", "x" * 200, "--out", "$(id)", "nan")


def captures(folder: Path, names: tuple[str, ...], n_each: int = 4) -> Path:
    """A table of captures, some of each class; every flow has its own sizes."""
    rng = np.random.default_rng(0)
    lines = ["path,label,group"]
    for label, name in enumerate(names):
        for number in range(n_each):
            path = folder / f"{label}_{number}.pcap"
            packets = []
            for flow in range(4):
                sizes = rng.integers(8, 400, 4).tolist()
                packets += udp_flow("10.0.0.1", 3000 + flow, sizes, start_s=START_S + flow, fill=label)
            write_pcap(path, packets)
            quoted = name.replace('"', '""')
            lines.append(f'{path.name},"{quoted}",g{label}_{number}')
    (folder / "t.csv").write_text("\n".join([*lines, ""]))
    return folder / "t.csv"


def test_odd_class_names_go_through_the_whole_way_unchanged(tmp_path, capfd):
    data = captures(tmp_path, ODD_NAMES)
    out = tmp_path / "set"
    assert main(["dataset", "build", str(data), "--out", str(out), "--workers", "1"]) == 0
    assert main(["dataset", "inspect", str(out)]) == 0
    shown = capfd.readouterr().out
    for name in ODD_NAMES:
        assert name in shown
    prepared = prepare(out, REPRESENTATION, DataOptions(), BuildOptions(), SplitOptions(prefer_stored=True))
    assert prepared.flows.label_names == tuple(sorted(ODD_NAMES))
    check_labels(list(prepared.flows.label_names), "classifier", "a checkpoint")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["set"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("y" * 10_000, r"label 'y{40}'; expected at most 200 printable characters"),
        ("a\u202eb", r"label 'a\\u202eb'; expected at most 200 printable"),
        ("tab\there", r"label 'tab\\there'; expected at most 200 printable"),
    ],
)
def test_class_names_that_no_checkpoint_can_hold_are_refused_before_anything_is_read(tmp_path, name, message):
    data = captures(tmp_path, ("ok", name), n_each=1)
    with pytest.raises(DataError, match=message) as refused:
        build_dataset(DatasetOptions(str(data), str(tmp_path / "set")))
    assert len(str(refused.value)) < 300
    assert not (tmp_path / "set.run").exists()


def test_one_class_is_refused_also_when_the_other_one_has_no_flow(tmp_path):
    with pytest.raises(DataError, match=r"1 class \(only\); expected at least two to tell apart"):
        read_source(captures(tmp_path, ("only",)))
    write_pcap(tmp_path / "1_0.pcap", [])
    (tmp_path / "t.csv").write_text("path,label\n0_0.pcap,one\n1_0.pcap,two\n")
    for attempt in (
        lambda: build_flows(read_source(tmp_path / "t.csv"), REPRESENTATION),
        lambda: build_dataset(DatasetOptions(str(tmp_path / "t.csv"), str(tmp_path / "set"))),
    ):
        with pytest.raises(
            DataError, match=r"every labelled flow is of class 'one'; expected at least two classes"
        ):
            attempt()
    assert not (tmp_path / "set").exists()


def test_classes_of_one_capture_are_named_and_not_tested(tmp_path):
    text = captures(tmp_path, ("a", "b", "c")).read_text().splitlines()
    few = [line for line in text if not line.startswith(("2_1", "2_2", "2_3"))]
    (tmp_path / "t.csv").write_text("\n".join([*few, ""]))
    built = build_dataset(DatasetOptions(str(tmp_path / "t.csv"), str(tmp_path / "set")))
    assert built["split"]["untested"] == ["c"]
    assert (
        "1 classes have too few captures to be tested and are only trained: c" in built["split"]["warnings"]
    )


def test_a_class_all_of_whose_flows_are_tested_is_named(tmp_path):
    options = SplitOptions("group", leave_out=(("g0_0",), *((f"g1_{number}",) for number in range(4))))
    prepared = prepare(
        captures(tmp_path, ("a", "b", "c")), REPRESENTATION, DataOptions(), BuildOptions(), options
    )
    assert "1 classes are tested but not trained: b" in prepared.split.warnings


def test_a_missing_label_or_time_of_a_parquet_table_is_nan_and_means_missing(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for name in "ab":
        write_pcap(tmp_path / f"{name}.pcap", udp_flow("10.0.0.1", 1, [9, 9]))
    plain = {
        "path": ["a.pcap", "b.pcap", "b.pcap"],
        "label": pa.array([1.0, 2.0, math.nan]),
        "time": pa.array([math.nan, 5.0, 5.0]),
    }
    parquet.write_table(pa.table(plain), tmp_path / "t.parquet")
    source = read_source(tmp_path / "t.parquet")
    assert source.labels == ("1.0", "2.0")
    assert [capture.time_s for capture in source.captures] == [None, 5.0]
    assert (source.n_unlabelled, source.skipped) == (1, ("t.parquet, row 3",))


def test_rows_of_a_long_table_are_packed_without_a_difference(tmp_path, monkeypatch):
    header = "path,src_ip,src_port,dest_ip,dest_port,proto,label,first_ts,last_ts\n"
    text = header
    for number in range(23):
        name = "ab"[number % 2]
        write_pcap(tmp_path / f"{name}.pcap", udp_flow("10.0.0.1", 1, [9]))
        text += f"{name}.pcap,10.0.0.1,{number},10.9.0.1,53,udp,{'xy'[number % 2]},{number},{number + 1}\n"
    (tmp_path / "f.csv").write_text(text)
    whole = read_source(tmp_path / "f.csv")
    monkeypatch.setattr("netcls.datasets.sources._ROWS_IN_LISTS", 4)
    packed = read_source(tmp_path / "f.csv")
    for one, other in zip(whole.captures, packed.captures, strict=True):
        assert np.array_equal(one.rows, other.rows)
    assert [len(capture.rows) for capture in packed.captures] == [12, 11]


def test_missing_values_of_short_flows_break_no_baseline(tmp_path):
    pytest.importorskip("sklearn")
    data = captures(tmp_path, ("a", "b"))
    flows, _ = build_flows(read_source(data), REPRESENTATION)
    rows = np.arange(len(flows))
    given = BaselineInput(flows.records, flows.packets, flows.labels, rows[::2], rows[1::4], rows[3::4], 2, 3)
    names = [answer.name for answer in run_baselines(given, seed=0, threads=1)]
    assert "random_forest" in names
