"""Which header fields a model may see.

Every published accuracy of the field leans on fields that name the capture rather than the traffic (addresses,
ports, IP ids, absolute sequence numbers, clocks). A policy is a set of *field groups* that are written over with
zeros before a model sees a packet. Direction is known before anything is hidden, so hiding both addresses
loses nothing that a model may use.

=========== ====================================================================================================
group       hides
=========== ====================================================================================================
addresses   IPv4 and IPv6 addresses; addresses in IPv4 options, in the routing header, the home address option,
            MPTCP and TCP Fast Open options
ports       source and destination ports of TCP, UDP and SCTP
checksums   IPv4, TCP, UDP, ICMP and SCTP checksums (they still encode the hidden addresses)
ip_id       IPv4 identification, IPv6 flow label, fragment and AH identifiers, ICMP echo identifier
seq_ack     TCP sequence and acknowledgement numbers, SACK blocks, SCTP verification tag
timestamps  TCP timestamp option (TSval, TSecr)
ttl         TTL, hop limit
embedded    payloads that carry other packets' headers or addresses: ICMP errors and neighbour discovery (RFC 792,
            RFC 4443, RFC 4861), every IP protocol but TCP, UDP, SCTP, ESP and ICMP echo (so IP-in-IP, GRE, IGMP),
            and UDP tunnels by their registered ports
server_name the server_name extension of a TLS ClientHello, also where it lies in a later segment; where the kept bytes
            do not show how far it is, the rest of the ClientHello
=========== ====================================================================================================

Apart from that, application payload is not looked into: a DNS answer or a DHCP lease holds addresses, an HTTP request
and a certificate names. QUIC hides the name from everybody who does not derive its keys.
A model that must not see them takes no payload (``payload_bytes`` 0).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from capture.errors import TokenizeError

FIELD_GROUPS: Final = (
    *("addresses", "ports", "checksums", "ip_id", "seq_ack", "timestamps", "ttl", "embedded"),
    "server_name",
)

NAMED_POLICIES: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "paper": ("addresses",),  # what NetMamba's published preprocessing hides (there: of IPv4 only)
    "leak_free": FIELD_GROUPS,
}


@dataclass(frozen=True, slots=True)
class FieldPolicy:
    """A named or listed set of hidden field groups."""

    name: str
    hidden: frozenset[str]

    @classmethod
    def parse(cls, value: str | Iterable[str]) -> FieldPolicy:
        """A policy from its name (``none``, ``paper``, ``leak_free``) or from a list of the groups to hide.

        Raises:
            TokenizeError: for an unknown policy or group.
        """
        if isinstance(value, str):
            if value not in NAMED_POLICIES:
                raise TokenizeError(
                    f"field policy {value!r} is not known; choose one of {', '.join(NAMED_POLICIES)}, "
                    f"or a list of field groups ({', '.join(FIELD_GROUPS)})"
                )
            return cls(value, frozenset(NAMED_POLICIES[value]))
        groups = tuple(value)
        unknown = [group for group in groups if group not in FIELD_GROUPS]
        if unknown:
            raise TokenizeError(
                f"field group {unknown[0]!r} is not known; choose from {', '.join(FIELD_GROUPS)}"
            )
        for name, hidden in NAMED_POLICIES.items():
            if set(hidden) == set(groups):
                return cls(name, frozenset(groups))
        return cls("listed", frozenset(groups))

    def setting(self) -> str | list[str]:
        """The JSON value that :meth:`parse` turns into this policy again."""
        if self.name in NAMED_POLICIES:
            return self.name
        return [group for group in FIELD_GROUPS if group in self.hidden]

    def bits(self) -> int:
        """The hidden groups as bits, in the order of ``FIELD_GROUPS``; what the kernel reads."""
        return sum(1 << place for place, group in enumerate(FIELD_GROUPS) if group in self.hidden)
