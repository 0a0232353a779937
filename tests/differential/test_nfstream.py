"""Our flows against those of nfstream, an independent flow meter, on the bundled captures.

Every flow must hold the same packets, directions and bytes, or differ for a cause that `flow_agreement.CAUSES` names.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from capture.readers import open_capture
from netcls.inputs import find_captures
from netcls.pipeline import Run
from tests.differential.flow_agreement import Agreement, compare
from tests.packets import DATA

pytest.importorskip("nfstream")

from tests.differential.nfstream_peer import meter

CAPTURES = [Path(name) for name in find_captures(str(DATA / "captures"))]


@pytest.fixture(scope="module")
def agreement() -> Agreement:
    idle_timeout_s, active_timeout_s = 120, 1800
    total = Agreement()
    for path, flows in zip(CAPTURES, meter(CAPTURES, idle_timeout_s, active_timeout_s), strict=True):
        total.add(compare(path, [] if isinstance(flows, str) else flows, idle_timeout_s, active_timeout_s))
    return total


def test_every_difference_to_nfstream_has_a_named_cause(agreement: Agreement) -> None:
    assert agreement.unexplained == []


def test_most_flows_are_the_same_packet_by_packet(agreement: Agreement) -> None:
    """The captures were chosen for what is odd in them; of ordinary ones 99 % are the same."""
    assert agreement.ours >= 150
    assert agreement.agreed >= 0.8 * agreement.ours


def test_packets_cut_by_the_snap_length_are_not_lost() -> None:
    """nfstream drops IPv6 packets that were not captured whole, silently."""
    path = DATA / "captures" / "truncated_geneve.pcap"
    going = Run([str(path)], classify=False)
    for _ in going:
        pass
    with open_capture(path) as reader:
        cut = sum(int((block.captured_len < block.wire_len).sum()) for block in reader)
    assert cut > 0
    assert going.counters.packets_in_flows == going.counters.packets_seen
