"""``zeek:DIR``: ``DIR/netcls.log`` as Zeek would write it, JSON or tab-separated with its header.

Join with Zeek's own logs on ``community_id`` and time: ``uid`` begins with N, Zeek's own with C, so they never meet.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import UNSET

from netcls.event import Event
from netcls.sinks.append_file import AppendFile
from netcls.sinks.base import SinkError, Told
from netcls.sinks.fields import epoch_us, is_last_of_flow, label_text
from netcls.sinks.uri import SinkUri
from netcls.text import printable

FORMATS: Final = ("json", "tsv")

_FILE_NAME: Final = "netcls.log"
_FOLDER_MODE: Final = 0o750
_TYPES: Final = {
    "ts": "time",
    "uid": "string",
    "id.orig_h": "addr",
    "id.orig_p": "port",
    "id.resp_h": "addr",
    "id.resp_p": "port",
    "proto": "enum",
    "community_id": "string",
    "label": "string",
    "probability": "double",
    "unknown": "bool",
    "model": "string",
}
_UNSET: Final = "-"
_EMPTY: Final = "(empty)"
_TSV_HEADER: Final = (
    "#separator \\x09\n#set_separator\t,\n"
    f"#empty_field\t{_EMPTY}\n#unset_field\t{_UNSET}\n#path\tnetcls\n"
    + "\t".join(("#fields", *_TYPES))
    + "\n"
    + "\t".join(("#types", *_TYPES.values()))
    + "\n"
)
_US_PER_S: Final = 1_000_000
_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_N_UID_DIGITS: Final = 17
# A field that is one of the reserved words, or begins like a comment, has its first character written out.
_RESERVED: Final = re.compile(r"^(?=-$|\(empty\)$|#).")
_ENCODER: Final = msgspec.json.Encoder()


class ZeekLogSink:
    """One line a flow, when it is over.

    Args:
        folder: made where it is not there.
        tsv: tab-separated with Zeek's header, instead of JSON.
    """

    def __init__(self, folder: Path, *, tsv: bool = False) -> None:
        self.name = "zeek"
        self._folder = folder
        self._line = _tsv_line if tsv else _json_line
        self._file = AppendFile(folder / _FILE_NAME, _TSV_HEADER.encode() if tsv else b"")

    def open(self) -> None:
        """See the contract."""
        try:
            self._folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        except OSError as error:
            raise SinkError(f"cannot make the folder '{self._folder}': {error.strerror}") from None
        self._file.open()

    def write(self, batch: Sequence[Told]) -> int:
        """See the contract."""
        events = (told.event for told in batch if is_last_of_flow(told.event))
        self._file.append(b"".join(self._line(zeek_fields(e)) for e in events if isinstance(e, Event)))
        return len(batch)

    def flush(self) -> None:
        """See the contract."""
        self._file.sync()

    def reopen(self) -> None:
        """See the contract."""
        self._file.open()

    def close(self) -> None:
        """See the contract."""
        self._file.close()


def zeek_fields(event: Event) -> dict[str, Any]:
    """The fields of a line, in their order; None where one is not set."""
    ours = event.netcls
    is_icmp = event.icmp_type is not UNSET
    fields = {
        "ts": epoch_us(event.flow.start) / _US_PER_S,
        "uid": uid(event.flow_id),
        "id.orig_h": event.src_ip,
        # Zeek has type and code of ICMP where others have ports.
        "id.orig_p": event.icmp_type if is_icmp else event.src_port,
        "id.resp_h": event.dest_ip,
        "id.resp_p": event.icmp_code if is_icmp else event.dest_port,
        "proto": _proto(event.proto),
        "community_id": event.community_id,
        "label": label_text(event),
        "probability": ours.probability,
        "unknown": ours.unknown,
        "model": ours.model,
    }
    return {name: None if value is UNSET else value for name, value in fields.items()}


def uid(flow_id: int) -> str:
    """``N`` and 17 digits of base 62, always the same for a ``flow_id``."""
    number = int.from_bytes(hashlib.blake2b(flow_id.to_bytes(8, "big"), digest_size=16).digest(), "big")
    digits = ""
    for _ in range(_N_UID_DIGITS):
        number, digit = divmod(number, 62)
        digits += _BASE62[digit]
    return "N" + digits


def from_uri(uri: SinkUri) -> ZeekLogSink:
    """The sink of ``zeek:DIR``."""
    return ZeekLogSink(Path(uri.path), tsv=uri.choice("format", FORMATS) == "tsv")


def _proto(name: str) -> str:
    # Zeek's enum has icmp for both versions, and no numbers.
    if name == "IPv6-ICMP":
        return "icmp"
    return "unknown_transport" if name.isdigit() else name.lower()


def _json_line(fields: dict[str, Any]) -> bytes:
    return _ENCODER.encode({name: value for name, value in fields.items() if value is not None}) + b"\n"


def _tsv_line(fields: dict[str, Any]) -> bytes:
    return ("\t".join(map(_tsv_field, fields.items())) + "\n").encode()


def _tsv_field(item: tuple[str, Any]) -> str:
    name, value = item
    if value is None:
        return "0" if _TYPES[name] == "port" else _UNSET
    if isinstance(value, bool):
        return "T" if value else "F"
    if name == "ts":
        return f"{value:.6f}"
    if not isinstance(value, str):
        return str(value)
    if not value:
        return _EMPTY
    return _RESERVED.sub(lambda match: f"\\x{ord(match[0]):02x}", printable(value.replace("\\", "\\\\")))
