"""An output file is complete or absent; a pipe that closes is no error; a full disk is one line."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.errors import UsageError
from netcls.output import Output, OutputClosed, OutputError


def fill(target: str, n_bytes: int) -> None:
    with Output(target) as output:
        output.write(b"a" * n_bytes)


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    target.write_bytes(b"old")
    with Output(str(target)) as output:
        output.write(b"a" * 200_000)
        assert target.read_bytes() == b"old"
        (temporary,) = set(tmp_path.iterdir()) - {target}
        assert temporary.stat().st_size == 200_000
    assert target.read_bytes() == b"a" * 200_000
    assert list(tmp_path.iterdir()) == [target]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    target.write_bytes(b"old")

    def fail() -> None:
        with Output(str(target)) as output:
            output.write(b"a" * 200_000)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_discarded_output_leaves_nothing(tmp_path: Path) -> None:
    with Output(str(tmp_path / "x")) as output:
        output.write(b"a")
        output.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_nothing_is_left(tmp_path: Path, file_size_limit: None) -> None:
    with pytest.raises(OutputError, match=r"cannot write '.*/x': File too large; raise the file size limit"):
        fill(str(tmp_path / "x"), 100_000)
    assert list(tmp_path.iterdir()) == []


def test_a_full_device_is_one_line() -> None:
    with pytest.raises(
        OutputError, match=r"cannot write '/dev/full': No space left on device; free some space"
    ):
        fill("/dev/full", 1)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"No such file or directory; create its folder first"):
        fill(str(tmp_path / "no" / "x"), 1)


def test_a_closed_pipe_is_told_apart_from_an_error(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def write_to_nobody() -> None:
        with Output(str(pipe)) as output:
            os.close(reader)
            output.write(b"a")

    with pytest.raises(OutputClosed):
        write_to_nobody()
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_keeps_pointing_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with Output(str(tmp_path / "link")) as output:
        output.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with Output(str(tmp_path / "x")):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_file_uri_is_a_path_and_other_uris_are_refused(tmp_path: Path) -> None:
    with Output(f"file:{tmp_path}/x") as output:
        output.write(b"a")
    assert (tmp_path / "x").read_bytes() == b"a"
    with pytest.raises(
        UsageError, match=r"--output does not know 'kafka:'; expected a file name, file:NAME or -"
    ):
        Output("kafka://host/topic")


def test_standard_output_gets_the_bytes(capfd: pytest.CaptureFixture[str]) -> None:
    with Output("-") as output:
        output.write(b"line\n")
    assert capfd.readouterr().out == "line\n"
