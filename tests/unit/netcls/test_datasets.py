"""The three forms of labelled data, and what is said about each way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capture.errors import DataError
from capture.representations import build
from netcls.datasets.build import BuildOptions, build_flows, remove_duplicates
from netcls.datasets.capture_flows import process_capture, process_captures, sample_order
from netcls.datasets.files import write_then_rename
from netcls.datasets.sources import DataOptions, read_source
from netcls.datasets.splits import LEFT_OUT, TEST, TRAIN, Split, SplitOptions
from tests.pcap_writer import ACK, FIN, START_S, SYN, icmp_echo, tcp, udp_flow, write_pcap

REPRESENTATION = build("netmamba", {"payload_bytes": 0})


def small(path: Path, n_flows: int = 3, size: int = 40, start_s: float = START_S) -> Path:
    packets = []
    for number in range(n_flows):
        packets += udp_flow("10.0.0.1", 2000 + number, [size, size + number], start_s=start_s + number)
    return write_pcap(path, packets)


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


FLOW_HEADER = "path,src_ip,src_port,dest_ip,dest_port,proto,label,first_ts,last_ts,client_impl\n"


def flow_row(path="a.pcap", port=2000, label="x", first=START_S, last=START_S + 0.01, impl="c1"):
    return f"{path},10.9.0.1,53,10.0.0.1,{port},udp,{label},{first},{last},{impl}\n"


def test_a_directory_of_class_folders_is_read_at_any_depth(tmp_path):
    small(tmp_path / "dns" / "deep" / "a.pcap")
    small(tmp_path / "dns" / "b.cap")
    small(tmp_path / "web" / "c.pcap")
    small(tmp_path / "background" / "d.pcap")
    small(tmp_path / "loose.pcap")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dns" / "notes.txt").write_text("no capture")
    source = read_source(tmp_path)
    assert source.form == 1
    assert source.labels == ("dns", "web")
    assert [capture.name for capture in source.captures] == ["dns/b.cap", "dns/deep/a.pcap", "web/c.pcap"]
    assert source.n_dropped == 1
    assert any("empty: holds no capture" in warning for warning in source.warnings)
    assert any("1 captures lie beside the class folders" in warning for warning in source.warnings)
    flows, report = build_flows(source, REPRESENTATION)
    assert flows.labels.tolist() == [0] * 6 + [1] * 3
    assert (report.captures, report.flows_seen, report.flows) == (3, 9, 9)
    assert flows.tokens.arrays["bytes"].shape == (9, 400)


def test_a_table_of_captures_gives_label_group_host_and_time(tmp_path):
    for name in ("a.pcap", "b.pcap", "sub/c.pcap"):
        small(tmp_path / name)
    data = table(
        tmp_path / "t.csv",
        "path,label,group,host,time,lab\nb.pcap,web,g1,h1,100,X\na.pcap,dns,g2,h1,50,Y\nsub/c.pcap,web,g2,h2,7.5,Y\n",
    )
    source = read_source(data)
    assert (source.form, source.labels) == (2, ("dns", "web"))
    flows, _ = build_flows(source, REPRESENTATION)
    assert flows.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert flows.time_s.tolist() == [50.0] * 3 + [100.0] * 3 + [7.5] * 3
    assert [flows.group_names[group] for group in flows.group[::3]] == [("g2",), ("g1",), ("g2",)]
    assert flows.host[0] == flows.host[3] != flows.host[6]
    both = read_source(data, DataOptions(group=("lab", "host")))
    assert both.groups == (("X", "h1"), ("Y", "h1"), ("Y", "h2"))
    assert both.group_columns == ("lab", "host")


def test_a_table_of_flows_labels_flow_by_flow_and_counts_the_rest(tmp_path):
    small(tmp_path / "a.pcap", 5)
    rows = [
        flow_row(port=2000, label="x"),
        flow_row(port=2001, label="y", first=START_S + 1, last=START_S + 1.01),
        flow_row(port=2002, label="background", first=START_S + 2, last=START_S + 2.01),
        flow_row(port=2003, label="x", first=START_S + 3, last=START_S + 3.01),
        flow_row(port=2003, label="y", first=START_S + 3, last=START_S + 3.01),
        flow_row(port=9, label="x"),
        flow_row(port=10, label=""),
    ]
    source = read_source(table(tmp_path / "flows.csv", FLOW_HEADER + "".join(rows)))
    flows, report = build_flows(source, REPRESENTATION)
    assert source.form == 3
    assert flows.labels.tolist() == [0, 1]
    assert (report.flows_seen, report.flows_labelled, report.flows_unlabelled) == (5, 2, 1)
    assert (report.flows_dropped_label, report.flows_contradictory) == (1, 1)
    assert (report.rows, report.rows_unmatched) == (6, 1)
    assert (report.rows_dropped_label, report.rows_unlabelled) == (1, 1)
    assert "1 of 6 rows match no flow" in report.warnings
    seen = (
        report.flows_labelled,
        report.flows_unlabelled,
        report.flows_dropped_label,
        report.flows_contradictory,
    )
    assert sum(seen) == report.flows_seen


def test_other_columns_are_label_and_group(tmp_path):
    small(tmp_path / "a.pcap", 2)
    text = FLOW_HEADER.replace("label", "label,fine") + "".join(
        flow_row(port=2000 + n, label=f"x,fine{n}", first=START_S + n, last=START_S + n, impl=f"c{n}")
        for n in range(2)
    )
    source = read_source(
        table(tmp_path / "f.csv", text), DataOptions(label="fine", group=("client_impl", "label"))
    )
    assert source.labels == ("fine0", "fine1")
    assert source.groups == (("c0", "x"), ("c1", "x"))


def test_a_dropped_label_is_found_under_another_label_column_too(tmp_path):
    small(tmp_path / "a.pcap", 3)
    text = FLOW_HEADER.replace("label", "label,fine")
    text += flow_row(port=2000, label="x,one") + flow_row(
        port=2001, label="x,two", first=START_S + 1, last=START_S + 1
    )
    text += flow_row(port=2002, label="background,other", first=START_S + 2, last=START_S + 2)
    source = read_source(table(tmp_path / "f.csv", text), DataOptions(label="fine"))
    assert source.labels == ("one", "two")
    assert source.n_dropped == 1


def test_a_parquet_table_is_the_same_as_its_csv(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import csv as pa_csv
    from pyarrow import parquet

    small(tmp_path / "a.pcap", 3)
    rows = "".join(
        flow_row(port=2000 + n, label="xyz"[n], first=START_S + n, last=START_S + n) for n in range(3)
    )
    csv_path = table(tmp_path / "f.csv", FLOW_HEADER + rows)
    parquet.write_table(pa_csv.read_csv(csv_path), tmp_path / "f.parquet")
    of_csv, of_parquet = read_source(csv_path), read_source(tmp_path / "f.parquet")
    assert of_csv.labels == of_parquet.labels
    assert np.array_equal(of_csv.captures[0].rows, of_parquet.captures[0].rows)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    with pytest.raises(DataError, match=r"bad\.parquet: is not a Parquet table"):
        read_source(tmp_path / "bad.parquet")
    assert pa.__name__ == "pyarrow"


def test_an_absolute_path_in_a_table_is_taken_as_it_is(tmp_path):
    elsewhere = small(tmp_path / "elsewhere" / "a.pcap")
    other = small(tmp_path / "elsewhere" / "b.pcap")
    (tmp_path / "here").mkdir()
    data = table(tmp_path / "here" / "t.csv", f"path,label\n{elsewhere},x\n../elsewhere/b.pcap,y\n")
    assert {capture.path.resolve() for capture in read_source(data).captures} == {elsewhere, other}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,kind\na.pcap,x\n", r"no column 'label'; the columns are path, kind"),
        ("file,label\na.pcap,x\n", r"no column 'path'; the columns are file, label"),
        ("", r"no column 'path'; the columns are none"),
        ("path,label,label\na.pcap,x,x\n", r"two columns are called 'label'"),
        ("path,label\na.pcap,x\nnone.pcap,y\n", r"1 of 2 captures are not there, the first is 'none.pcap'"),
        ("path,label\na.pcap,x\n", r"1 class \(x\); expected at least two"),
        ("path,label\na.pcap,x\na.pcap,y\n", r"line 3: a.pcap is labelled 'x' and 'y'; label its flows"),
        ("path,label\n,x\n", r"line 2: path is ''; expected the capture's path"),
        ("path,label\na.pcap,x,y\n", r"line 2: 3 cells under 2 columns; quote cells with commas"),
        (
            "path,label,time\na.pcap,x,noon\n",
            r"line 2: time is 'noon'; expected seconds since the Unix epoch",
        ),
        ("path,label\na.pcap,x\x1b[2J\n", r"line 2: label 'x\\x1b\[2J'; expected at most 200 printable"),
        (
            FLOW_HEADER + flow_row(port="http"),
            r"line 2: dest_port is 'http'; expected a port from 0 to 65535",
        ),
        (FLOW_HEADER + flow_row(port=70000), r"line 2: dest_port is '70000'; expected a port"),
        (
            FLOW_HEADER + flow_row().replace("10.9.0.1", "host"),
            r"line 2: src_ip is 'host'; expected an IPv4 or IPv6",
        ),
        (
            FLOW_HEADER + flow_row().replace("udp", "quic"),
            r"line 2: proto is 'quic'; expected a name such as tcp",
        ),
        (FLOW_HEADER + flow_row(first=9, last=8), r"line 2: last_ts 8\.0 is before first_ts 9\.0"),
        (FLOW_HEADER + flow_row(first="nan"), r"line 2: first_ts is 'nan'; expected seconds"),
    ],
)
def test_a_wrong_table_is_refused_by_name(tmp_path, text, message):
    small(tmp_path / "a.pcap")
    with pytest.raises(DataError, match=message) as refused:
        read_source(table(tmp_path / "t.csv", text))
    assert "\n" not in str(refused.value)


def test_what_is_no_labelled_data_at_all_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(
        DataError, match=r"nowhere: does not exist; expected a folder of class folders or a table"
    ):
        read_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no capture in any sub-folder; expected one folder per class"):
        read_source(tmp_path)
    with pytest.raises(DataError, match=r"a\.pcap: is one capture without labels"):
        read_source(small(tmp_path / "a.pcap"))
    (tmp_path / "latin.csv").write_bytes(b"path,label\na.pcap,caf\xe9\n")
    with pytest.raises(DataError, match=r"latin\.csv: is not UTF-8 text"):
        read_source(tmp_path / "latin.csv")
    small(tmp_path / "only" / "a.pcap")
    with pytest.raises(DataError, match=r"1 class \(only\); expected at least two to tell apart"):
        read_source(tmp_path)


def test_a_capture_that_cannot_be_read_is_a_warning_and_all_of_them_an_error(tmp_path):
    small(tmp_path / "x" / "a.pcap")
    small(tmp_path / "y" / "b.pcap")
    (tmp_path / "y" / "c.pcap").write_bytes(b"this is text, not a capture")
    cut = small(tmp_path / "y" / "d.pcap").read_bytes()
    (tmp_path / "y" / "d.pcap").write_bytes(cut[:-5])
    flows, report = build_flows(read_source(tmp_path), REPRESENTATION)
    assert (report.captures, report.captures_unreadable, report.captures_cut) == (3, 1, 1)
    assert len(flows) == 9
    assert len(report.warnings) == 2
    for path in tmp_path.glob("*/*.pcap"):
        path.write_bytes(b"this is text, not a capture")
    with pytest.raises(DataError, match=r"none of 4 captures can be read: "):
        build_flows(read_source(tmp_path), REPRESENTATION)


def test_rows_that_match_nothing_are_an_error_that_says_what_to_compare(tmp_path):
    small(tmp_path / "a.pcap")
    text = FLOW_HEADER + flow_row(port=1, label="x") + flow_row(port=2, label="y")
    with pytest.raises(DataError, match=r"none of 2 rows matches any of 3 flows; compare addresses"):
        build_flows(read_source(table(tmp_path / "t.csv", text)), REPRESENTATION)


def test_a_label_without_flow_is_named_and_gets_no_number(tmp_path):
    small(tmp_path / "a.pcap")
    text = FLOW_HEADER + flow_row(port=1, label="a_ghost") + flow_row(port=2000, label="x")
    text += flow_row(port=2001, label="y", first=START_S + 1, last=START_S + 1)
    flows, report = build_flows(read_source(table(tmp_path / "t.csv", text)), REPRESENTATION)
    assert flows.label_names == ("x", "y")
    assert flows.labels.tolist() == [0, 1]
    assert report.labels_without_flow == ["a_ghost"]


def test_the_cap_takes_a_seeded_sample_per_capture_that_threads_do_not_change(tmp_path):
    for name in ("x/a.pcap", "x/b.pcap", "y/c.pcap"):
        small(tmp_path / name, 30)
    source = read_source(tmp_path)
    flows, report = build_flows(source, REPRESENTATION, BuildOptions(max_flows_per_capture=7, threads=1))
    assert np.bincount(flows.capture).tolist() == [7, 7, 7]
    assert (report.flows_labelled, report.flows_capped, report.flows) == (90, 69, 21)
    again, _ = build_flows(source, REPRESENTATION, BuildOptions(max_flows_per_capture=7, threads=3))
    assert np.array_equal(flows.records["flow_id"], again.records["flow_id"])
    other, _ = build_flows(source, REPRESENTATION, BuildOptions(max_flows_per_capture=7, seed=1))
    assert not np.array_equal(flows.records["flow_id"], other.records["flow_id"])
    every, _ = build_flows(source, REPRESENTATION, BuildOptions(max_flows_per_capture=0))
    assert len(every) == 90
    assert set(flows.records["flow_id"]) < set(every.records["flow_id"])


def test_flows_carry_their_final_record_and_the_fields_of_twenty_packets(tmp_path):
    packets = udp_flow("10.0.0.1", 2000, [30] * 25)
    packets += [
        (START_S + 1, tcp("10.0.0.3", 9, "10.0.0.4", 80, SYN)),
        (START_S + 1.1, icmp_echo("10.0.0.1", "10.0.0.2")),
    ]
    packets += [(START_S + 2, tcp("10.0.0.4", 80, "10.0.0.3", 9, FIN | ACK))]
    flows = process_capture(write_pcap(tmp_path / "a.pcap", packets), REPRESENTATION)
    assert flows.records["packets"].sum(axis=1).tolist() == [25, 2, 1]
    assert flows.packets.shape == (3, 20)
    assert flows.records["n_kept"].tolist() == [20, 2, 1]
    assert flows.tokens.packets_used.tolist() == [5, 2, 1]
    assert (flows.n_packets, flows.n_flows, flows.n_rejected) == (28, 3, 0)
    assert flows.records["last_ts_ns"][0] - flows.records["first_ts_ns"][0] == 240_000_000


def test_a_sample_while_reading_equals_a_sample_of_all_flows(tmp_path):
    packets = [
        packet
        for port in range(9000)
        for packet in udp_flow("10.0.0.1", 1024 + port, [8], start_s=START_S + port)
    ]
    path = write_pcap(tmp_path / "scan.pcap", packets)
    sampled = process_capture(path, REPRESENTATION, at_most=50, seed=4)
    every = process_capture(path, REPRESENTATION)
    assert (len(sampled), sampled.n_flows, len(every)) == (50, 9000, 9000)
    first = np.argsort(sample_order(every.records["flow_id"], 4))[:50]
    assert sampled.records["flow_id"].tolist() == every.records["flow_id"][np.sort(first)].tolist()


def test_kept_results_are_the_same_and_follow_the_file(tmp_path):
    path, cache = small(tmp_path / "a.pcap"), tmp_path / "cache"
    first = next(process_captures([path], REPRESENTATION, cache_dir=cache))
    assert len(list(cache.iterdir())) == 1
    kept = next(process_captures([path], REPRESENTATION, cache_dir=cache))
    assert np.array_equal(first.records, kept.records)
    assert np.array_equal(first.packets, kept.packets)
    assert np.array_equal(first.tokens.arrays["bytes"], kept.tokens.arrays["bytes"])
    assert (kept.n_packets, kept.n_flows) == (6, 3)
    small(path, 4)
    assert len(next(process_captures([path], REPRESENTATION, cache_dir=cache))) == 4
    assert not [name for name in cache.iterdir() if name.suffix != ".npz"]


def test_a_file_that_cannot_be_written_leaves_nothing_and_is_one_line(tmp_path):
    target = tmp_path / "new" / "a.npz"

    def fill():
        with write_then_rename(target) as file:
            file.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(
        DataError, match=r"a\.npz: cannot be written \(No space left on device\); free some space"
    ):
        fill()
    assert list(target.parent.iterdir()) == []
    with write_then_rename(target) as file:
        file.write(b"whole")
    assert [path.name for path in target.parent.iterdir()] == ["a.npz"]


def test_an_input_seen_in_training_is_not_tested_again(tmp_path):
    # Ports are hidden from the model, so flows of equal sizes look alike.
    write_pcap(tmp_path / "x" / "a.pcap", udp_flow("10.0.0.1", 1, [10]) + udp_flow("10.0.0.1", 2, [11]))
    write_pcap(tmp_path / "y" / "b.pcap", udp_flow("10.0.0.1", 3, [10]) + udp_flow("10.0.0.1", 4, [12]))
    write_pcap(tmp_path / "z" / "c.pcap", udp_flow("10.0.0.1", 5, [13]) + udp_flow("10.0.0.1", 6, [13]))
    flows, _ = build_flows(read_source(tmp_path), REPRESENTATION)
    split = Split(np.array([TRAIN, TRAIN, TEST, TEST, TEST, TEST], np.int8), SplitOptions(), "")
    remove_duplicates(flows, split)
    assert split.part.tolist() == [TRAIN, TRAIN, LEFT_OUT, TEST, TEST, TEST]
    assert split.n_duplicates == {"train": 0, "validation": 0, "calibration": 0, "test": 1}
    assert split.duplicate_of.tolist() == [-1, -1, TEST, -1, -1, -1]


def test_a_class_that_loses_all_its_test_flows_is_named(tmp_path):
    write_pcap(tmp_path / "x" / "a.pcap", udp_flow("10.0.0.1", 1, [10]) + udp_flow("10.0.0.1", 2, [11]))
    write_pcap(tmp_path / "y" / "b.pcap", udp_flow("10.0.0.1", 3, [10]))
    write_pcap(tmp_path / "z" / "c.pcap", udp_flow("10.0.0.1", 5, [13]))
    flows, _ = build_flows(read_source(tmp_path), REPRESENTATION)
    split = Split(np.array([TRAIN, TEST, TEST, TEST], np.int8), SplitOptions(), "")
    remove_duplicates(flows, split)
    assert split.untested == ("y",)
    assert split.warnings == ["1 classes are not tested, every test flow looks like a flow seen before: y"]
    with pytest.raises(DataError, match=r"1 class is tested; show the model more of each flow"):
        remove_duplicates(flows, Split(np.array([TRAIN, TRAIN, TEST, TEST], np.int8), SplitOptions(), ""))
