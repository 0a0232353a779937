"""QUIC Initial packets of a client: header protection and encryption off, CRYPTO frames out.

Their keys follow from the connection id in the packet, so that everybody on the path can read them (RFC 9001, 5.2).
AES is that of the package ``cryptography`` (the extra ``quic``).
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Any, Final

from capture.handshake.tls import Reader

_TAG_BYTES: Final = 16
_MAX_CONNECTION_ID: Final = 20
_MAX_FRAMES: Final = 256

_SALT_23: Final = bytes.fromhex("c3eef712c72ebb5a11a7d2432bb46365bef9f502")
_SALT_29: Final = bytes.fromhex("afbfec289993d24c9e9786f19c6111e04390a899")
_SALT_V1: Final = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")
_SALT_V2: Final = bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9")
# version -> (salt, prefix of the labels, packet type of an Initial); RFC 9001, 5.2 and RFC 9369, 3. The last drafts,
# which browsers spoke for two years, differ in the salt alone (draft-ietf-quic-tls-23 to -34, 5.2).
VERSIONS: Final = {
    **{0xFF000000 + draft: (_SALT_23, b"quic ", 0) for draft in range(23, 29)},
    **{0xFF000000 + draft: (_SALT_29, b"quic ", 0) for draft in range(29, 33)},
    **{0xFF000000 + draft: (_SALT_V1, b"quic ", 0) for draft in (33, 34)},
    0x00000001: (_SALT_V1, b"quic ", 0),
    0x6B3343CF: (_SALT_V2, b"quicv2 ", 1),
}


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of one client's Initial packets."""

    key: bytes
    iv: bytes
    header: bytes


@dataclass(frozen=True, slots=True)
class Initial:
    """An Initial packet, still protected.

    Attributes:
        version: as on the wire.
        dcid: destination connection id.
        packet: the bytes of this packet alone, as many as were captured.
        number_at: where the packet number begins in them.
        is_cut: whether the capture lacks the end of it.
    """

    version: int
    dcid: bytes
    packet: bytes
    number_at: int
    is_cut: bool


def load_aes() -> Any:
    """The modules of ``cryptography`` that are needed; None where it is not installed."""
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError:
        return None
    return Cipher, algorithms.AES, modes


def initials(datagram: bytes) -> list[Initial]:
    """The Initial packets at the start of a UDP payload (RFC 9000, 12.2 and 17.2)."""
    found: list[Initial] = []
    while len(datagram) > 7 and len(found) < 4:
        version = int.from_bytes(datagram[1:5], "big")
        if datagram[0] & 0x80 == 0 or version not in VERSIONS:
            break
        try:
            reader = Reader(datagram)
            reader.take(5)
            dcid, scid = reader.vector(1), reader.vector(1)
            is_initial = datagram[0] >> 4 & 3 == VERSIONS[version][2]
            if is_initial:
                reader.take(_varint(reader))  # token
            length = _varint(reader)
        except IndexError:
            break
        if len(dcid) > _MAX_CONNECTION_ID or len(scid) > _MAX_CONNECTION_ID:
            break
        number_at = len(datagram) - reader.left()
        end = number_at + length
        if is_initial:
            packet = Initial(version, dcid, datagram[:end], number_at, end > len(datagram))
            found.append(packet)
        datagram = datagram[end:]
    return found


def client_keys(version: int, dcid: bytes) -> Keys:
    """Keys of the client's Initial packets from its first destination connection id (RFC 9001, 5.1 and 5.2)."""
    salt, prefix, _ = VERSIONS[version]
    initial = hmac.digest(salt, dcid, "sha256")
    secret = _expand(initial, b"client in", 32)
    return Keys(
        _expand(secret, prefix + b"key", 16),
        _expand(secret, prefix + b"iv", 12),
        _expand(secret, prefix + b"hp", 16),
    )


def _expand(secret: bytes, label: bytes, n_bytes: int) -> bytes:
    """HKDF-Expand-Label without context (RFC 8446, 7.1), for at most one block of SHA-256."""
    label = b"tls13 " + label
    info = struct.pack(">HB", n_bytes, len(label)) + label + b"\0"
    return hmac.new(secret, info + b"\x01", hashlib.sha256).digest()[:n_bytes]


def open_initial(initial: Initial, keys: Keys, aes: Any) -> bytes | None:
    """The frames of an Initial packet; None if these are not its keys.

    Of a packet whose end was not captured the tag cannot be checked: what comes out is then only plausible.

    Args:
        initial: the packet.
        keys: of its connection.
        aes: from :func:`load_aes`.
    """
    cipher, algorithm, modes = aes
    packet, at = initial.packet, initial.number_at
    sample = packet[at + 4 : at + 20]
    if len(sample) < 16:
        return None
    mask = cipher(algorithm(keys.header), modes.ECB()).encryptor().update(sample)
    first = packet[0] ^ mask[0] & 0x0F
    n_bytes = (first & 3) + 1
    number = bytes(a ^ b for a, b in zip(packet[at : at + n_bytes], mask[1:], strict=False))
    header = bytes([first]) + packet[1:at] + number
    nonce = (int.from_bytes(keys.iv, "big") ^ int.from_bytes(number, "big")).to_bytes(12, "big")
    sealed = packet[at + n_bytes :]
    if initial.is_cut:
        # GCM's counter begins at 2 behind the nonce (NIST SP 800-38D, 7.1).
        counter = modes.CTR(nonce + b"\0\0\0\2")
        return bytes(cipher(algorithm(keys.key), counter).decryptor().update(sealed))
    if len(sealed) < _TAG_BYTES:
        return None
    opener = cipher(algorithm(keys.key), modes.GCM(nonce, sealed[-_TAG_BYTES:])).decryptor()
    opener.authenticate_additional_data(header)
    frames = opener.update(sealed[:-_TAG_BYTES])
    try:
        return bytes(frames + opener.finalize())
    except Exception as error:  # cryptography.exceptions.InvalidTag, without importing it for its name
        if type(error).__name__ != "InvalidTag":
            raise
        return None


def crypto_pieces(frames: bytes) -> list[tuple[int, bytes]]:
    """Offset and bytes of every CRYPTO frame (RFC 9000, 19), up to what is not allowed in an Initial packet."""
    reader, pieces = Reader(frames), []
    try:
        for _ in range(_MAX_FRAMES):
            kind = 0
            while kind == 0:  # PADDING
                kind = reader.number(1)
            if kind in (2, 3):  # ACK
                _varint(reader), _varint(reader)
                n_ranges = _varint(reader)
                _varint(reader)
                if n_ranges > 2 * _MAX_FRAMES:
                    break
                for _ in range(2 * n_ranges + (3 if kind == 3 else 0)):
                    _varint(reader)
            elif kind == 6:
                offset, length = _varint(reader), _varint(reader)
                pieces.append((offset, reader.take(min(length, reader.left()))))
            elif kind != 1:  # PING
                break
    except IndexError:
        pass
    return pieces


def _varint(reader: Reader) -> int:
    """RFC 9000, 16."""
    first = reader.number(1)
    n_more = (1 << (first >> 6)) - 1
    return (first & 0x3F) << (8 * n_more) | (reader.number(n_more) if n_more else 0)
