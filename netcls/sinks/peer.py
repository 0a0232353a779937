"""The other end of a network sink: a host that gets bytes by TCP or datagrams by UDP, and may be away.

Every wait has a bound. Host names are looked up again at each :meth:`open`.
"""

from __future__ import annotations

import select
import socket
from typing import Final

from netcls.sinks.base import SinkError

_CONNECT_TIMEOUT_S: Final = 5.0
_SEND_TIMEOUT_S: Final = 10.0
# So long a host on the same network takes to say that nobody listens on a UDP port.
_REFUSAL_WAIT_MS: Final = 50
_MAX_IGNORED_BYTES: Final = 1 << 16


class Peer:
    """A connected socket.

    Args:
        host: name or address.
        port: of it.
        is_udp: datagrams instead of a stream.
    """

    def __init__(self, host: str, port: int, *, is_udp: bool) -> None:
        self.address = f"{f'[{host}]' if ':' in host else host}:{port}"
        self._target = (host, port)
        self._is_udp = is_udp
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Connect.

        Raises:
            SinkError: if no address of the host can be connected to.
        """
        self.close()
        kind = socket.SOCK_DGRAM if self._is_udp else socket.SOCK_STREAM
        last: OSError | None = None
        try:
            addresses = socket.getaddrinfo(*self._target, type=kind)
        except OSError as error:
            raise self._failed(error) from None
        for family, _, _, _, address in addresses:
            connection = socket.socket(family, kind | socket.SOCK_CLOEXEC)
            connection.settimeout(_CONNECT_TIMEOUT_S)
            try:
                connection.connect(address)
            except OSError as error:
                last = error
                connection.close()
                continue
            connection.settimeout(_SEND_TIMEOUT_S)
            self._socket = connection
            return
        raise self._failed(last or OSError("it has no address"))

    def probe(self, datagram: bytes) -> None:
        """Send a datagram and wait a moment whether it is refused (UDP).

        Raises:
            SinkError: if it is.
        """
        self.send(datagram)
        connection = self._connected()
        poll = select.poll()
        poll.register(connection, select.POLLERR)
        if poll.poll(_REFUSAL_WAIT_MS):
            code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            raise self._failed(OSError(code, "nobody listens there"))

    def check_alive(self) -> None:
        """Note that the other end of a stream has closed, before bytes are given to nobody.

        What it sends is thrown away.

        Raises:
            SinkError: if it has.
        """
        connection = self._connected()
        connection.settimeout(0)
        failure: OSError | None = None
        try:
            if not connection.recv(_MAX_IGNORED_BYTES):
                failure = OSError("it closed the connection")
        except BlockingIOError:
            pass
        except OSError as error:
            failure = error
        connection.settimeout(_SEND_TIMEOUT_S)
        if failure is not None:
            raise self._failed(failure)

    def send(self, data: bytes) -> None:
        """Send all of it (TCP), or one datagram.

        Raises:
            SinkError: if that failed; of a stream a part may have left, so it must be opened again.
        """
        if (n_sent := self.send_some(data)) < len(data):
            raise SinkError(f"{self.address} took {n_sent} of {len(data)} bytes, then no more")

    def send_some(self, data: bytes) -> int:
        """As :meth:`send`, but tells how many bytes left before the failure.

        Raises:
            SinkError: if none did.
        """
        connection = self._connected()
        pending = memoryview(data)
        try:
            while True:
                pending = pending[connection.send(pending) :]
                if not pending:
                    return len(data)
        except OSError as error:
            self.close()
            if len(pending) == len(data):
                raise self._failed(error) from None
            return len(data) - len(pending)

    def close(self) -> None:
        """Let go of the socket. May be called again."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            raise SinkError(f"{self.address} is not connected")
        return self._socket

    def _failed(self, error: OSError) -> SinkError:
        self.close()
        return SinkError(f"cannot send to {self.address}: {error.strerror or error}")
