"""``netcls models precision``: flows of captures in, a table out, and into the card where it was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import models.precision
from capture.representations.base import TokenBatch
from models.checkpoint import load_checkpoint
from netcls.cli.main import main
from tests.pcap_writer import udp_flow, write_pcap

Capfd = pytest.CaptureFixture[str]
ROWS = {
    "bf16": {"flows": 9, "labels_equal": 0.9991, "largest_logit_change": 0.0214, "speed": 1.234},
    "int8": {"flows": 9, "labels_equal": 0.99, "largest_logit_change": 0.5, "speed": 1.5},
}


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[TokenBatch]:
    """The flows that the precisions were compared on."""
    seen: list[TokenBatch] = []

    def compare(checkpoint: Any, tokens: TokenBatch, *, threads: int | None) -> dict[str, Any]:
        seen.append(tokens)
        return dict(ROWS)

    monkeypatch.setattr(models.precision, "compare", compare)
    return seen


@pytest.fixture
def captures(tmp_path: Path) -> Path:
    """Two captures of five flows, and a file that is none."""
    folder = tmp_path / "captures"
    folder.mkdir()
    for number in range(2):
        packets = [
            (1_700_000_000.0 + i, udp_flow(f"10.0.{number}.{i}", 40_000 + i, [9])[0][1]) for i in range(5)
        ]
        write_pcap(folder / f"{number}.pcap", packets)
    (folder / "text.pcap").write_text("no capture")
    return folder


def test_flows_are_taken_from_every_capture_and_the_table_says_what_changed(
    capfd: Capfd, captures: Path, compared: list[TokenBatch]
) -> None:
    assert main(["models", "precision", "default", str(captures), "--max-flows-per-capture", "3"]) == 0
    assert main(["models", "precision", "default", str(captures), "--max-flows", "7", "-q"]) == 0
    assert [len(tokens) for tokens in compared] == [6, 7]
    out, err = capfd.readouterr()
    assert [line.split() for line in out.splitlines()[1:3]] == [
        ["bf16", "9", "99.91%", "0.021", "1.23"],
        ["int8", "9", "99.00%", "0.500", "1.50"],
    ]
    assert err.splitlines()[0].startswith("netcls: error: ")
    assert "text.pcap" in err


def test_the_table_goes_into_the_card_and_the_checkpoint_stays_the_same(
    capfd: Capfd, captures: Path, compared: list[TokenBatch], tmp_path: Path
) -> None:
    before = load_checkpoint("default").save(tmp_path / "mine")
    model = str(tmp_path / "mine")
    assert main(["models", "precision", model, str(captures), "--json"]) == 0
    assert load_checkpoint(model).card == before.card
    assert main(["models", "precision", model, str(captures), "--json", "--write"]) == 0
    said = json.loads(capfd.readouterr().out.split("\n}\n")[1] + "}")
    after = load_checkpoint(model)
    assert after.digest == before.digest == said["checkpoint"]
    assert after.card["precision"] == said["precision"]
    assert {name: after.card["precision"][name] for name in ROWS} == ROWS
    assert set(after.card["precision"]["measured"]) == {"cpu", "torch", "date"}


def test_captures_without_flows_are_one_line(
    capfd: Capfd, tmp_path: Path, compared: list[TokenBatch]
) -> None:
    (tmp_path / "text.pcap").write_text("no capture")
    assert main(["models", "precision", "default", str(tmp_path)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "got no flow from these captures, expected at least one" in err.splitlines()[-1]
    assert compared == []
