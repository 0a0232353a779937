"""ClientHellos, TLS records and QUIC Initial packets, built by hand (sealed with the AEAD of ``cryptography``)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from capture.handshake.quic import client_keys


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack(">HH", kind, len(content)) + content


def server_name(name: bytes) -> bytes:
    entry = b"\0" + struct.pack(">H", len(name)) + name
    return extension(0, struct.pack(">H", len(entry)) + entry)


def protocols(names: Sequence[bytes]) -> bytes:
    entries = b"".join(bytes([len(name)]) + name for name in names)
    return extension(16, struct.pack(">H", len(entries)) + entries)


def client_hello(
    name: bytes | None = b"example.org",
    alpn: Sequence[bytes] = (b"h2", b"http/1.1"),
    *,
    before: int = 0,
    behind: int = 0,
    session_id: int = 32,
) -> bytes:
    """A ClientHello handshake message; ``before`` and ``behind``: bytes of padding around name and ALPN."""
    extensions = extension(21, bytes(before)) if before else b""
    extensions += b"" if name is None else server_name(name)
    extensions += protocols(alpn) if alpn else b""
    extensions += extension(51, b"k" * behind) if behind else b""
    body = b"\x03\x03" + bytes(range(32)) + bytes([session_id]) + b"s" * session_id
    body += struct.pack(">HHHBB", 4, 0x1301, 0x1302, 1, 0) + struct.pack(">H", len(extensions)) + extensions
    return b"\x01" + len(body).to_bytes(3, "big") + body


def tls_records(message: bytes, size: int = 1 << 14) -> bytes:
    """A handshake message in TLS records of at most ``size`` bytes."""
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + struct.pack(">H", len(part)) + part for part in parts)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 64 else struct.pack(">H", 0x4000 | value)


def crypto_frame(offset: int, piece: bytes) -> bytes:
    return b"\x06" + varint(offset) + varint(len(piece)) + piece


def quic_initial(
    frames: bytes,
    dcid: bytes = bytes.fromhex("8394c8f03e515708"),
    *,
    version: int = 1,
    number: int = 0,
    key_id: bytes | None = None,
    pad_to: int = 1200,
    token: bytes = b"",
) -> bytes:
    """A client's Initial packet; ``key_id``: the connection id that the keys come from, where it is another."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    keys = client_keys(version, dcid if key_id is None else key_id)
    head = version.to_bytes(4, "big") + bytes([len(dcid)]) + dcid + b"\x04scid"
    head += varint(len(token)) + token
    frames = frames.ljust(pad_to - 1 - len(head) - 2 - 2 - 16, b"\0")
    first = (0xD1 if version == 0x6B3343CF else 0xC1) & 0xFF  # a packet number of two bytes
    head = (
        bytes([first]) + head + struct.pack(">H", 0x4000 | (2 + len(frames) + 16)) + struct.pack(">H", number)
    )
    nonce = (int.from_bytes(keys.iv, "big") ^ number).to_bytes(12, "big")
    sealed = AESGCM(keys.key).encrypt(nonce, frames, head)
    mask = Cipher(algorithms.AES(keys.header), modes.ECB()).encryptor().update(sealed[2:18])
    return (
        bytes([head[0] ^ mask[0] & 0x0F])
        + head[1:-2]
        + bytes(a ^ b for a, b in zip(head[-2:], mask[1:3], strict=True))
        + sealed
    )
