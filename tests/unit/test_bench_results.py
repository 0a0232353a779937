"""``make results``: the tables of labels, the order of the jobs, and a page that says what was not run."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("results")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A manifest of a few captures, one of each kind that the tasks look for."""
    folder = tmp_path / "data" / "public"
    rows = [
        ("iot_sentinel/Aria/1.pcap", "Aria", "unit=Aria; operator=A; recorded 2016-06-09; group=1"),
        ("mobile_apps/cp/1.pcap", "cp", "emulator android9; run=00; group=2"),
        ("mobile_apps/ma1/v.pcap", "viber", "single or few captures; group=3"),
        ("pqclass/a.pcap", "linux-chrome-pqc", "os=linux; browser=chrome; recorded 2024-09-07; group=4"),
        ("zeek/dns/a.pcap", "dns", "group=5"),
        ("ics/dns/a.pcap", "dns", "group=6"),
        ("zeek/rare/a.pcap", "rare", "group=7"),
        *((f"ndpi/{number}.pcap", "x", f"group=g{number}") for number in range(6)),
        ("nfstream/n.pcap", "x", "group=n"),
    ]
    folder.mkdir(parents=True)
    with (folder / "MANIFEST.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "notes"])
        writer.writerows(rows)
    head = "path,src_ip,src_port,dst_ip,dst_port,protocol,first_seen_ms,last_seen_ms,master,category,guessed,confidence"
    good = [f"{number}.pcap,10.0.0.1,1,10.0.0.2,443,6,1500,2500,TLS,Web,0,dpi" for number in range(6)]
    bad = [
        "0.pcap,10.0.0.1,2,10.0.0.2,443,6,1500,2500,TLS,Web,1,dpi",
        "0.pcap,10.0.0.1,3,10.0.0.2,443,6,1500,2500,TLS,Web,0,by_port",
        "0.pcap,10.0.0.1,4,10.0.0.2,53,17,1500,2500,DNS,Web,0,dpi",
        "0.pcap,10.0.0.1,5,10.0.0.2,443,6,1500,2500,TLS,Rare,0,dpi",
    ]
    for source, lines in (("ndpi", [*good, *bad]), ("nfstream", [])):
        (folder / source).mkdir()
        (folder / source / "flow_labels.csv").write_text("\n".join([head, *lines, ""]))
    return tmp_path / "data"


def table_of(results: ModuleType, name: str, data: Path, tmp_path: Path) -> list[dict[str, str]]:
    task = next(task for task in results.tasks() if task.name == name)
    with task.table(data, tmp_path / "tables").open() as file:
        return list(csv.DictReader(file))


def test_each_task_gets_its_captures_with_absolute_paths(
    results: ModuleType, data: Path, tmp_path: Path
) -> None:
    (device,) = table_of(results, "T2.operator", data, tmp_path)
    assert device == {
        "path": str(data / "public/iot_sentinel/Aria/1.pcap"),
        "label": "Aria",
        "operator": "A",
        "unit": "Aria",
    }
    apps = table_of(results, "T3.android", data, tmp_path)
    assert [(row["label"], row["android"]) for row in apps] == [("cp", "android9"), ("viber", "handset")]
    (stack,) = table_of(results, "T5.system", data, tmp_path)
    assert (stack["system"], stack["time"]) == ("linux", "1725667200")
    protocols = table_of(results, "T6.zeek", data, tmp_path)
    assert [(row["label"], row["source"]) for row in protocols] == [("dns", "zeek"), ("dns", "ics")]


def test_guessed_labels_clear_text_and_rare_categories_are_left_out(
    results: ModuleType, data: Path, tmp_path: Path
) -> None:
    services = table_of(results, "T4.group", data, tmp_path)
    assert [row["src_port"] for row in services] == ["1"] * 6
    assert {row["label"] for row in services} == {"Web"}
    assert (services[0]["first_ts"], services[0]["group"]) == ("1.5", "g0")


def test_quick_jobs_of_all_tasks_come_before_any_network(results: ModuleType) -> None:
    names = [job.name for job in results.jobs([])]
    assert names[0] == "T1.implementations.quick"
    assert len(names) == len(set(names))
    stages = [name.rpartition(".")[2] for name in names]
    assert (
        stages == ["quick"] * stages.count("quick") + ["networks"] * 5
    )  # nothing is trained from a base that knows the lab
    assert {name.partition(".")[0] for name in names} == {f"T{number}" for number in range(1, 8)}
    assert [job.name for job in results.jobs(["T4.flow"])] == ["T4.flow.quick"]


def test_the_command_says_what_is_run(results: ModuleType, tmp_path: Path) -> None:
    (job,) = results.jobs(["T2.operator"])
    options = results.options_of(job, "t.csv", tmp_path, 1)
    assert (options.base, options.leave_out, options.seeds) == ("packet-mamba-small", (("A",),), (0, 1, 2))
    assert results.command_of(options, "t.csv") == (
        "netcls evaluate t.csv --base packet-mamba-small --rows frozen,head --split group --max-flows-per-capture 20 "
        "--group operator --leave-out A --no-checks"
    )


def test_the_lab_is_never_trained_from_a_base_that_knows_it(results: ModuleType, tmp_path: Path) -> None:
    for job in results.jobs(["T1", "T7"]):
        options = results.options_of(job, "t.csv", tmp_path, 1)
        assert {row.partition(":")[0] for row in options.rows} == {"random"}
        assert "--max-seconds-per-row 90" in results.command_of(options, "t.csv")


def test_without_data_nothing_is_run_and_the_line_says_what_to_give(
    results: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("NETCLS_RESULTS_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["results.py"])
    assert results.main() == 2
    assert (
        "expected a folder with lab/ and public/; give --data DIR or set NETCLS_RESULTS_DATA"
        in capsys.readouterr().err
    )
    monkeypatch.setattr(
        sys,
        "argv",
        ["results.py", "--data", str(tmp_path), "--runs", str(tmp_path / "runs"), "--only", "T1.flow"],
    )
    assert results.main() == 0
    assert f"T1.flow.quick: skipped, {tmp_path}/lab/flows.csv is not there" in capsys.readouterr().out


def row(name: str, kind: str, f1: float) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "skipped": "",
        "macro_f1": f1,
        "macro_f1_interval": [f1 - 0.05, f1 + 0.05],
        "accuracy": f1,
        "vote_by_capture": {"accuracy": f1},
        "calibration": {"ece_after": 0.02, "comment": ""},
        "seeds": [0],
        "speed": {"flows_per_s": 100.0},
        "test_flows": 50,
        "unknown": None,
    }


def test_the_page_says_who_is_ahead_and_what_is_missing_and_nothing_breaks_out_of_a_table(
    results: ModuleType,
) -> None:
    part = {"flows": 9, "captures": 3, "groups": 3, "classes": 2, "duplicates_removed": 1}
    result = {
        "verdict": "A <b>baseline</b> | wins.",
        "rows": [row("a|<i>", "baseline", 0.8), row("head", "trained", 0.5)],
        "labels": ["a", "b"],
        "unknown_labels": [],
        "split": {"description": "by capture", "parts": {"train": part, "test": part}},
        "warnings": ["careful"],
        "command": "netcls evaluate x",
        "code": {"commit": "0123456789abcdef"},
        "seeds": [0],
        "cpu_seconds": 5.0,
        "machine": {"cpu": "a CPU"},
        "data": {"test_captures_sha256": "f" * 64},
    }
    page = results.page_of_runs(results.tasks(), json.loads(json.dumps({"T2.capture.quick": result})))
    overview = "| T2 Device type: unseen captures | 50 | 2 | a\\|&lt;i&gt; 0.800 [0.750, 0.850] | head 0.500 "
    assert overview + "[0.450, 0.550] | the baseline |" in page
    assert "<b>" not in page
    assert "Commit 0123456789ab, seeds 0, 5 CPU s on a CPU" in page
    assert "## Not run\n\nT1.implementations, " in page
