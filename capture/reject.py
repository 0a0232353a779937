"""The named ways in which a packet does not become part of a flow.

One uint8 per packet: 0 is "decoded". 1 to 127 are *rejects*: the bytes are not what a header says
they are, or are missing. 128 to 255 are *ignored*: well-formed, but nothing that belongs to a flow
of netcls. Every packet seen is in a flow, rejected or ignored, so the books balance.

Values are part of the event stream (by name) and of tests; add at the end of each half, never renumber.
"""

from __future__ import annotations

from enum import IntEnum

IGNORED_FROM = 128


class Reject(IntEnum):
    """Why a packet is not in a flow. The lower-case name is what counters and events show."""

    DECODED = 0

    EMPTY = 1  # no captured byte
    UNKNOWN_LINK_TYPE = 2  # a link layer that netcls does not decode
    TRUNCATED_LINK = 3  # the link-layer header is cut off
    TRUNCATED_VLAN = 4  # the 802.1Q tag is cut off
    VLAN_TOO_DEEP = 5  # more stacked tags than the decoder follows
    TRUNCATED_IP = 6  # the fixed IP header is cut off
    BAD_IP_VERSION = 7  # the version nibble contradicts the link layer or is neither 4 nor 6
    BAD_IP_HEADER_LENGTH = 8  # IHL below 5, or the header is longer than the packet
    BAD_IP_TOTAL_LENGTH = 9  # the total length is shorter than the header
    TRUNCATED_EXTENSION = 10  # an IPv6 extension header or IPv4 options are cut off
    EXTENSION_TOO_DEEP = 11  # more IPv6 extension headers than the decoder follows
    TRUNCATED_TRANSPORT = 12  # the TCP, UDP, ICMP or SCTP header is cut off (by snaplen or by the IP length)
    BAD_TCP_OFFSET = 13  # the TCP data offset is below 5 or runs past the segment
    BAD_UDP_LENGTH = 14  # the UDP length is below 8 or longer than its IP payload
    BAD_LINK_HEADER = 15  # a PPPoE, radiotap or 802.11 header that contradicts itself
    LINK_TOO_DEEP = 16  # more MPLS labels or link layers in each other than the decoder follows
    BAD_FCS = 17  # radiotap says that the frame failed its check
    FRAGMENT_OVERLAP = 18  # covers bytes of its datagram that were seen already
    FRAGMENT_TOO_LONG = 19  # reaches past the 65,535 bytes of a datagram
    TOO_MANY_FRAGMENTS = 20  # more pieces of one datagram than the table follows
    BAD_IP_CHECKSUM = 21  # only with --check-checksums
    BAD_TCP_CHECKSUM = 22
    BAD_UDP_CHECKSUM = 23
    TUNNEL_TOO_DEEP = 24  # only in `tunnel_stop`: the packet stays in the innermost flow reached

    ARP = 128
    NOT_IP = 129  # another EtherType (LLDP, STP, EAPOL, PROFINET, ...)
    LATER_FRAGMENT = 130  # not the first fragment, and the first one was not seen before it
    NO_NEXT_HEADER = 131  # IPv6 says that nothing follows (next header 59)
    PPP_CONTROL = 132  # PPP link or network control, PPPoE discovery
    PROTECTED_FRAME = 133  # 802.11 data that is encrypted
    WIFI_NO_DATA = 134  # 802.11 management, control, null
    WIFI_FRAGMENT = 135  # a later fragment of an 802.11 frame
    WIFI_AGGREGATE = 136  # several packets in one 802.11 frame (A-MSDU)


def is_ignored(reason: int) -> bool:
    """True for the well-formed packets that belong to no flow (128 to 255)."""
    return reason >= IGNORED_FROM
