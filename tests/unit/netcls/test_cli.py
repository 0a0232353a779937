"""The command line against a pipeline of forty lines: what is printed where, and every exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import netcls.pipeline
from capture.errors import CheckpointError, NotACaptureError
from netcls.cli import classify as classify_command
from netcls.cli.main import main
from netcls.counters import Counters
from netcls.event_batch import EventBatch
from netcls.inputs import find_captures
from netcls.output import Output
from netcls.pipeline import RunOptions
from tests.unit.netcls.batches import classified, record, unclassified

Capfd = pytest.CaptureFixture[str]


class FakeRun:
    """Two batches a capture; names say what goes wrong."""

    made: FakeRun

    def __init__(
        self,
        paths: Sequence[str],
        options: RunOptions,
        *,
        classify: bool,
        on_error: Callable[[NotACaptureError], None],
    ) -> None:
        if options.model == "nothing":
            raise CheckpointError("checkpoint 'nothing' is not known")
        self.paths, self.options, self.classify, self.on_error = paths, options, classify, on_error
        self.counters = Counters(packets_seen=40, packets_in_flows=40)
        self.warnings: list[str] = []
        FakeRun.made = self

    def __enter__(self) -> FakeRun:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def __iter__(self) -> Iterator[EventBatch]:
        make = classified if self.classify else unclassified
        for path in self.paths:
            if "bad" in path:
                self.on_error(NotACaptureError(f"'{path}' is not a capture"))
                continue
            yield make(record(flow_id=1), record(flow_id=2), source=path)
            if "cut" in path:
                self.warnings.append(f"'{path}' is cut off")
            if "interrupt" in path:
                raise KeyboardInterrupt
            if "defect" in path:
                raise IndexError("row 7")
            yield make(record(flow_id=3), source=path)


@pytest.fixture(autouse=True)
def fake_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netcls.pipeline, "Run", FakeRun)


def run(capfd: Capfd, *arguments: str) -> tuple[int, list[str], list[str]]:
    code = main(arguments)
    out, err = capfd.readouterr()
    return code, out.splitlines(), err.splitlines()


@pytest.mark.parametrize(("command", "event_type"), [("classify", "netcls"), ("flows", "flow")])
def test_each_flow_is_one_line_and_nothing_else_is_printed(
    capfd: Capfd, command: str, event_type: str
) -> None:
    code, out, err = run(capfd, command, "a.pcap", "b.pcap")
    events = [json.loads(line) for line in out]
    assert code == 0
    assert [(e["event_type"], e["pcap_filename"], e["flow_id"]) for e in events] == [
        (event_type, name, flow_id) for name in ("a.pcap", "b.pcap") for flow_id in (1, 2, 3)
    ]
    assert err == []


def test_a_bad_file_does_not_end_the_others(capfd: Capfd) -> None:
    code, out, err = run(capfd, "classify", "a.pcap", "bad.pcap", "b.pcap")
    assert code == 2
    assert len(out) == 6
    assert err == ["netcls: error: 'bad.pcap' is not a capture"]


def test_a_bad_file_among_others_leaves_the_output_of_the_others(capfd: Capfd, tmp_path: Path) -> None:
    target = tmp_path / "x.jsonl"
    assert run(capfd, "classify", "bad.pcap", "b.pcap", "-o", str(target))[0] == 2
    assert len(target.read_bytes().splitlines()) == 3


def test_when_every_file_is_bad_no_output_is_left(capfd: Capfd, tmp_path: Path) -> None:
    for name in ("jsonl", "csv", "parquet", "table"):
        code, out, err = run(capfd, "flows", "bad.pcap", "-f", name, "-o", str(tmp_path / "x"))
        assert (code, out, len(err)) == (2, [], 1)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_model_is_one_line_and_leaves_no_output(capfd: Capfd, tmp_path: Path) -> None:
    code, out, err = run(capfd, "classify", "a.pcap", "-m", "nothing", "-o", str(tmp_path / "x"))
    assert (code, out, err) == (2, [], ["netcls: error: checkpoint 'nothing' is not known"])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_delivers_what_is_finished(capfd: Capfd, tmp_path: Path) -> None:
    for name, n_lines in (("jsonl", 2), ("csv", 3), ("table", 3)):
        assert run(capfd, "classify", "interrupt.pcap", "-f", name, "-o", str(tmp_path / name))[0] == 130
        assert len((tmp_path / name).read_text().splitlines()) == n_lines


def test_a_defect_is_one_line_with_exit_code_1(
    capfd: Capfd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NETCLS_DEBUG", raising=False)
    arguments = ("classify", "defect.pcap", "-o", str(tmp_path / "x"))
    code, _, err = run(capfd, *arguments)
    assert code == 1
    assert err == [
        "netcls: defect: IndexError: row 7; this is a defect of netcls, please report it (NETCLS_DEBUG=1 shows where)"
    ]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("NETCLS_DEBUG", "1")
    assert "Traceback (most recent call last):" in run(capfd, *arguments)[2]


def test_warnings_go_to_standard_error_unless_quiet(capfd: Capfd) -> None:
    assert run(capfd, "classify", "cut.pcap")[2] == ["netcls: warning: 'cut.pcap' is cut off"]
    code, out, err = run(capfd, "classify", "cut.pcap", "-q")
    assert (code, len(out), err) == (0, 3, [])


def test_verbose_prints_the_books(capfd: Capfd) -> None:
    code, out, err = run(capfd, "flows", "a.pcap", "-v")
    assert (code, len(out)) == (0, 3)
    assert {"packets.seen 40", "packets.in_flows 40", "packets.imbalance 0"} <= set(err)


def test_stats_is_the_last_line(capfd: Capfd) -> None:
    _, out, _ = run(capfd, "classify", "a.pcap", "--stats")
    last = json.loads(out[-1])
    assert (len(out), last["event_type"], last["pcap_filename"]) == (4, "stats", "a.pcap")
    assert last["timestamp"] == json.loads(out[0])["flow"]["end"]
    assert last["stats"] == {"netcls": FakeRun.made.counters.as_dict()}


@pytest.mark.parametrize("other", [["-f", "csv"], ["-f", "parquet"], ["--summary"]])
def test_stats_is_refused_where_it_has_no_place(capfd: Capfd, other: list[str]) -> None:
    code, out, err = run(capfd, "classify", "a.pcap", "--stats", *other)
    assert (code, out) == (2, [])
    assert err[0].startswith(f"netcls: error: --stats has no place in {other[0].replace('-f', '--format')}")


def test_a_summary_stands_instead_of_the_flows(capfd: Capfd) -> None:
    _, out, _ = run(capfd, "classify", "a.pcap", "--summary")
    assert [json.loads(line) for line in out] == [
        {"event_type": "summary", "label": "web", "flows": 3, "packets": 60, "bytes": 3 * 9411}
    ]


def test_format_none_counts_and_writes_nothing(capfd: Capfd) -> None:
    assert run(capfd, "flows", "a.pcap", "-f", "none") == (0, [], [])


def test_the_defaults_of_the_command_are_those_of_the_pipeline(capfd: Capfd) -> None:
    run(capfd, "classify", "a.pcap")
    assert FakeRun.made.options == RunOptions()
    run(capfd, "flows", "a.pcap")
    assert FakeRun.made.options == RunOptions()


def test_every_flag_reaches_the_pipeline(capfd: Capfd) -> None:
    flags = (
        "--model other --idle-timeout-s 60 --active-timeout-s 90.5 --tcp-linger-s 1 --memory-limit-mib 8 "
        "--min-packets 3 --top 2 --strict --threads 2 --device cpu --precision fp32"
    )
    run(capfd, "classify", "a.pcap", *flags.split())
    assert FakeRun.made.options == RunOptions("other", 60.0, 90.5, 1.0, 8 << 20, 3, 2, True, 2, "cpu", "fp32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clasify"], "no command 'clasify'; did you mean 'classify'?; see netcls --help"),
        (
            ["models"],
            "no command given; choose one of list, precision, show, verify; see netcls models --help",
        ),
        (["flows", "--stat", "a"], "No such option '--stat'. (Did you mean one of: '--stats'"),
        (["flows"], "Missing argument 'PATH...'"),
        (["flows", "a", "-f", "xml"], "'xml' is not one of 'table', 'jsonl', 'csv', 'parquet', 'none'"),
        (["flows", "a", "--idle-timeout-s", "0"], "0.0 is not in the range x>0"),
        (["flows", "a", "-o", "gopher://h:1"], "--output 'gopher://h:1': unknown 'gopher:', expected file:"),
    ],
)
def test_a_usage_error_is_one_line_with_exit_code_2(capfd: Capfd, arguments: list[str], message: str) -> None:
    code, out, err = run(capfd, *arguments)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith("netcls: error: ")
    assert message in err[0]


def test_a_hostile_name_stays_one_harmless_line(capfd: Capfd) -> None:
    _, _, err = run(capfd, "classify", "bad\x1b[2J\nx.pcap")
    assert err == [r"netcls: error: 'bad\x1b[2J x.pcap' is not a capture"]


def test_a_folder_stands_for_its_captures_in_order(tmp_path: Path) -> None:
    for name in ("b.pcap", "a/z.PCAPNG.gz", "a/c.cap.zst", "d.dmp", "notes.txt", "x.gz", "a/y.pcap.bak"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = [Path(path).relative_to(tmp_path).as_posix() for path in find_captures(str(tmp_path))]
    assert found == ["a/c.cap.zst", "a/z.PCAPNG.gz", "b.pcap", "d.dmp"]


def test_a_folder_without_captures_is_an_error_that_does_not_end_the_others(
    capfd: Capfd, tmp_path: Path
) -> None:
    remedy = (
        "expected files ending in .pcap, .pcapng, .cap, .dmp, also with .gz, .zst, .xz, .bz2, .lz4; "
        "give a capture file or another folder"
    )
    code, out, err = run(capfd, "classify", str(tmp_path), "a.pcap")
    assert (code, len(out)) == (2, 3)
    assert err == [f"netcls: error: folder '{tmp_path}' holds no captures; {remedy}"]


def test_a_terminal_gets_a_table(capfd: Capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Output, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "150")
    _, out, _ = run(capfd, "classify", "a.pcap")
    assert "runner-up" in out[0]
    assert len(out) == 4
    assert main(["classify", "a.pcap", "-f", "parquet"]) == 2
    assert "parquet is binary and standard output is a terminal; give --output FILE" in capfd.readouterr().err


def test_progress_is_drawn_only_on_a_terminal_and_only_when_wanted(
    capfd: Capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["classify", "a.pcap"]) == 0
    assert "a.pcap: 2 flows" in capfd.readouterr().err
    for silence in ("-q", "--no-progress"):
        assert main(["classify", "a.pcap", silence]) == 0
        assert capfd.readouterr().err == ""


def options_of(arguments: Sequence[str]) -> dict[str, Any]:
    ctx = classify_command.classify.make_context("classify", list(arguments))
    return ctx.params


def test_help_names_the_unit_or_meaning_and_the_default_of_every_option(capfd: Capfd) -> None:
    for command in ("classify", "flows", "tokens"):
        code, out, _ = run(capfd, command, "--help")
        text = " ".join(" ".join(out).split())
        assert code == 0
        assert "[default: " in text
    _, out, _ = run(capfd, "classify", "--help")
    text = " ".join(" ".join(out).split())
    for name, value in options_of(["x"]).items():
        flag = f"--{name.replace('_', '-')}"
        if name == "paths":
            continue
        part = text.split(flag + " ", 1)[1].split(" --", 1)[0]
        assert isinstance(value, bool) or "[default: " in part, flag
        if name.endswith("_s"):
            assert "second" in part, flag
        if name.endswith("_mib"):
            assert "MiB" in part, flag
