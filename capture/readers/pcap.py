"""Reader of classic pcap: micro- and nanoseconds, both byte orders.

Source: draft-ietf-opsawg-pcap; limits as in libpcap's sf-pcap.c.
"""

from __future__ import annotations

import struct
from typing import ClassVar, Final

from capture.errors import CaptureError, NotACaptureError
from capture.kernels.pcap_walk import (
    CAPTURED_LEN_FIRST,
    NEEDS_BYTES,
    RECORD_HEADER_BYTES,
    SMALLER_IS_CAPTURED,
    WIRE_LEN_FIRST,
    walk_pcap,
)
from capture.readers.base import PCAP_MAGICS, CaptureReader
from capture.readers.source import MAX_RECORD_BYTES, PieceBuffer

FILE_HEADER_BYTES: Final = 24
# Records of up to this many bytes are believed whatever the snap length says (libpcap's MAXIMUM_SNAPLEN).
_ANY_SNAPLEN_BYTES: Final = 262_144
# Order of a record's two lengths by minor version; in older files the wire length comes first.
_LENGTH_ORDERS: Final = {4: CAPTURED_LEN_FIRST, 3: SMALLER_IS_CAPTURED}
_LINK_TYPE_MASK: Final = 0x03FFFFFF  # the bits above hold the FCS length


class PcapReader(CaptureReader):
    """Classic pcap.

    Attributes:
        link_type: LINKTYPE number of all packets.
        snaplen: snap length of the file header, bytes; 0 or huge where the writer did not know one.
    """

    format: ClassVar[str] = "pcap"

    def __init__(self, buffer: PieceBuffer, name: str, *, strict: bool) -> None:
        super().__init__(buffer, name, strict=strict)
        if not buffer.ensure(FILE_HEADER_BYTES):
            raise CaptureError(
                f"{name}: got {len(buffer)} bytes of a pcap file header, expected {FILE_HEADER_BYTES}; "
                f"{buffer.damage or 'the file is cut off'}, take a new copy of it"
            )
        header = buffer.head(FILE_HEADER_BYTES)
        order, self._ns_per_fraction = PCAP_MAGICS[header[:4]]
        self._big_endian = order == ">"
        major, minor, _, _, self.snaplen, network = struct.unpack(order + "HHiIII", header[4:])
        if major != 2 or minor > 4:
            raise NotACaptureError(
                f"{name}: got pcap version {major}.{minor}, expected 2.0 to 2.4; convert it with `editcap -F pcap`"
            )
        self._length_order = _LENGTH_ORDERS.get(minor, WIRE_LEN_FIRST)
        self.link_type: int = network & _LINK_TYPE_MASK
        if self.link_type > 0xFFFF:
            raise NotACaptureError(
                f"{name}: got link type {self.link_type} in the file header, expected at most 65535; "
                f"the header is damaged, take a new copy of the file"
            )
        self._max_captured_len = min(max(self.snaplen, _ANY_SNAPLEN_BYTES), MAX_RECORD_BYTES)
        self._columns.link_type.fill(self.link_type)
        buffer.begin += FILE_HEADER_BYTES

    def _fill_columns(self) -> int:
        buffer = self._buffer
        while True:
            n, buffer.begin, stop = walk_pcap(
                buffer.data,
                buffer.begin,
                buffer.end,
                self._big_endian,
                self._length_order,
                self._ns_per_fraction,
                self._max_captured_len,
                *self._columns[:4],
            )
            if n:
                return int(n)  # why the walk stopped is seen again by the next one, which begins there
            if stop != NEEDS_BYTES:
                return self._damaged(
                    f"damaged: the record at byte {buffer.position} claims {self._captured_len()} captured bytes, "
                    f"expected at most {self._max_captured_len}"
                )
            if not buffer.refill():
                return self._end("record", self._expected_bytes())

    def _expected_bytes(self) -> int:
        """Size of the record that is cut off, as far as its header says."""
        if len(self._buffer) < RECORD_HEADER_BYTES:
            return RECORD_HEADER_BYTES
        return RECORD_HEADER_BYTES + self._captured_len()

    def _captured_len(self) -> int:
        """Captured bytes that the record at hand claims."""
        order = ">" if self._big_endian else "<"
        first, second = struct.unpack_from(order + "II", self._buffer.head(RECORD_HEADER_BYTES), 8)
        if self._length_order == SMALLER_IS_CAPTURED:
            return int(min(first, second))
        return int(second if self._length_order == WIRE_LEN_FIRST else first)
