"""What an operator can give that is no capture: one line each, got, expected, what to do."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from capture.errors import CaptureError, NotACaptureError
from capture.readers import open_capture
from tests.captures import Packet, packets_of, pcap


def refusal(source: object) -> str:
    with pytest.raises(CaptureError) as error:
        open_capture(source)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_file_shows_its_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"Hello, world")
    assert refusal(path).startswith(
        f"{path}: not a capture: got first bytes 48656c6c, expected those of pcap"
    )
    with pytest.raises(NotACaptureError):
        open_capture(str(path))


@pytest.mark.parametrize("size", [1, 3])
def test_a_file_too_short_for_a_magic_is_no_capture(size: int) -> None:
    assert "not a capture: got first bytes " + "d4c3b2"[: 2 * size] in refusal(io.BytesIO(pcap()[:size]))


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.pcap"
    path.touch()
    assert refusal(path) == f"{path}: got an empty file, expected a capture; was anything captured?"


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.pcap"
    assert refusal(path) == f"{path}: no such file, expected a capture; check the path"


def test_a_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: got a directory, expected a capture file; name the files in it"


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)  # a mode of 0 stops nobody who is root
    assert (
        refusal("a.pcap")
        == "a.pcap: permission denied, expected a readable capture; check its mode and owner"
    )


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000])
def test_a_path_that_no_file_can_have(path: str) -> None:
    assert "cannot be opened (" in refusal(path)


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (
            bytes.fromhex("34cdb2a1"),
            "got a 'modified' pcap (Kuznetzov's), expected pcap or pcapng; convert it",
        ),
        (bytes.fromhex("a1b2cd34"), "got a 'modified' pcap (Kuznetzov's)"),
        (b"snoop\0\0\0", "got a snoop capture"),
        (
            bytes.fromhex("02214c18"),
            "got an lz4 file of the legacy format, expected pcap or pcapng; unpack it",
        ),
        (b"PK\x03\x04", "got a zip archive"),
    ],
)
def test_known_strangers_are_refused_by_name(head: bytes, text: str) -> None:
    assert text in refusal(io.BytesIO(head + bytes(40)))


@pytest.mark.parametrize("version", [(1, 0), (2, 5), (543, 0)])
def test_an_unknown_version(version: tuple[int, int]) -> None:
    text = (
        f"got pcap version {version[0]}.{version[1]}, expected 2.0 to 2.4; convert it with `editcap -F pcap`"
    )
    assert text in refusal(io.BytesIO(pcap(version=version)))


def test_a_link_type_that_no_number_has() -> None:
    assert "got link type 65536 in the file header, expected at most 65535" in refusal(
        io.BytesIO(pcap(link_type=65536))
    )


def test_a_header_that_is_cut_off() -> None:
    assert "got 23 bytes of a pcap file header, expected 24; the file is cut off" in refusal(
        io.BytesIO(pcap()[:23])
    )


def test_a_stream_opened_as_text() -> None:
    assert "got a stream of str, expected bytes; open it with mode 'rb'" in refusal(io.StringIO("text"))


def test_a_stream_that_does_not_block() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    with os.fdopen(read_end, "rb", buffering=0) as stream:
        assert "got a non-blocking stream without data; give a blocking one" in refusal(stream)
    os.close(write_end)


def test_standard_input_that_is_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert refusal("-") == "stdin: closed, expected a capture; give a path, or pipe one in"
    leader, terminal = os.openpty()
    with os.fdopen(terminal, encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert refusal("-") == "stdin: got a terminal, expected a capture; give a path, or pipe one in"
        monkeypatch.undo()
    os.close(leader)


def test_a_disk_that_fails_in_the_middle_delivers_what_it_gave() -> None:
    class Disk(io.RawIOBase):
        n_reads = 0

        def readinto(self, view) -> int:  # type: ignore[no-untyped-def, override]
            self.n_reads += 1
            if self.n_reads == 2:
                raise OSError(errno.EIO, "Input/output error")
            data = pcap([Packet(0, 1, 3, b"abc")])
            view[: len(data)] = data
            return len(data)

    with open_capture(Disk()) as reader:  # type: ignore[arg-type]
        assert len(next(reader)) == 1
        with pytest.raises(CaptureError, match="<stream>: reading failed behind byte 43: Input/output error"):
            next(reader)


def test_a_piece_of_nothing_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="piece_bytes is 0, expected at least 1"):
        packets_of(io.BytesIO(pcap()), piece_bytes=0)


def test_a_refused_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"nothing")
    n_open = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    refusal(path)
    assert len(os.listdir("/proc/self/fd")) == n_open  # noqa: PTH208
