"""TLS ClientHello: server name and ALPN, from as much of it as there is.

Every byte is hostile: lengths are bounded by what is there, text comes out in a harmless alphabet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_HELLO_BYTES: Final = 1 << 15  # of one ClientHello; those with post-quantum keys have 2 KiB
MAX_NAME_CHARS: Final = 255  # RFC 1035, 2.3.4
MAX_PROTOCOLS: Final = 8
MAX_PROTOCOL_CHARS: Final = 32

_MAX_LATER_PIECES: Final = 64
_RECORD_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_ALPN: Final = 16
_NAME_CHARS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a ClientHello said.

    Attributes:
        sni: the server's name, lower case, every byte that no host name has as ``?``; None: none was sent (or seen).
        alpn: offered application protocols in the client's order, at most 8, printable ASCII, other bytes as ``?``.
    """

    sni: str | None = None
    alpn: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.sni is not None or bool(self.alpn)


class ByteStream:
    """Pieces of a byte stream in any order; what came first stays. Bounded by ``MAX_HELLO_BYTES``."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._later: dict[int, bytes] = {}

    def add(self, offset: int, piece: bytes) -> None:
        """A piece that begins ``offset`` bytes into the stream (negative: partly before it)."""
        if offset < 0:
            offset, piece = 0, piece[-offset:]
        if not piece or offset + len(piece) > MAX_HELLO_BYTES:
            return
        if offset > len(self._data):
            before = self._later.get(offset, b"")
            if before or len(self._later) < _MAX_LATER_PIECES:
                self._later[offset] = before + piece[len(before) :]
            return
        self._data += piece[len(self._data) - offset :]
        for at in sorted(self._later):
            if at > len(self._data):
                break
            self._data += self._later.pop(at)[len(self._data) - at :]

    @property
    def prefix(self) -> bytes:
        """All bytes from the start up to the first gap."""
        return bytes(self._data)


class Reader:
    """Reads fields off the front of bytes; what is not there raises ``IndexError``."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def take(self, n: int) -> bytes:
        """The next ``n`` bytes."""
        if n > self.left():
            raise IndexError(f"{n} bytes asked of {self.left()}")
        self._at += n
        return self._data[self._at - n : self._at]

    def number(self, n_bytes: int) -> int:
        """The next bytes as a big-endian number."""
        return int.from_bytes(self.take(n_bytes), "big")

    def vector(self, length_bytes: int) -> bytes:
        """A length and as many bytes."""
        return self.take(self.number(length_bytes))


def handshake_bytes(records: bytes) -> bytes:
    """The handshake messages in a stream of TLS records, up to the first record of another kind (RFC 8446, 5.1)."""
    reader, messages = Reader(records), bytearray()
    while reader.left() >= 5:
        kind, major, _ = reader.take(3)
        length = reader.number(2)
        if kind != _RECORD_HANDSHAKE or major != 3:
            break
        messages += reader.take(min(length, reader.left()))
    return bytes(messages)


def parse_client_hello(message: bytes) -> tuple[Handshake | None, bool]:
    """Server name and ALPN of a ClientHello that may be cut.

    Args:
        message: from the handshake header on.

    Returns:
        What was found (None: this is no ClientHello), and whether more bytes could add to it.
    """
    if message[:1] not in (b"", bytes([_CLIENT_HELLO])):
        return None, False
    sni: str | None = None
    alpn: tuple[str, ...] = ()
    try:
        header = Reader(message)
        header.take(1)
        length = header.number(3)
        if length > MAX_HELLO_BYTES:
            return None, False
        is_cut = header.left() < length
        body = Reader(header.take(min(length, header.left())))
        body.take(2 + 32)  # version, random
        body.vector(1)  # session id
        body.vector(2)  # cipher suites
        body.vector(1)  # compression
        if body.left() == 0 and not is_cut:
            return Handshake(), False
        n_left = body.number(2)
        while n_left >= 4:
            kind, extension_length = body.number(2), body.number(2)
            n_left -= 4 + extension_length
            content = body.take(extension_length)
            if kind == _SERVER_NAME and sni is None:
                sni = _server_name(content)
            elif kind == _ALPN and not alpn:
                alpn = _protocols(content)
    except IndexError:
        is_complete = len(message) >= 4 and len(message) - 4 >= int.from_bytes(message[1:4], "big")
        # Complete and still not enough: it lies about its lengths.
        return Handshake(sni, alpn), not is_complete
    return Handshake(sni, alpn), False


def _server_name(content: bytes) -> str | None:
    """The first host name of a server_name extension (RFC 6066, 3)."""
    try:
        names = Reader(Reader(content).vector(2))
        while names.left():
            kind, name = names.number(1), names.vector(2)
            if kind == 0:
                return clean_name(name)
    except IndexError:
        pass
    return None


def clean_name(name: bytes) -> str | None:
    """A host name of at most 255 harmless characters; None for an empty one."""
    shown = name[:MAX_NAME_CHARS].lower()
    return "".join(chr(byte) if byte in _NAME_CHARS else "?" for byte in shown).rstrip(".") or None


def _protocols(content: bytes) -> tuple[str, ...]:
    """The names of an ALPN extension (RFC 7301, 3.1)."""
    found: list[str] = []
    try:
        names = Reader(Reader(content).vector(2))
        while names.left() and len(found) < MAX_PROTOCOLS:
            name = names.vector(1)[:MAX_PROTOCOL_CHARS]
            found.append("".join(chr(byte) if 0x21 <= byte <= 0x7E else "?" for byte in name))
    except IndexError:
        pass
    return tuple(name for name in found if name)
