"""One field removed from all flows, so that nothing can be learnt from it; the rest stays.

The fields are those of :mod:`netcls.evaluation.field_exchange`. A removed field is the same in every flow: zero, as a
field policy hides it, or what the table says. F is the number of flows, M the packets with bytes.

========== ==========================================================================================================
field      what every flow has instead
========== ==========================================================================================================
ip_version IPv4: IPv6 headers are translated (RFC 7915)
opening    a first packet of TCP that is all zero and goes to the server
sizes      full packets in the columns, zero in the headers; where a short payload ends still shows
times      no time between packets
others     zero
========== ==========================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from capture.flow_batch import PACKET_DTYPE, FlowBatch
from netcls.evaluation.field_exchange import HEADER_FIELDS, timestamps_at, translate

_TCP, _UDP = 6, 17
_FULL: Final = {"ip_len": 1500, "payload_len": 1448, "wire_len": 1514}  # bytes, of a full packet on Ethernet


def remove(flows: FlowBatch, field: str, header_bytes: int) -> FlowBatch:
    """The flows without one field; the given ones stay as they are.

    Args:
        flows: raw; ``data`` holds ``header_bytes`` of header, then payload.
        field: one of ``field_exchange.FIELDS``.
        header_bytes: H.
    """
    copy = FlowBatch(flows.records.copy(), flows.packets.copy(), flows.data.copy())
    _HOW[field](_Removal(copy, flows, header_bytes))
    return copy


@dataclass(slots=True)
class _Removal:
    """A copy that fields are zeroed in, and the flows it came from; see `FieldChange`."""

    to: FlowBatch
    source: FlowBatch
    header_bytes: int

    def of_protocol(self, *protocols: int) -> NDArray[np.bool_]:
        return np.isin(self.source.records["protocol"], protocols)

    def is_ipv4(self) -> NDArray[np.bool_]:
        return np.asarray(self.source.records["ip_version"] == 4)

    def header(
        self,
        chosen: NDArray[np.bool_],
        start: int,
        n_bytes: int,
        *,
        behind_l4: bool,
        same_way: bool = False,  # noqa: ARG002 - zero whichever packet it is
    ) -> None:
        flow, packet = np.nonzero(self.there() & chosen[:, None])
        first = np.full(len(flow), start)
        if behind_l4:
            first += self.source.packets["l4_offset"][flow, packet]
        for place in (first + number for number in range(n_bytes)):
            inside = place < self.header_bytes
            self.to.data[flow[inside], packet[inside], place[inside]] = 0

    def columns(
        self,
        chosen: NDArray[np.bool_],
        *names: str,
        same_way: bool = False,  # noqa: ARG002 - as above
    ) -> None:
        for name in names:
            self.to.packets[name][chosen] = 0

    def of_records(self, chosen: NDArray[np.bool_], *names: str) -> None:
        for name in names:
            self.to.records[name][chosen] = 0

    def there(self) -> NDArray[np.bool_]:
        """Packets with bytes: bool (F, M)."""
        places = np.arange(self.source.data.shape[1])
        return np.asarray(places[None, :] < self.source.records["n_kept"][:, None])


def _timestamps(x: _Removal) -> None:
    flow, packet = np.nonzero(x.there() & x.of_protocol(_TCP)[:, None])
    for f, k in zip(flow.tolist(), packet.tolist(), strict=True):
        at = timestamps_at(x.source, f, k, x.header_bytes)
        if at is not None:
            x.to.data[f, k, at : at + 8] = 0


def _ip_version(x: _Removal) -> None:
    for flow in np.flatnonzero(~x.is_ipv4()).tolist():
        translate(x.source, x.to, flow, x.header_bytes)


def _opening(x: _Removal) -> None:
    chosen = x.of_protocol(_TCP)
    blank = np.zeros(np.count_nonzero(chosen), PACKET_DTYPE)
    blank["ts_ns"] = x.source.packets["ts_ns"][chosen, 0]
    x.to.packets[chosen, 0] = blank
    x.to.data[chosen, :1] = 0


def _sizes(x: _Removal) -> None:
    x.header(x.is_ipv4(), 2, 2, behind_l4=False)
    x.header(~x.is_ipv4(), 4, 2, behind_l4=False)
    x.header(x.of_protocol(_UDP), 4, 2, behind_l4=True)
    there = np.arange(x.source.packets.shape[1])[None, :] < x.source.records["n_kept"][:, None]
    for name, full in _FULL.items():
        x.to.packets[name][there] = full


def _times(x: _Removal) -> None:
    there = np.arange(x.source.packets.shape[1])[None, :] < x.source.records["n_kept"][:, None]
    first = np.broadcast_to(x.source.packets["ts_ns"][:, :1], there.shape)
    x.to.packets["ts_ns"][there] = first[there]


def _payload(x: _Removal) -> None:
    x.to.data[:, :, x.header_bytes :] = 0


_HOW: Final[dict[str, Callable[[_Removal], None]]] = HEADER_FIELDS | {
    "timestamps": _timestamps,
    "ip_version": _ip_version,
    "opening": _opening,
    "sizes": _sizes,
    "times": _times,
    "payload": _payload,
}
