"""An IPFIX decoder, slow and plain, written from RFC 7011 and 5103 and not from our encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Message:
    """A decoded message: header fields and the records of its data sets, in their order."""

    sequence: int
    export_s: int
    domain: int
    n_octets: int
    n_templates: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)


class Collector:
    """Keeps templates between messages, as a collector does."""

    def __init__(self) -> None:
        self.templates: dict[tuple[int, int], list[tuple[str, int]]] = {}
        self.options: set[tuple[int, int]] = set()

    def decode(self, data: bytes) -> Message:
        assert int.from_bytes(data[0:2], "big") == 10
        assert int.from_bytes(data[2:4], "big") == len(data)
        message = Message(
            export_s=int.from_bytes(data[4:8], "big"),
            sequence=int.from_bytes(data[8:12], "big"),
            domain=int.from_bytes(data[12:16], "big"),
            n_octets=len(data),
        )
        at = 16
        while at < len(data):
            set_id, length = (
                int.from_bytes(data[at : at + 2], "big"),
                int.from_bytes(data[at + 2 : at + 4], "big"),
            )
            assert length >= 4
            assert at + length <= len(data)
            body = data[at + 4 : at + length]
            if set_id == 2:
                self._templates(message, body, has_scope=False)
            elif set_id == 3:
                self._templates(message, body, has_scope=True)
            else:
                assert set_id >= 256
                self._records(message, set_id, body)
            at += length
        return message

    def _templates(self, message: Message, body: bytes, *, has_scope: bool) -> None:
        at = 0
        while at < len(body):
            number, n_fields = (
                int.from_bytes(body[at : at + 2], "big"),
                int.from_bytes(body[at + 2 : at + 4], "big"),
            )
            at += 4
            if has_scope:
                assert 0 < int.from_bytes(body[at : at + 2], "big") <= n_fields
                at += 2
                self.options.add((message.domain, number))
            fields = []
            for _ in range(n_fields):
                element, length = (
                    int.from_bytes(body[at : at + 2], "big"),
                    int.from_bytes(body[at + 2 : at + 4], "big"),
                )
                at += 4
                name = str(element & 0x7FFF)
                if element & 0x8000:
                    enterprise = int.from_bytes(body[at : at + 4], "big")
                    at += 4
                    name = f"{'reverse ' if enterprise == 29305 else f'{enterprise}.'}{name}"
                assert 0 < length < 65535
                fields.append((name, length))
            self.templates[message.domain, number] = fields
            message.n_templates += 1

    def _records(self, message: Message, number: int, body: bytes) -> None:
        fields = self.templates[message.domain, number]
        size = sum(length for _, length in fields)
        assert len(body) % size == 0, "no padding was expected"
        for start in range(0, len(body), size):
            record: dict[str, Any] = {
                "template": number,
                "is_option": (message.domain, number) in self.options,
            }
            at = start
            for name, length in fields:
                record[name] = body[at : at + length]
                at += length
            message.records.append(record)


def number(record: dict[str, Any], element: str) -> int:
    """An unsigned value."""
    return int.from_bytes(record[element], "big")


def text(record: dict[str, Any], element: str) -> str:
    """A string with its padding cut off."""
    value: bytes = record[element]
    return value.rstrip(b"\0").decode()
