"""``ipfix+udp://HOST`` and ``ipfix+tcp://HOST``: ended flows as IPFIX biflows with their label as application.

A flow goes out once, with the last event about it, so that a collector that adds up counts none twice.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from netcls.event import Event
from netcls.sinks.base import SinkError, Told
from netcls.sinks.fields import is_last_of_flow, label_text
from netcls.sinks.ipfix_messages import (
    MAX_MESSAGE_OCTETS,
    MESSAGE_HEADER_OCTETS,
    OPTIONS_APPLICATION,
    SET_HEADER_OCTETS,
    Records,
    application_record,
    data_set,
    message,
)
from netcls.sinks.peer import Peer
from netcls.sinks.uri import SinkUri

DEFAULT_DOMAIN: Final = 1
DEFAULT_TEMPLATE_REFRESH_S: Final = 60

_N_APPLICATIONS: Final = 1 << 24
_MAX_LABELS: Final = 4096
_ROOM_OCTETS: Final = MAX_MESSAGE_OCTETS - MESSAGE_HEADER_OCTETS


class IpfixSink:
    """Exports to one collector.

    Args:
        peer: the collector.
        is_udp: templates and names are sent again and again, since no one confirms a datagram.
        domain: observation domain, 32 bits; each netcls that sends to one collector needs its own.
        inline_names: see :class:`Records`.
        template_refresh_s: seconds between repetitions over UDP.
        now_s: a clock that never goes back.
    """

    def __init__(
        self,
        peer: Peer,
        *,
        is_udp: bool,
        domain: int = DEFAULT_DOMAIN,
        inline_names: bool = False,
        template_refresh_s: float = DEFAULT_TEMPLATE_REFRESH_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = "ipfix"
        self._peer = peer
        self._is_udp = is_udp
        self._domain = domain
        self._records = Records(inline_names)
        self._refresh_s = template_refresh_s
        self._now_s = now_s
        self._labels = LabelNumbers()
        self._sequence = 0
        self._told_at_s = 0.0

    def open(self) -> None:
        """See the contract. The templates are the question whether a collector listens."""
        self._peer.open()
        if not self._is_udp:
            self._sequence = 0  # counts within a connection (RFC 7011, 3.1)
        self._tell_templates(probe=self._is_udp)

    def write(self, batch: Sequence[Told]) -> int:
        """See the contract."""
        if not self._is_udp:
            self._peer.check_alive()
        self._refresh()
        n_taken = 0
        for draft in self._drafts(batch):
            try:
                self._send(draft.sets(), draft.n_records)
            except SinkError:
                if not n_taken:
                    raise
                return n_taken
            n_taken = draft.n_events
        return len(batch)

    def flush(self) -> None:
        """Repeat the templates if it is time."""
        self._refresh()

    def reopen(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """See the contract."""
        self._peer.close()

    def _drafts(self, batch: Sequence[Told]) -> Iterator[Draft]:
        """The messages of a batch. A name goes out before the first record that uses it."""
        draft = Draft()
        for n_before, told in enumerate(batch):
            event = told.event
            if not isinstance(event, Event) or not is_last_of_flow(event):
                continue
            label = label_text(event) or ""
            application, is_new = self._labels.number(label)
            parts = [(OPTIONS_APPLICATION, application_record(application, label))] if is_new else []
            parts.append(self._records.flow(event, application, label))
            if not draft.has_room(parts):
                draft.n_events = n_before
                yield draft
                draft = Draft()
            for template, record in parts:
                draft.add(template, record)
        draft.n_events = len(batch)
        if draft.n_records:
            yield draft

    def _refresh(self) -> None:
        if self._is_udp and self._now_s() - self._told_at_s >= self._refresh_s:
            self._tell_templates(probe=False)

    def _tell_templates(self, *, probe: bool) -> None:
        sets = b"".join(self._records.templates())
        if probe:
            self._peer.probe(message(sets, self._sequence, int(time.time()), self._domain))
        else:
            self._send(sets, 0)
        draft = Draft()
        for number, label in self._labels.names():
            part = (OPTIONS_APPLICATION, application_record(number, label))
            if not draft.has_room([part]):
                self._send(draft.sets(), draft.n_records)
                draft = Draft()
            draft.add(*part)
        if draft.n_records:
            self._send(draft.sets(), draft.n_records)
        self._told_at_s = self._now_s()

    def _send(self, sets: bytes, n_records: int) -> None:
        self._peer.send(message(sets, self._sequence, int(time.time()), self._domain))
        self._sequence += n_records


@dataclass
class Draft:
    """A message that is being filled: names first, then flows by template.

    Each name has a set of its own: nfcapd 1.7.1 leaves the scope out when it steps to the next record of a set
    (its Process_ipfix_nbar_option_data; later versions do not).

    Attributes:
        n_records: records in it.
        n_events: of the batch, that are out when this message is.
    """

    n_records: int = 0
    n_events: int = 0
    _n_octets: int = 0
    _names: bytearray = field(default_factory=bytearray)
    _flows: dict[int, bytearray] = field(default_factory=dict)

    def has_room(self, parts: list[tuple[int, bytes]]) -> bool:
        """True if all parts (template, record) fit."""
        n_new_sets = sum(template not in self._flows for template, _ in parts)
        octets = sum(len(record) for _, record in parts) + SET_HEADER_OCTETS * n_new_sets
        return self._n_octets + octets <= _ROOM_OCTETS

    def add(self, template: int, record: bytes) -> None:
        """Take a record."""
        if template not in self._flows:
            self._n_octets += SET_HEADER_OCTETS
        if template == OPTIONS_APPLICATION:
            self._names += data_set(template, record)
        else:
            self._flows.setdefault(template, bytearray()).extend(record)
        self._n_octets += len(record)
        self.n_records += 1

    def sets(self) -> bytes:
        """The sets."""
        flows = (data_set(template, bytes(records)) for template, records in self._flows.items())
        return bytes(self._names) + b"".join(flows)


class LabelNumbers:
    """Numbers for labels, 24 bits, the same on every sensor and after every restart.

    A number is taken from the label's hash, so that a collector's old records keep their meaning when another model
    with other labels is loaded. Where two labels of this process meet, the later one gets the next free number.
    """

    def __init__(self) -> None:
        self._number_of: dict[str, int] = {}
        self._label_of: dict[int, str] = {}

    def number(self, label: str) -> tuple[int, bool]:
        """The label's number, and whether it was given just now. 0 for no label, and beyond 4096 of them."""
        known = self._number_of.get(label)
        if known is not None:
            return known, False
        if not label or len(self._number_of) >= _MAX_LABELS:
            return 0, False
        digest = hashlib.blake2b(label.encode(errors="surrogatepass"), digest_size=3).digest()
        number = int.from_bytes(digest, "big")
        while not number or number in self._label_of:
            number = (number + 1) % _N_APPLICATIONS
        self._number_of[label], self._label_of[number] = number, label
        return number, True

    def names(self) -> list[tuple[int, str]]:
        """All (number, label)."""
        return list(self._label_of.items())


def udp_from_uri(uri: SinkUri) -> IpfixSink:
    """The sink of ``ipfix+udp://HOST``."""
    return IpfixSink(
        Peer(*uri.hosts[0], is_udp=True),
        is_udp=True,
        domain=uri.whole_number("domain", DEFAULT_DOMAIN, 0, 0xFFFFFFFF),
        inline_names=uri.flag("inline_names"),
        template_refresh_s=uri.whole_number("template_refresh_s", DEFAULT_TEMPLATE_REFRESH_S, 1, 86_400),
    )


def tcp_from_uri(uri: SinkUri) -> IpfixSink:
    """The sink of ``ipfix+tcp://HOST``."""
    return IpfixSink(
        Peer(*uri.hosts[0], is_udp=False),
        is_udp=False,
        domain=uri.whole_number("domain", DEFAULT_DOMAIN, 0, 0xFFFFFFFF),
        inline_names=uri.flag("inline_names"),
    )
