"""``netcls tokens --representation netfound``: the bursts of a capture as lines and as arrays, the same ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from capture.representations.netfound_layout import ARRAYS, CLS, UDP_ROW
from netcls.cli.main import main
from tests.pcap_writer import udp_flow, write_pcap


def test_the_bursts_of_a_capture_as_lines_and_as_arrays(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capture, target = str(tmp_path / "a.pcap"), tmp_path / "tokens.npz"
    # The two sides in turn: 50 ms apart every packet is a burst; 1 ms apart each side sends one of 8, and 6 are shown.
    packets = udp_flow("10.0.0.1", 3000, [100] * 8, gap_s=0.05)
    packets += udp_flow("10.0.0.1", 4000, [100] * 16, gap_s=0.001)
    write_pcap(Path(capture), packets)
    assert main(["tokens", capture, "--representation", "netfound"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    shown = {line["src_port"]: line["tokens"] for line in lines}
    assert {line["tokens"]["representation"] for line in lines} == {"netfound-1"}
    assert shown[3000]["direction"] == [1, -1] * 4 + [0] * 4
    assert shown[3000]["packets"] == [1] * 8 + [0] * 4
    assert shown[3000]["iat"] == pytest.approx([0, 0] + [100] * 6 + [0] * 4)
    assert shown[4000]["packets"] == [6, 6] + [0] * 10
    assert shown[4000]["bytes"][0] == 6 * 128
    assert shown[4000]["ids"][0][:7] == [CLS, 21, 1, 129, *shown[4000]["ids"][0][4:6], 109]
    assert all(tokens["protocol"] == UDP_ROW for tokens in shown.values())
    assert main(["tokens", capture, "--representation", "netfound", "-f", "npz", "-o", str(target)]) == 0
    with np.load(target) as arrays:
        assert set(ARRAYS) < set(arrays.files)
        for row, line in enumerate(lines):
            assert arrays["ids"][row].tolist() == line["tokens"]["ids"]
