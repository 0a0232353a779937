"""`--early-exit` from the command line: fewer packets looked at, the saving in the stats, a clear refusal."""

from __future__ import annotations

import json

import pytest

from models.checkpoint_files import ExitLevel
from netcls.bench_traffic import Traffic, write_capture
from netcls.cli.main import main
from tests.unit.models.test_early_exit import saved


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    path = tmp_path_factory.mktemp("early") / "flows.pcap"
    write_capture(path, Traffic(600, 40, seed=0))
    return str(path)


def events_of(capfdbinary, *arguments):
    assert main(["classify", "--threads", "1", "--quiet", "--format", "jsonl", *arguments]) == 0
    return [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]


def test_classify_looks_at_fewer_packets_and_says_what_that_saved(tmp_path, capfdbinary, capture):
    model = str(saved(tmp_path / "model", (ExitLevel(2, 1.0, 0.0),)).path)
    *full, stats = events_of(capfdbinary, capture, "--model", model, "--stats")
    assert "early_exit" not in stats["stats"]["netcls"]
    *early, stats = events_of(capfdbinary, capture, "--model", model, "--stats", "--early-exit")
    used = {event["flow_id"]: event["netcls"]["packets_used"] for event in full}
    assert max(used.values()) > 2
    assert {event["flow_id"]: event["netcls"]["packets_used"] for event in early} == {
        flow_id: min(n, 2) for flow_id, n in used.items()
    }
    available, looked_at = sum(used.values()), sum(min(n, 2) for n in used.values())
    assert stats["stats"]["netcls"]["early_exit"] == {
        "answers": len(used),
        "early": sum(n > 2 for n in used.values()),
        "packets_looked_at": looked_at,
        "packets_available": available,
        "packets_per_answer": pytest.approx(looked_at / len(used)),
        "compute_saved": pytest.approx(1 - looked_at / available),
    }


def test_a_model_without_thresholds_is_refused_in_one_line(tmp_path, capsys, capture):
    model = str(saved(tmp_path / "model").path)
    assert main(["classify", capture, "--model", model, "--early-exit"]) == 2
    said = capsys.readouterr().err
    assert "has no thresholds for early answers" in said
    assert said.count("\n") == 1
