"""``--output URI`` of a run: files appear when complete, sinks get every event or the command says so."""

from __future__ import annotations

import csv
import json
import re
import socket
import threading
from pathlib import Path

import pytest
from pyarrow import parquet

from netcls.cli.main import main
from tests.pcap_writer import udp_flow, write_pcap

N_FLOWS = 40


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> str:
    packets = [p for i in range(N_FLOWS) for p in udp_flow("10.0.0.1", 2000 + i, [20, 30])]
    return str(write_pcap(tmp_path_factory.mktemp("capture") / "a.pcap", packets))


def run(*words: str) -> int:
    return main(["flows", *words])


def test_a_csv_uri_is_a_file_that_is_complete(capture: str, tmp_path: Path) -> None:
    assert run(capture, "-o", f"csv:{tmp_path}/x.csv") == 0
    assert len(list(csv.DictReader((tmp_path / "x.csv").open(newline="")))) == N_FLOWS
    assert [f.name for f in tmp_path.iterdir()] == ["x.csv"]


def test_a_zeek_log_and_parquet_files_hold_every_flow(capture: str, tmp_path: Path) -> None:
    assert run(capture, "-o", f"zeek:{tmp_path}/z") == 0
    assert len((tmp_path / "z" / "netcls.log").read_text().splitlines()) == N_FLOWS
    assert run(capture, "-o", f"parquet:{tmp_path}/p?rows=10&queue_events=5") == 0
    tables = [parquet.read_table(f) for f in sorted((tmp_path / "p").iterdir())]
    assert sum(map(len, tables)) == N_FLOWS
    assert len(tables) > 1


def test_lines_go_to_a_receiver_with_the_counters_last(capture: str) -> None:
    got = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()

        def receive() -> None:
            # The first connection only shows that somebody listens.
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    while data := connection.recv(1 << 16):
                        got.extend(data)

        thread = threading.Thread(target=receive)
        thread.start()
        assert run(capture, "--stats", "-o", f"tcp://{host}:{port}") == 0
        thread.join(10)
    kinds = [json.loads(line)["event_type"] for line in got.splitlines()]
    assert kinds == ["flow"] * N_FLOWS + ["stats"]


def test_a_receiver_that_dies_is_said_with_the_number_of_lost_events(
    capture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from netcls.sinks import event_writer
    from netcls.sinks.peer import Peer

    monkeypatch.setattr(event_writer, "_CLOSE_TIMEOUT_S", 0.3)
    server = socket.create_server(("127.0.0.1", 0))
    host, port = server.getsockname()

    is_dead = threading.Event()
    connect = Peer.open

    def die() -> None:
        server.accept()[0].close()
        server.close()
        is_dead.set()

    def connect_and_lose(self: Peer) -> None:
        """Of a death after the last event, TCP may not tell."""
        connect(self)
        is_dead.wait(10)

    monkeypatch.setattr(Peer, "open", connect_and_lose)
    thread = threading.Thread(target=die)
    thread.start()
    assert run(capture, "-o", f"tcp://{host}:{port}") == 2
    thread.join(10)
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith("netcls: warning: sink 'tcp' is down: cannot send to 127.0.0.1")
    assert "sink 'tcp' did not deliver" in error[-1]
    assert len(error) == 2


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["-o", "kafak://h/t"], "unknown 'kafak:'.*did you mean 'kafka'"),
        (["-o", "zeek:x", "--format", "csv"], "--format has no place with --output zeek:"),
        (["-o", "zeek:x", "--stats"], "--stats has no place in zeek:"),
        (["-o", "csv:x", "--format", "jsonl"], "--format jsonl has no place in csv:"),
        (["-o", "csv:x", "--stats"], "--stats has no place in csv:"),
        (["-o", "parquet:x?when_full=never"], "when_full='never', expected one of block, drop_oldest"),
        (["-o", "udp://127.0.0.1:5?queue_events=0"], "queue_events='0', expected a whole number from 1"),
        (["-o", "zeek:/proc/none"], "cannot make the folder '/proc/none'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], error: str, capture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capture, *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert re.search(error, line)
