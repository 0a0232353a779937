"""``tcp://HOST:PORT`` and ``udp://HOST:PORT``: events as JSON lines; over UDP one a datagram."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from netcls.sinks.base import SinkError, Told
from netcls.sinks.peer import Peer
from netcls.sinks.uri import SinkUri

# What a UDP datagram over IPv4 carries: 65,535 less both headers.
_MAX_DATAGRAM_BYTES: Final = 65_507


class TcpLinesSink:
    """A stream of JSON lines to one receiver.

    TCP tells only that the kernel took the bytes: when the receiver dies, what it had not read yet is lost.

    Args:
        host: of the receiver.
        port: of the receiver.
    """

    def __init__(self, host: str, port: int) -> None:
        self.name = "tcp"
        self._peer = Peer(host, port, is_udp=False)

    def open(self) -> None:
        """See the contract."""
        self._peer.open()

    def write(self, batch: Sequence[Told]) -> int:
        """See the contract. A line that left in part is offered again, to the next connection."""
        self._peer.check_alive()
        n_sent = self._peer.send_some(b"".join(told.line for told in batch))
        n_lines = sum(end <= n_sent for end in accumulate(len(told.line) for told in batch))
        if not n_lines and batch:
            raise SinkError(f"cannot send to {self._peer.address}: it took only a part of a line")
        return n_lines

    def flush(self) -> None:
        """Nothing: the kernel has it."""

    def reopen(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """See the contract."""
        self._peer.close()


class UdpLinesSink:
    """A datagram a line. Nobody confirms them; only a port where nobody listens is noticed.

    Args:
        host: of the receiver.
        port: of the receiver.

    Attributes:
        n_failed: events whose line is longer than a datagram can be.
    """

    def __init__(self, host: str, port: int) -> None:
        self.name = "udp"
        self.n_failed = 0
        self._peer = Peer(host, port, is_udp=True)
        self._was_refused = False

    def open(self) -> None:
        """See the contract. After a refusal an empty datagram asks whether somebody listens again."""
        self._peer.open()
        if self._was_refused:
            self._peer.probe(b"")
            self._was_refused = False

    def write(self, batch: Sequence[Told]) -> int:
        """See the contract."""
        for n_sent, told in enumerate(batch):
            if len(told.line) > _MAX_DATAGRAM_BYTES:
                self.n_failed += 1
                continue
            try:
                self._peer.send(told.line)
            except SinkError:
                self._was_refused = True
                if not n_sent:
                    raise
                return n_sent
        return len(batch)

    def flush(self) -> None:
        """Nothing."""

    def reopen(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """See the contract."""
        self._peer.close()


def tcp_from_uri(uri: SinkUri) -> TcpLinesSink:
    """The sink of ``tcp://HOST:PORT``."""
    return TcpLinesSink(*uri.hosts[0])


def udp_from_uri(uri: SinkUri) -> UdpLinesSink:
    """The sink of ``udp://HOST:PORT``."""
    return UdpLinesSink(*uri.hosts[0])
