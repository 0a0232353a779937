"""IPFIX messages: templates and records as bytes.

    message = header (16 octets) + sets;  set = id, length + records          RFC 7011, 3
    template set (2), options template set (3), data sets (id of their template)

Flows are biflows: counts of the server's direction stand under the reverse enterprise number 29305 (RFC 5103, 6.1).
``applicationId`` (95) is four octets (RFC 6759, 4): the engine, 6 for user-defined, and three of the label's number.
Which name belongs to it goes out as options data with fixed lengths: nfcapd 1.7.1 complains of variable ones.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

from msgspec import UNSET

from netcls.event import Event
from netcls.sinks.fields import epoch_us
from netcls.text import printable

VERSION: Final = 10
MAX_MESSAGE_OCTETS: Final = 1400  # a datagram that no path cuts into fragments (RFC 7011, 10.3.3)
NAME_OCTETS: Final = 24
DESCRIPTION_OCTETS: Final = 55

TEMPLATE_IPV4: Final = 256
TEMPLATE_IPV6: Final = 257
OPTIONS_APPLICATION: Final = 258

_TEMPLATE_SET: Final = 2
_OPTIONS_TEMPLATE_SET: Final = 3
_REVERSE_PEN: Final = 29305
_ENTERPRISE_BIT: Final = 0x8000
_USER_DEFINED_ENGINE: Final = 6
_MESSAGE_HEADER: Final = struct.Struct("!HHIII")
_SET_HEADER: Final = struct.Struct("!HH")
MESSAGE_HEADER_OCTETS: Final = _MESSAGE_HEADER.size
SET_HEADER_OCTETS: Final = _SET_HEADER.size

# (information element, octets), in the order of a record. IANA's registry "IPFIX Information Elements".
_START_MS: Final = (152, 8)
_END_MS: Final = (153, 8)
_ADDRESSES_V4: Final = ((8, 4), (12, 4))
_ADDRESSES_V6: Final = ((27, 16), (28, 16))
_PORTS: Final = ((7, 2), (11, 2))
_PROTOCOL: Final = (4, 1)
_OCTETS: Final = (1, 8)
_PACKETS: Final = (2, 8)
_END_REASON: Final = (136, 1)
_VLAN: Final = (58, 2)
_ICMP_V4: Final = (32, 2)
_ICMP_V6: Final = (139, 2)
_APPLICATION_ID: Final = (95, 4)
_APPLICATION_NAME: Final = (96, NAME_OCTETS)
_APPLICATION_DESCRIPTION: Final = (94, DESCRIPTION_OCTETS)

_HEAD: Final = struct.Struct("!QQ")
# ports, protocol, octets and packets, the same of the server, end reason, VLAN, type and code of ICMP, application
_TAIL: Final = struct.Struct("!HHBQQQQBHHI")
_US_PER_MS: Final = 1000

_PROTOCOLS: Final = {"ICMP": 1, "TCP": 6, "UDP": 17, "IPv6-ICMP": 58, "SCTP": 132}
# flowEndReason, RFC 5102, 5.11.3. An event of an open flow, whose last event this is, has none: 0 is reserved.
_END_REASONS: Final = {"idle": 1, "active": 2, "end_detected": 3, "forced": 4, "lack_of_resources": 5}


@dataclass(frozen=True, slots=True)
class Records:
    """How records of flows look.

    Attributes:
        inline_names: applicationName (24 octets) in each record, for collectors that do not join options.
    """

    inline_names: bool = False

    def templates(self) -> list[bytes]:
        """The template sets, options last; together they fit a message."""
        name = [_APPLICATION_NAME] if self.inline_names else []
        return [
            _template_set(TEMPLATE_IPV4, _ADDRESSES_V4, _ICMP_V4, name),
            _template_set(TEMPLATE_IPV6, _ADDRESSES_V6, _ICMP_V6, name),
            _options_template_set(),
        ]

    def flow(self, event: Event, application: int, label: str) -> tuple[int, bytes]:
        """One flow.

        Args:
            event: of it, the last.
            application: number of its label, 24 bits; 0 where it has none.
            label: its name.

        Returns:
            Number of its template, and the record.
        """
        flow = event.flow
        end = event.timestamp if flow.end is UNSET else flow.end
        is_v4 = event.ip_v == 4
        family = socket.AF_INET if is_v4 else socket.AF_INET6
        reason = event.netcls.end_reason
        vlan = event.vlan or [0]
        icmp = 0 if event.icmp_type is UNSET else event.icmp_type << 8 | (event.icmp_code or 0)
        record = (
            _HEAD.pack(epoch_us(flow.start) // _US_PER_MS, epoch_us(end) // _US_PER_MS)
            + socket.inet_pton(family, event.src_ip)
            + socket.inet_pton(family, event.dest_ip)
            + _TAIL.pack(
                event.src_port or 0,
                event.dest_port or 0,
                _PROTOCOLS[event.proto] if event.proto in _PROTOCOLS else int(event.proto),
                flow.ip_bytes_toserver or 0,
                flow.ip_bytes_toclient or 0,
                flow.pkts_toserver,
                flow.pkts_toclient,
                0 if reason is UNSET else _END_REASONS[reason],
                vlan[0],
                icmp,
                application_id(application),
            )
        )
        if self.inline_names:
            record += fixed_text(label, NAME_OCTETS)
        return (TEMPLATE_IPV4 if is_v4 else TEMPLATE_IPV6), record


def application_record(application: int, label: str) -> bytes:
    """A name for a number: options data of template 258."""
    return (
        application_id(application).to_bytes(4, "big")
        + fixed_text(label, NAME_OCTETS)
        + fixed_text(label, DESCRIPTION_OCTETS)
    )


def application_id(application: int) -> int:
    """The number with its engine, 32 bits; 0 where there is no label."""
    return _USER_DEFINED_ENGINE << 24 | application if application else 0


def data_set(template: int, records: bytes) -> bytes:
    """Records of one template as a set."""
    return _SET_HEADER.pack(template, _SET_HEADER.size + len(records)) + records


def message(sets: bytes, sequence: int, export_s: int, domain: int) -> bytes:
    """A whole message.

    Args:
        sets: one after the other.
        sequence: data records (options too, templates not) of the domain in all messages before; modulo 2^32.
        export_s: seconds since the Unix epoch.
        domain: observation domain.
    """
    length = _MESSAGE_HEADER.size + len(sets)
    return _MESSAGE_HEADER.pack(VERSION, length, export_s & 0xFFFFFFFF, sequence & 0xFFFFFFFF, domain) + sets


def fixed_text(text: str, n_octets: int) -> bytes:
    """UTF-8 cut between characters and padded with zeros; what a terminal obeys is written out."""
    cut = printable(text).encode()[:n_octets].decode(errors="ignore").encode()
    return cut.ljust(n_octets, b"\0")


def _template_set(
    number: int,
    addresses: tuple[tuple[int, int], ...],
    icmp: tuple[int, int],
    name: list[tuple[int, int]],
) -> bytes:
    fields = [_field(*f) for f in (_START_MS, _END_MS, *addresses, *_PORTS, _PROTOCOL)]
    fields += [_field(*_OCTETS), _reverse(*_OCTETS), _field(*_PACKETS), _reverse(*_PACKETS)]
    fields += [_field(*f) for f in (_END_REASON, _VLAN, icmp, _APPLICATION_ID, *name)]
    return data_set(_TEMPLATE_SET, struct.pack("!HH", number, len(fields)) + b"".join(fields))


def _options_template_set() -> bytes:
    fields = [_APPLICATION_ID, _APPLICATION_NAME, _APPLICATION_DESCRIPTION]
    head = struct.pack("!HHH", OPTIONS_APPLICATION, len(fields), 1)  # the first field is the scope
    return data_set(_OPTIONS_TEMPLATE_SET, head + b"".join(_field(*f) for f in fields))


def _field(element: int, n_octets: int) -> bytes:
    return struct.pack("!HH", element, n_octets)


def _reverse(element: int, n_octets: int) -> bytes:
    return struct.pack("!HHI", element | _ENTERPRISE_BIT, n_octets, _REVERSE_PEN)
