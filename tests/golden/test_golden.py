"""A case is a folder: a capture, what `netcls flows` must say of it (events and books), and where it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from netcls.event import encode_lines
from netcls.pipeline import Run

CASES = Path(__file__).parent / "cases"


def cases() -> list[Path]:
    return sorted(folder for folder in CASES.iterdir() if folder.is_dir())


def lines_of(case: Path) -> list[str]:
    """Every event, without the folder in its file name, then the books."""
    going = Run([str(case / "capture.pcap")], classify=False)
    lines = []
    for batch in going:
        for line in encode_lines(batch).splitlines():
            event = json.loads(line)
            event["pcap_filename"] = Path(event["pcap_filename"]).name
            lines.append(json.dumps(event))
    books = going.counters.as_dict()
    del books["flows"]["memory_peak_bytes"]
    assert going.counters.books_balance()
    return [*lines, json.dumps(books)]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_events_and_books_of_a_capture_are_what_they_were(case: Path) -> None:
    assert (case / "README.md").read_text().strip()
    assert lines_of(case) == (case / "expected.jsonl").read_text().splitlines()
