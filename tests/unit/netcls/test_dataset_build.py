"""A built dataset gives what its captures would have given, says what it left out, and is whole or not there."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capture.errors import DataError, UsageError
from capture.flow_batch import FLOW_DTYPE, FlowBatch, KeepSpec
from capture.flow_table import FlowTable, FlowTableConfig
from capture.representations import REPRESENTATIONS, build
from netcls.cli.main import main
from netcls.datasets import shard
from netcls.datasets.build import BuildOptions, LabelledFlows, build_flows
from netcls.datasets.dataset_build import DatasetOptions, build_dataset
from netcls.datasets.files import file_digest
from netcls.datasets.prepare import prepare
from netcls.datasets.repeats import EXACT, NEAR, find_repeats
from netcls.datasets.sources import DataOptions, read_source
from netcls.datasets.splits import TEST, SplitOptions
from netcls.datasets.stored import open_dataset
from netcls.datasets.stored_flows import (
    beginning_columns,
    beginnings_of,
    covers,
    narrowed,
    record_columns,
    records_of,
)
from tests.pcap_writer import START_S, tcp, udp_flow, write_pcap

pa = pytest.importorskip("pyarrow")

TESTS = Path(__file__).parents[2]
CAPTURES = sorted(path for path in TESTS.rglob("*.pcap*") if path.stat().st_size < 1 << 20)
REPRESENTATION = build("netmamba", {"n_packets": 3, "header_bytes": 40, "payload_bytes": 16})
KEEP = {"n_packets": 32, "n_byte_packets": 12, "header_bytes": 80, "payload_bytes": 240}
Capfd = pytest.CaptureFixture[str]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes of four captures with six flows each; every flow has its own sizes."""
    rng = np.random.default_rng(0)
    for label, fill in (("one", 1), ("two", 200)):
        for capture in range(4):
            packets = []
            for flow in range(6):
                sizes = rng.integers(8, 400, 5).tolist()
                packets += udp_flow(
                    "10.0.0.1", 3000 + flow, sizes, start_s=START_S + 10 * capture + flow, fill=fill
                )
            write_pcap(tmp_path / "data" / label / f"{capture}.pcap", packets)
    return tmp_path / "data"


@pytest.fixture
def options(data: Path, tmp_path: Path) -> DatasetOptions:
    return DatasetOptions(str(data), str(tmp_path / "set"))


def assert_same_flows(one: LabelledFlows, other: LabelledFlows) -> None:
    assert one.records["flow_id"].tolist() == other.records["flow_id"].tolist()
    assert one.records.tobytes() == other.records.tobytes()
    assert np.array_equal(one.packets, other.packets)
    assert np.array_equal(one.tokens.packets_used, other.tokens.packets_used)
    for name, array in one.tokens.arrays.items():
        assert np.array_equal(array, other.tokens.arrays[name])
    for name in ("labels", "capture", "group", "host", "time_s"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for name in ("label_names", "capture_names", "group_names", "group_columns"):
        assert getattr(one, name) == getattr(other, name), name


def test_the_flows_of_a_dataset_are_those_of_its_captures_in_every_way(options, data):
    built = build_dataset(options)
    assert (built["flows"], built["resumed_captures"]) == (48, 0)
    assert not Path(options.out).with_name("set.run").exists()
    of_captures, _ = build_flows(read_source(data), REPRESENTATION)
    of_dataset, report = build_flows(read_source(options.out), REPRESENTATION)
    assert_same_flows(of_captures, of_dataset)
    assert (report.captures, report.flows_labelled, report.flows) == (8, 48, 48)
    # Every model input that ships, and one with other settings, from the same dataset.
    for name in REPRESENTATIONS:
        if covers(options.keep, build(name).keep):
            made = [build_flows(read_source(place), build(name))[0] for place in (data, options.out)]
            assert_same_flows(*made)
    wide = build(
        "netmamba", {"n_packets": 5, "header_bytes": 28, "payload_bytes": 100, "field_policy": "none"}
    )
    assert_same_flows(build_flows(read_source(data), wide)[0], build_flows(read_source(options.out), wide)[0])


def test_the_stored_split_is_the_one_that_the_captures_would_get_and_another_one_can_be_asked_for(
    options, data
):
    for kind in ("capture", "time", "flow"):
        out = str(Path(options.out).with_name(kind))
        build_dataset(replace(options, out=out, split_options=SplitOptions(kind, 3)))
        asked = SplitOptions(kind, 3)
        of_captures = prepare(data, REPRESENTATION, DataOptions(), BuildOptions(), asked)
        stored = prepare(out, REPRESENTATION, DataOptions(), BuildOptions(), SplitOptions(prefer_stored=True))
        assert stored.split.part.tolist() == of_captures.split.part.tolist()
        assert stored.split_summary() == of_captures.split_summary()
        again = prepare(out, REPRESENTATION, DataOptions(), BuildOptions(), SplitOptions("capture", 4))
        assert again.split.options.seed == 4


def test_every_bundled_capture_is_stored_and_read_back_byte_for_byte():
    from capture.decode import decode
    from capture.readers import open_capture

    keep = KeepSpec(7, 4, 50, 33)
    n_flows = 0
    for path in CAPTURES:
        table = FlowTable(FlowTableConfig(), keep)
        with open_capture(path) as reader:
            steps = [step.ready for block in reader for step in table.push(block, decode(block))]
        steps += [step.ready for step in table.flush()]
        for ready in steps:
            columns = record_columns(ready.records) | beginning_columns(ready, keep)
            batch = pa.RecordBatch.from_pydict(columns)
            n_flows += len(ready)
            assert records_of(batch).tobytes() == ready.records.tobytes()
            packets, data = beginnings_of(batch, keep, keep)
            assert np.array_equal(packets, ready.packets)
            assert np.array_equal(data, ready.data)
            # A part of the rows, and less of each, as a smaller flow table would have kept.
            less = KeepSpec(3, 2, 30, 5)
            odd = narrowed(FlowBatch(ready.records[1::2], ready.packets[1::2], ready.data[1::2]), keep, less)
            packets, data = beginnings_of(batch.take(pa.array(np.arange(1, len(ready), 2))), keep, less)
            assert np.array_equal(packets, odd.packets)
            assert np.array_equal(data, odd.data)
    assert n_flows > 50


def test_a_large_capture_goes_through_the_disk_and_comes_out_the_same(options, data, tmp_path, monkeypatch):
    build_dataset(options)
    monkeypatch.setattr(shard, "SPOOL_BYTES", 500)
    monkeypatch.setattr(shard, "SHARD_ROWS", 4)
    spooled = replace(options, out=str(tmp_path / "spooled"))
    build_dataset(spooled)
    assert_same_flows(*(build_flows(read_source(made.out), REPRESENTATION)[0] for made in (options, spooled)))


def test_a_cap_at_use_samples_as_it_would_have_from_captures(options, data):
    build_dataset(replace(options, build_options=BuildOptions(max_flows_per_capture=0)))
    cap = BuildOptions(max_flows_per_capture=2, seed=5)
    of_captures, counted = build_flows(read_source(data), REPRESENTATION, cap)
    of_dataset, report = build_flows(read_source(options.out), REPRESENTATION, cap)
    assert_same_flows(of_captures, of_dataset)
    assert report.flows_capped == counted.flows_capped == 32


FLOWS = "path,src_ip,src_port,dest_ip,dest_port,proto,label,first_ts,last_ts,impl,net\n"


def flow_table(folder: Path, offset_s: float = 0.0) -> Path:
    """Two captures of five flows: of each, two labelled, one background, one contradictory, one without a row."""
    text = FLOWS
    for capture in "ab":
        packets = []
        for number in range(5):
            packets += udp_flow("10.0.0.1", 2000 + number, [40 + number, 60], start_s=START_S + number)
        write_pcap(folder / f"{capture}.pcap", packets)
        for number, label in ((0, "x"), (1, "y"), (2, "background"), (3, "x"), (3, "y")):
            first = START_S + number + offset_s
            text += (
                f"{capture}.pcap,10.9.0.1,53,10.0.0.1,{2000 + number},udp,{label},{first},{first + 0.01},"
                f"i{number},n{capture}\n"
            )
        text += f"{capture}.pcap,10.9.0.1,53,10.0.0.1,9,udp,y,{START_S},{START_S + 1},i,n\n"
        text += f"{capture}.pcap,10.9.0.1,53,10.0.0.1,8,udp,,{START_S},{START_S + 1},i,n\n"
    (folder / "flows.csv").write_text(text)
    return folder / "flows.csv"


def test_every_flow_and_row_that_is_not_used_is_listed_with_its_reason(options, tmp_path):
    made = replace(
        options,
        data=str(flow_table(tmp_path / "t")),
        data_options=DataOptions(group=("impl", "net")),
        split_options=SplitOptions("flow"),
    )
    with pytest.raises(DataError, match=r"2 of 2 captures are done and stay in .*set\.run"):
        build_dataset(made)  # two flows of a class are too few for four parts
    info = json.loads((Path(made.out + ".run") / "dataset.json").read_text())
    assert info["unused"] == {
        "dropped label": 2,
        "contradictory labels": 2,
        "unlabelled": 2,
        "no flow matches": 2,
        "row without a label": 2,
    }
    table = pa.ipc.open_file(Path(made.out + ".run") / "unused.arrow").read_all().to_pylist()
    assert {(row["what"], row["reason"], row["src_port"], row["label"]) for row in table} == {
        ("flow", "dropped label", 2002, None),
        ("flow", "contradictory labels", 2003, None),
        ("flow", "unlabelled", 2004, None),
        ("row", "no flow matches", 53, "y"),
        ("row", "row without a label", None, None),
    }
    assert [row["where"] for row in table if row["where"]] == ["flows.csv, line 8", "flows.csv, line 15"]
    assert table[0]["src_ip"] == "10.0.0.1"
    source = read_source(made.out + ".run", DataOptions(group=("net",)))
    assert source.groups == (("na",), ("n",), ("nb",))
    with pytest.raises(
        DataError, match=r"has no group column 'profile', but impl, net; build a dataset with"
    ):
        read_source(made.out + ".run", DataOptions(group=("profile",)))
    with pytest.raises(DataError, match=r"labels are those of column 'label', not of 'label2'"):
        read_source(made.out + ".run", DataOptions(label="label2"))


def test_a_finished_capture_is_not_read_again_and_a_changed_one_is(options, data, monkeypatch):
    read: list[str] = []
    write = shard.write_shard

    def counted(task: Any) -> Any:
        read.append(task.capture.name)
        if len(read) == 3:
            raise DataError("stopped")
        return write(task)

    monkeypatch.setattr("netcls.datasets.shard_workers.write_shard", counted)
    with pytest.raises(
        DataError, match=r"stopped \(2 of 8 captures are done and stay in .*set\.run; the same"
    ):
        build_dataset(options)
    assert not Path(options.out).exists()
    with pytest.raises(UsageError, match=r"set\.run: a build of other data or options was stopped there"):
        build_dataset(replace(options, keep=KeepSpec(9, 9, 40, 40)))
    write_pcap(data / "one" / "1.pcap", udp_flow("10.0.0.1", 1, [9, 9]))
    read[:] = ["", "", ""]
    built = build_dataset(options)
    assert read[3:] == ["one/1.pcap", "one/2.pcap", "one/3.pcap", *(f"two/{n}.pcap" for n in range(4))]
    assert (built["resumed_captures"], built["flows"]) == (1, 43)
    with pytest.raises(UsageError, match=r"set: is already there; expected a new or empty folder"):
        build_dataset(options)


def test_two_processes_that_are_killed_leave_a_build_that_goes_on(options, data):
    command = [
        sys.executable,
        "-m",
        "netcls.cli.main",
        "dataset",
        "build",
        options.data,
        "--out",
        options.out,
    ]
    run = [
        sys.executable,
        "-c",
        "import sys; from netcls.cli.main import main; sys.exit(main())",
        *command[3:],
    ]
    state = Path(options.out + ".run") / "build"
    process = subprocess.Popen([*run, "--workers", "2"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(state.glob("0*.json"))) < 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path(options.out).exists() or process.returncode == 0
    if process.returncode == 0:
        pytest.skip("it was done before it could be killed")
    done = len(list(state.glob("0*.json")))
    built = build_dataset(options)
    assert 1 <= done <= built["resumed_captures"] <= 8
    assert_same_flows(
        build_flows(read_source(data), REPRESENTATION)[0],
        build_flows(read_source(options.out), REPRESENTATION)[0],
    )


@pytest.mark.parametrize("limit", [1000, 9000])
def test_a_full_disk_is_one_line_and_leaves_no_half_a_file(options, limit):
    script = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from netcls.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["dataset", "build", options.data, "--out", options.out, "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=None, check=False
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "cannot be written (File too large); free some space or choose another place" in line
    assert "the same command goes on from there" in line
    assert not Path(options.out).exists()
    left = [path.name for path in Path(options.out + ".run").rglob("*") if path.is_file()]
    assert not [name for name in left if name.startswith((".", "tmp"))]
    assert build_dataset(options)["flows"] == 48


def damaged(path: Path, at: int, value: int) -> None:
    whole = bytearray(path.read_bytes())
    whole[at] = value
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda out: edit(out, format=2),
            r"format 2, expected 1; build the dataset again, or install the netcls",
        ),
        (lambda out: edit(out, flow_fields=[]), r"with other flow fields than this version has"),
        (
            lambda out: edit(out, keep={"n_packets": 3}),
            r"stores 3 packets, 0 with 0 header .* --keep-packets 20",
        ),
        (lambda out: edit(out, keep={"n_packets": -3}), r"need 0 <= n_byte_packets <= n_packets"),
        (lambda out: edit(out, labels="x"), r"'labels' is missing or no list"),
        (lambda out: edit(out, labels=["a", "\x1b[2J"]), r"got label '\\x1b\[2J' with control characters"),
        (lambda out: edit(out, keep=KEEP | {"n_packets": 32.5}), r"keep is \{'n_packets': 32\.5"),
        (lambda out: edit(out, group_columns=[3]), r"group_columns is \[3\]"),
        (lambda out: column(out / "captures.arrow", "rows", [-6, 18] * 4), r"a number of flows below 0"),
        (
            lambda out: column(out / "captures.arrow", "rows", ["6"] * 8),
            r"'rows' is string or lacks .* int64",
        ),
        (
            lambda out: column(out / "captures.arrow", "sha256", [None] * 8),
            r"'sha256' is null or lacks values",
        ),
        (
            lambda out: column(out / "groups.arrow", "capture", [1] * 8),
            r"'capture' is int64 or lacks .* string",
        ),
        (
            lambda out: column(out / "split.arrow", "part", pa.array([9] * 48, pa.int8())),
            r"does not fit the 48 f",
        ),
        (
            lambda out: edit(out, split={}),
            r"has no whole split; build the dataset again, or choose a --split",
        ),
        (lambda out: edit(out, report={"captures": 1, "x": 2}), r"its report is not one of this version"),
        (lambda out: edit(out, flows=47), r"dataset\.json counts 47 flows and captures\.arrow 48"),
        (lambda out: (out / "dataset.json").write_text("{" * 9), r"got no valid JSON"),
        (
            lambda out: (out / "captures.arrow").unlink(),
            r"captures\.arrow: is not there; the dataset is not whole",
        ),
        (lambda out: (out / "groups.arrow").write_bytes(b"ARROW1"), r"groups\.arrow: is damaged"),
        (lambda out: (out / "split.arrow").write_bytes(b""), r"split\.arrow: is damaged"),
        (lambda out: (out / "flows" / "000003.arrow").unlink(), r"000003\.arrow: is not there"),
        (
            lambda out: (out / "flows" / "000003.arrow").write_bytes(b"x" * 99),
            r"000003\.arrow: has 99 bytes, expe",
        ),
        (lambda out: swap(out / "flows", "000000.arrow", "000001.arrow"), r"000000\.arrow: (has|is damaged)"),
    ],
)
def test_a_damaged_or_foreign_dataset_is_refused_by_name(options, damage, message):
    build_dataset(options)
    damage(Path(options.out))
    with pytest.raises(DataError, match=message) as refused:
        prepare(options.out, REPRESENTATION, DataOptions(), BuildOptions(), SplitOptions(prefer_stored=True))
    assert "\n" not in str(refused.value)


def column(path: Path, name: str, values: Any) -> None:
    table = pa.ipc.open_file(path).read_all()
    table = table.set_column(table.column_names.index(name), name, pa.array(values))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def edit(out: Path, **changes: Any) -> None:
    path = out / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def swap(folder: Path, one: str, other: str) -> None:
    """The flows of one capture, but fewer than there should be, under the name of another."""
    table = pa.ipc.open_file(folder / other).read_all()
    with pa.OSFile(str(folder / one), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.slice(1))


def test_no_flipped_byte_crashes_and_verify_sees_each(options, capfd):
    build_dataset(options)
    path = Path(options.out) / "flows" / "000002.arrow"
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for at in rng.integers(0, len(whole), 60).tolist():
        damaged(path, at, whole[at] ^ int(rng.integers(1, 256)))
        try:
            build_flows(read_source(options.out), REPRESENTATION)
        except DataError as error:
            refused += "000002.arrow: is damaged" in str(error)
            refused -= 1000 * ("000002.arrow: is damaged" not in str(error))
        with pytest.raises(DataError, match="its SHA-256 is not the one of the build"):
            open_dataset(Path(options.out)).verify()
        path.write_bytes(whole)
    assert refused > 0
    assert main(["dataset", "inspect", options.out, "--verify"]) == 0
    assert "every shard is as it was written" in capfd.readouterr().out


def test_provenance_outlives_the_captures(options, data):
    build_dataset(options)
    digests = {path.name: file_digest(path) for path in (data / "one").iterdir()}
    shutil.rmtree(data)
    prepared = prepare(
        options.out, REPRESENTATION, DataOptions(), BuildOptions(), SplitOptions(prefer_stored=True)
    )
    assert all(
        capture.digest() == digests[Path(capture.name).name]
        for capture in prepared.captures_of(TEST)
        if capture.name.startswith("one/")
    )
    assert len({capture.digest() for capture in prepared.source.captures}) == 8


def test_repeats_are_flows_of_an_earlier_part():
    part = np.array([0, 0, 1, 3, 3, 3, -1], np.int8)
    inputs = np.array([5, 5, 5, 5, 6, 7, 5], np.uint64)
    shapes = np.array([0, 9, 0, 9, 9, 0, 9], np.uint64)
    # Row 2 repeats row 0; row 3 too; row 4 has only the shape of row 1; 5 shares shape 0, which says nothing.
    assert find_repeats(part, inputs, shapes).tolist() == [0, 0, EXACT, EXACT, NEAR, 0, 0]


def test_the_shape_does_not_see_acknowledgements_payload_or_ports(tmp_path):
    def dialogue(port: int, fill: int, extra: bool) -> list[tuple[float, bytes]]:
        packets = []
        for number, size in enumerate((100, 50, 70, 20, 30)):
            ends = (
                ("10.0.0.1", port, "10.0.0.2", 80) if number % 2 == 0 else ("10.0.0.2", 80, "10.0.0.1", port)
            )
            packets.append((START_S + number, tcp(*ends, 0x18, bytes([fill + number]) * size)))
            if extra:
                packets.append((START_S + number + 0.5, tcp(*ends[2:], *ends[:2], 0x10)))
        return packets

    keep = KeepSpec(20, 5, 80, 240)
    hashes = []
    for number, packets in enumerate(
        (dialogue(5, 1, False), dialogue(6, 90, True), dialogue(5, 1, False)[:3])
    ):
        path = write_pcap(tmp_path / f"{number}.pcap", packets)
        table = FlowTable(FlowTableConfig(), keep)
        from capture.decode import decode
        from capture.readers import open_capture

        with open_capture(path) as reader:
            ready = [step.ready for block in reader for step in table.push(block, decode(block))]
        ready += [step.ready for step in table.flush()]
        (batch,) = [one for one in ready if len(one)]
        hashes.append([int(column[0]) for column in shard.FlowHashes(keep).of(batch)])
    assert hashes[0][0] != hashes[1][0]
    assert hashes[0][1] == hashes[1][1] != 0
    assert hashes[2][1] == 0  # three data packets are too few to call flows alike


def test_repeats_are_reported_and_dropped_where_asked(tmp_path, capfd):
    for label, size in (("one", 50), ("two", 90)):
        for capture in range(5):
            packets = udp_flow("10.0.0.1", 1, [size, size, 7, 9]) + udp_flow(
                "10.0.0.1", 2, [size + capture, 8]
            )
            write_pcap(tmp_path / "d" / label / f"{capture}.pcap", packets)
    arguments = ["dataset", "build", str(tmp_path / "d"), "--workers", "1", "--json", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "all")]) == 0
    split = json.loads(capfd.readouterr().out)["split"]
    assert split["repeats"]["test"]["exact"] >= 2
    assert main([*arguments, "--out", str(tmp_path / "none"), "--drop-duplicates", "exact"]) == 0
    dropped = json.loads(capfd.readouterr().out)["split"]
    assert dropped["flows"]["test"] == split["flows"]["test"] - split["repeats"]["test"]["exact"]
    assert main(["dataset", "inspect", str(tmp_path / "all"), "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["classes"][0]["captures"] == 5
    assert any("have a model input that an earlier part has" in line for line in result["verdict"])
    assert result["bytes_per_flow"] > 300


def test_an_offset_of_the_tables_clock_is_found_reported_and_applied_only_when_asked(options, tmp_path):
    made = replace(
        options, data=str(flow_table(tmp_path / "t", offset_s=-3600.0)), split_options=SplitOptions("flow")
    )
    with pytest.raises(DataError, match=r"none of 12 rows matches any of 10 flows"):
        build_dataset(made)
    source = read_source(made.data)
    for offset in ("auto", 3600.0):
        flows, report = build_flows(source, REPRESENTATION, BuildOptions(clock_offset=offset))
        assert len(flows) == 4
        assert report.captures_clock_offset == 2
        assert "a.pcap: the times of its rows were moved by 3600 s to meet the packets" in report.warnings


def test_the_command_line_says_what_is_wrong(tmp_path, data, capfd: Capfd):
    assert main(["dataset", "inspect", str(data)]) == 2
    assert "dataset.json: cannot be read: No such file or directory" in capfd.readouterr().err
    out = str(tmp_path / "o")
    assert main(["dataset", "build", str(data), "--out", out, "--clock-offset", "soon"]) == 2
    assert "'soon' is neither auto nor a time in seconds" in capfd.readouterr().err
    assert main(["dataset", "build", str(data), "--out", out, "--keep-packets", "3"]) == 2
    assert "--keep-byte-packets 12 is more than --keep-packets 3" in capfd.readouterr().err
    assert main(["dataset", "build", str(data), "--out", str(tmp_path / "no" / "o")]) == 2
    assert "does not exist; make it first" in capfd.readouterr().err
    assert not (tmp_path / "o.run").exists()


def test_records_of_an_empty_capture_have_no_shard(tmp_path):
    write_pcap(tmp_path / "d" / "one" / "empty.pcap", [])
    for label in ("one", "two"):
        for number in range(4):
            write_pcap(
                tmp_path / "d" / label / f"{number}.pcap", udp_flow("10.0.0.1", 1, [number + 9, len(label)])
            )
    (tmp_path / "d" / "two" / "text.pcap").write_text("no capture")
    built = build_dataset(DatasetOptions(str(tmp_path / "d"), str(tmp_path / "o")))
    assert (built["flows"], built["report"]["captures"], built["report"]["captures_unreadable"]) == (8, 9, 1)
    assert len(list((tmp_path / "o" / "flows").iterdir())) == 8
    flows, _ = build_flows(read_source(tmp_path / "o"), REPRESENTATION)
    assert len(flows) == 8
    assert flows.records.dtype == FLOW_DTYPE


def test_repeats_are_the_same_however_few_flows_are_sorted_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    part = rng.integers(-1, 4, 3000).astype(np.int8)
    inputs = rng.integers(0, 2**64, 900, np.uint64, endpoint=False)[rng.integers(0, 900, 3000)]
    shapes = inputs[rng.permutation(3000)]
    inputs[:50] = shapes[-50:] = 0
    whole = find_repeats(part, inputs, shapes)
    assert set(np.unique(whole).tolist()) == {0, EXACT, NEAR}
    for row in rng.integers(0, 3000, 200).tolist():
        same = (inputs == inputs[row]) & (part >= 0) & (part < part[row])
        assert (whole[row] == EXACT) == bool(part[row] >= 0 and inputs[row] and same.any())
    monkeypatch.setattr("netcls.datasets.repeats._SORTED_AT_ONCE", 100)
    monkeypatch.setattr("netcls.datasets.repeats._LOOKED_AT_ONCE", 70)
    assert np.array_equal(find_repeats(part, inputs, shapes), whole)
