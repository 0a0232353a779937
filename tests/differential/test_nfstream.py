"""Our flows against those of nfstream, an independent flow meter, on the bundled captures.

Every flow must hold the same packets, directions and bytes, or differ for a cause that `flow_agreement.CAUSES` names.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from capture.decode import DecodeOptions, decode
from capture.readers import open_capture
from netcls.inputs import find_captures
from netcls.pipeline import Run
from tests.differential.flow_agreement import CAUSES, Agreement, compare
from tests.packets import DATA

pytest.importorskip("nfstream")

from tests.differential.nfstream_peer import PeerFlow, has_mixed_interfaces, meter

IDLE_TIMEOUT_S, ACTIVE_TIMEOUT_S = 120, 1800
CAPTURES = [Path(name) for folder in ("captures", "readers") for name in find_captures(str(DATA / folder))]


@pytest.fixture(scope="module")
def peer() -> dict[str, list[PeerFlow]]:
    """nfstream's flows of the captures that it can read, by file name."""
    flows = zip(CAPTURES, meter(CAPTURES, IDLE_TIMEOUT_S, ACTIVE_TIMEOUT_S), strict=True)
    return {path.name: found for path, found in flows if not isinstance(found, str)}


@pytest.fixture(scope="module")
def agreement(peer: dict[str, list[PeerFlow]]) -> Agreement:
    total = Agreement()
    for path in CAPTURES:
        if path.name in peer:
            total.add(compare(path, peer[path.name], IDLE_TIMEOUT_S, ACTIVE_TIMEOUT_S))
    return total


def test_every_difference_to_nfstream_has_a_named_cause(agreement: Agreement) -> None:
    assert agreement.unexplained == []


def test_most_flows_are_the_same_packet_by_packet(agreement: Agreement) -> None:
    # The captures were chosen for what is odd in them; of ordinary ones 99 % are the same.
    assert agreement.ours >= 150
    assert agreement.agreed >= 0.8 * agreement.ours


def test_only_interfaces_of_several_kinds_keep_a_capture_from_being_compared(
    peer: dict[str, list[PeerFlow]],
) -> None:
    assert [path.name for path in CAPTURES if path.name not in peer] == ["gap-data-missing.pcapng"]
    assert has_mixed_interfaces(DATA / "readers" / "gap-data-missing.pcapng")


def test_truncated_ipv6_packets_are_not_lost(agreement: Agreement) -> None:
    n_cut = 0
    for path in CAPTURES:
        with open_capture(path) as reader:
            for block in reader:
                decoded = decode(block, DecodeOptions(decap="outer"))
                missing = decoded.l3_offset + decoded.ip_len > block.captured_len
                n_cut += int((missing & (decoded.ip_version == 6) & (decoded.reject == 0)).sum())
    assert n_cut > 0
    assert agreement.packets_by_cause["only_ours:truncated_ipv6"] == n_cut


def test_packets_cut_by_the_snap_length_are_in_flows() -> None:
    path = DATA / "captures" / "truncated_geneve.pcap"
    going = Run([str(path)], classify=False)
    for _ in going:
        pass
    with open_capture(path) as reader:
        cut = sum(int((block.captured_len < block.wire_len).sum()) for block in reader)
    assert cut > 0
    assert going.counters.packets_in_flows == going.counters.packets_seen


def _bent(flows: list[PeerFlow], how: str) -> list[PeerFlow]:
    """Flows of a meter that is wrong in one way about its first flow."""
    first, *rest = flows
    match how:
        case "a packet too many":
            return [first._replace(packets=(first.packets[0] + 1, first.packets[1])), *rest]
        case "a byte too many":
            return [first._replace(frame_bytes=(first.frame_bytes[0] + 1, first.frame_bytes[1])), *rest]
        case "directions exchanged":
            return [first._replace(packets=first.packets[::-1], frame_bytes=first.frame_bytes[::-1]), *rest]
        case "another port":
            return [first._replace(src=(first.src[0], 1)), *rest]
        case "a flow lost":
            return rest
    raise ValueError(how)


@pytest.mark.parametrize(
    "how", ["a packet too many", "a byte too many", "directions exchanged", "another port", "a flow lost"]
)
def test_a_difference_is_not_explained_away(peer: dict[str, list[PeerFlow]], how: str) -> None:
    path = DATA / "captures" / "sll_irc.pcap"
    assert compare(path, peer[path.name], IDLE_TIMEOUT_S, ACTIVE_TIMEOUT_S).unexplained == []
    assert compare(path, _bent(peer[path.name], how), IDLE_TIMEOUT_S, ACTIVE_TIMEOUT_S).unexplained


def test_a_connection_that_nfstream_splits_is_not_explained_away(peer: dict[str, list[PeerFlow]]) -> None:
    path = DATA / "captures" / "icmp_tls.pcap"
    whole = peer[path.name]
    tcp = next(flow for flow in whole if flow.protocol == 6)
    with open_capture(path) as reader:
        lengths = [int(n) for block in reader for n in block.wire_len]
    head = tcp._replace(packets=(1, 0), frame_bytes=(lengths[0], 0))
    tail = tcp._replace(
        first_ms=tcp.first_ms + 1,
        packets=(tcp.packets[0] - 1, tcp.packets[1]),
        frame_bytes=(tcp.frame_bytes[0] - lengths[0], tcp.frame_bytes[1]),
    )
    split = [head, tail, *(flow for flow in whole if flow is not tcp)]
    found = compare(path, split, IDLE_TIMEOUT_S, ACTIVE_TIMEOUT_S)
    assert [line.rsplit(": ", 1)[1] for line in found.unexplained] == ["split_by_nfstream"]


def test_every_cause_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "flow_meter_agreement.md").read_text()
    for cause, verdict in CAUSES.items():
        assert f"| `{cause}` | {verdict} |" in page
