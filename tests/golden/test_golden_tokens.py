"""What NetMamba+ and netFound see of every golden capture: `expected_*tokens.jsonl` beside the flows' records."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from capture.flow_table import FlowTableConfig
from capture.representations import build
from netcls.tokens import tokens_of_capture
from tests.golden.test_golden import cases


def token_lines_of(case: Path) -> list[str]:
    """One line a flow: the bytes by their hash, sizes, and times to the fourth digit, of the packets that are there."""
    representation = build("netmamba_plus")
    lines = []
    capture = str(case / "capture.pcap")
    for flows, tokens in tokens_of_capture(capture, representation, FlowTableConfig()):
        a = tokens.arrays
        for f in range(len(flows)):
            n = int(tokens.packets_used[f])
            assert a["sizes_present"][f].tolist() == [k < n for k in range(20)]
            assert a["iats_present"][f].tolist() == [0 < k < n for k in range(20)]
            lines.append(
                json.dumps(
                    {
                        "flow_id": int(flows.records["flow_id"][f]),
                        "bytes_sha256": hashlib.sha256(a["bytes"][f].tobytes()).hexdigest()[:16],
                        "sizes": a["sizes"][f, :n].tolist(),
                        "iats": [round(float(iat), 4) for iat in a["iats"][f, 1:n]],
                    }
                )
            )
    return lines


def netfound_lines_of(case: Path) -> list[str]:
    """One line a flow: of each burst the values of its fields, direction, bytes, packets and IAT."""
    representation = build("netfound", {"field_policy": "none"})
    lines = []
    capture = str(case / "capture.pcap")
    for flows, tokens in tokens_of_capture(capture, representation, FlowTableConfig()):
        a = tokens.arrays
        for f in range(len(flows)):
            bursts = [
                [
                    [int(token) - 1 for token in a["ids"][f, b, 1:] if token],
                    int(a["direction"][f, b]),
                    float(a["bytes"][f, b]),
                    float(a["packets"][f, b]),
                    round(float(a["iat"][f, b]), 4),
                ]
                for b in range(int((a["direction"][f] != 0).sum()))
            ]
            flow = {"flow_id": int(flows.records["flow_id"][f]), "protocol": int(a["protocol"][f])}
            lines.append(json.dumps(flow | {"bursts": bursts}))
    return lines


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_netfound_tokens_of_a_capture_are_what_they_were(case: Path) -> None:
    expected = (case / "expected_netfound_tokens.jsonl").read_text().splitlines()
    assert netfound_lines_of(case) == expected


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_tokens_of_a_capture_are_what_they_were(case: Path) -> None:
    assert token_lines_of(case) == (case / "expected_tokens.jsonl").read_text().splitlines()
