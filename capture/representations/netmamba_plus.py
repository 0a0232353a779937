"""NetMamba+'s representation: NetMamba's bytes, the sizes of the first 20 packets, and the times between them.

F is the number of flows, n the packets of the two sequences (``n_sequence_packets``).

A size is a number of a closed list, because pre-training predicts it as a class: with ``signed_sizes`` 1500 + size to
the server, 1500 - size to the client (sizes above 1500 count as 1500), then one number for "no packet" and one that
pre-training puts over what it hides. Direction is the flow table's, known before any address was hidden.

A time is 1 + log2(1 + nanoseconds since the packet before): 1 for none, 11 for a microsecond, 21 for a millisecond, 31
for a second. 0 is no time: it stands where there is no packet, at the first packet, and over what pre-training hides.

Departures from the published code, each with a reason; ``published_transform`` goes back to it, for its weights only:

- padding there is size 1500 and an endless time, so a flow of one packet looks like one with 19 full packets more;
- its time 1 / (1 + 1 / (1 + seconds)) moves by 0.00025 over the whole first millisecond;
- its size is that of the frame, so the same packet has another size behind a VLAN tag.

Source: NetMamba+ (arXiv 2601.21792); what it does with bytes: :mod:`capture.representations.netmamba`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import TokenizeError
from capture.flow_batch import FlowBatch, KeepSpec
from capture.representations.base import TokenBatch
from capture.representations.netmamba import NetMambaRepresentation
from capture.representations.places import TokenPlaces, column_places

MAX_SIZE: Final = 1500
"""Largest packet size that has a number of its own, bytes."""


def n_size_ids(signed_sizes: bool) -> int:
    """How many numbers a size can be; the last but one is "no packet", the last is for pre-training to hide with."""
    return (2 * MAX_SIZE if signed_sizes else MAX_SIZE) + 3


class NetMambaPlusRepresentation:
    """Flows to five arrays, in the order in which the network takes them.

    =================  ====================  ===========================================================================
    ``bytes``          uint8 (F, n_bytes)    as :class:`capture.representations.netmamba.NetMambaRepresentation`
    ``sizes``          int16 (F, n)          numbers of packet sizes, see the module
    ``iats``           float32 (F, n)        inter-arrival times in log2 nanoseconds, see the module
    ``sizes_present``  bool (F, n)           there is a packet
    ``iats_present``   bool (F, n)           there is a packet and one before it
    =================  ====================  ===========================================================================

    Args:
        n_packets: first packets of a flow whose bytes are shown.
        header_bytes: shown of each, from the first byte of the IP header.
        payload_bytes: shown of each.
        stride: bytes of one token.
        field_policy: see :mod:`capture.field_policy`; hides in the bytes. Sizes and times name no capture.
        mark_direction: mark packets to the client in the bytes, too; their sizes are marked by ``signed_sizes``.
        n_sequence_packets: first packets of a flow whose sizes and times are shown.
        signed_sizes: tell the two directions apart. False: the paper's one-way flows, which have one direction.
        published_transform: sizes, times and padding of the published code, everything "present". For its weights.
    """

    name: Final = "netmamba_plus"
    version: Final = 1

    def __init__(
        self,
        n_packets: int = 5,
        header_bytes: int = 80,
        payload_bytes: int = 240,
        stride: int = 4,
        field_policy: str | Iterable[str] = "leak_free",
        mark_direction: bool = False,
        n_sequence_packets: int = 20,
        signed_sizes: bool = True,
        published_transform: bool = False,
    ) -> None:
        self._bytes = NetMambaRepresentation(
            n_packets, header_bytes, payload_bytes, stride, field_policy, mark_direction
        )
        if type(n_sequence_packets) is not int or not 1 <= n_sequence_packets <= 4096:
            raise TokenizeError(
                f"n_sequence_packets is {n_sequence_packets!r}, expected a whole number from 1 to 4096"
            )
        for setting, value in (("signed_sizes", signed_sizes), ("published_transform", published_transform)):
            if type(value) is not bool:
                raise TokenizeError(f"{setting} is {value!r}, expected true or false")
        self.n_sequence_packets = n_sequence_packets
        self.signed_sizes = signed_sizes
        self.published_transform = published_transform

    @property
    def keep(self) -> KeepSpec:
        """Fields of as many packets as the longer of bytes and sequences needs."""
        of_bytes = self._bytes.keep
        n_packets = max(of_bytes.n_packets, self.n_sequence_packets)
        return KeepSpec(n_packets, of_bytes.n_byte_packets, of_bytes.header_bytes, of_bytes.payload_bytes)

    @property
    def n_bytes(self) -> int:
        """Bytes of one flow's input."""
        return self._bytes.n_bytes

    def settings(self) -> dict[str, Any]:
        """All constructor arguments, as JSON values."""
        return self._bytes.settings() | {
            "n_sequence_packets": self.n_sequence_packets,
            "signed_sizes": self.signed_sizes,
            "published_transform": self.published_transform,
        }

    def tokenize(self, flows: FlowBatch) -> TokenBatch:
        """Bytes, sizes and times of *ready* flows.

        Args:
            flows: kept with at least this representation's ``keep`` (more packets are not looked at).

        Returns:
            The arrays of the class, in that order.

        Raises:
            TokenizeError: if the batch holds fewer packets, or another number of bytes of each, than needed.
        """
        n = self.n_sequence_packets
        if flows.packets.shape[1] < n:
            raise TokenizeError(
                f"flows hold the fields of {flows.packets.shape[1]} packets, expected at least {n}; "
                "build the flow table with this representation's keep"
            )
        packets = flows.packets[:, :n]
        n_kept = flows.records["n_kept"].astype(np.int64)
        present = np.arange(n) < n_kept[:, None]
        after_another = present & (np.arange(n) > 0)
        if self.published_transform:
            sizes, iats = self._published_sizes(packets, present), _published_iats(packets, present)
            present = after_another = np.ones_like(present)
        else:
            sizes, iats = self._sizes(packets, present), _iats(packets, after_another)
        arrays: dict[str, NDArray[Any]] = dict(self._bytes.tokenize(flows).arrays)
        arrays |= {
            "sizes": sizes,
            "iats": iats,
            "sizes_present": present.copy(),
            "iats_present": after_another.copy(),
        }
        used = np.minimum(n_kept, max(self._bytes.n_packets, n)).astype(np.uint16)
        return TokenBatch(arrays, used)

    def token_places(self, flows: FlowBatch) -> dict[str, TokenPlaces]:
        """Packet and field of each byte, size and time; a size or time takes with it that there is one."""
        sizes, iats = (_of_sequence(flows, self.n_sequence_packets, name) for name in ("size", "iat"))
        of_bytes = self._bytes.token_places(flows)
        return of_bytes | {"sizes": sizes, "sizes_present": sizes, "iats": iats, "iats_present": iats}

    def _numbers(self, size: NDArray[Any], direction: NDArray[Any]) -> NDArray[np.int64]:
        """Numbers of sizes in bytes; ``direction`` 1 is to the client."""
        capped: NDArray[np.int64] = np.minimum(size, MAX_SIZE).astype(np.int64)
        if not self.signed_sizes:
            return capped
        return np.where(direction == 1, MAX_SIZE - capped, MAX_SIZE + capped)

    def _sizes(self, packets: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[np.int16]:
        numbers = self._numbers(packets["ip_len"], packets["direction"])
        return np.where(present, numbers, n_size_ids(self.signed_sizes) - 2).astype(np.int16)

    def _published_sizes(self, packets: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[np.int16]:
        """Of the frame; the padding's number is cut down to the largest legal one, as the published code does."""
        numbers = self._numbers(packets["wire_len"], packets["direction"])
        return np.where(present, numbers, n_size_ids(self.signed_sizes) - 3).astype(np.int16)


def _of_sequence(flows: FlowBatch, n_packets: int, field: str) -> TokenPlaces:
    """Places of an array (F, n) with one element a packet."""
    places = column_places(flows, n_packets, [field])
    return TokenPlaces(places.packet[:, :, 0], places.field[:, :, 0])


def _gaps_ns(packets: NDArray[Any]) -> NDArray[np.uint64]:
    """Nanoseconds since the row before, (F, n); 0 in the first column and where time runs backwards."""
    ts_ns = packets["ts_ns"]
    gaps: NDArray[np.uint64] = np.zeros(ts_ns.shape, np.uint64)
    # Unsigned: times of a hostile capture may be further apart than int64 can tell.
    apart = ts_ns[:, 1:].astype(np.uint64) - ts_ns[:, :-1].astype(np.uint64)
    gaps[:, 1:] = np.where(ts_ns[:, 1:] > ts_ns[:, :-1], apart, np.uint64(0))
    return gaps


def _iats(packets: NDArray[Any], after_another: NDArray[np.bool_]) -> NDArray[np.float32]:
    octaves = 1.0 + np.log2(1.0 + _gaps_ns(packets).astype(np.float64))
    return np.where(after_another, octaves, 0.0).astype(np.float32)


def _published_iats(packets: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[np.float32]:
    """sigmoid(log(1 + seconds)), the seconds rounded to microseconds; 0 s at the first packet, 1 for padding."""
    seconds = np.round(_gaps_ns(packets) / 1e9, 6)
    return np.where(present, 1.0 / (1.0 + 1.0 / (1.0 + seconds)), 1.0).astype(np.float32)
