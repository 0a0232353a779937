"""Events per CPU-second of each sink: the sink alone, and with making the line. Prints Markdown.

python -m bench.sinks [--events 20000] [--rounds 3]

Receivers run in processes of their own, so that their work is not counted; Kafka is librdkafka's mock cluster, which
runs inside the measured process, so its row is a floor. CPU seconds are of this process with its threads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from capture.flow_batch import FLOW_DTYPE, EndReason
from netcls.event import encode_line, events_of
from netcls.event_batch import Answers, EventBatch, ModelName
from netcls.sinks.base import Sink, Told
from netcls.sinks.uri import parse_uri

BATCH_EVENTS = 512
SEED = 0


def flow_batch(n: int) -> EventBatch:
    """N TCP flows over IPv4 with answers among 45 labels."""
    rng = np.random.default_rng(SEED)
    records = np.zeros(n, FLOW_DTYPE)
    records["flow_id"] = np.arange(n)
    records["first_ts_ns"] = 1_795_515_302_123_456_789 + rng.integers(0, 10**10, n)
    records["last_ts_ns"] = records["first_ts_ns"] + rng.integers(0, 10**10, n)
    for name in ("packets", "frame_bytes", "ip_bytes"):
        records[name] = rng.integers(1, 100_000, (n, 2))
    for name in ("client", "server"):
        records[name][:, 10:12] = 255
        records[name][:, 12:] = rng.integers(0, 256, (n, 4))
    records["client_port"], records["server_port"] = rng.integers(1024, 65536, n), 443
    records["protocol"], records["ip_version"] = 6, 4
    records["end_reason"] = EndReason.END_DETECTED
    labels = tuple(f"label_{i}" for i in range(45))
    answers = Answers(
        model=ModelName("bench", "3f9c1a7be204", "packets-1", labels),
        label_index=rng.integers(0, 45, n).astype(np.int32),
        probability=rng.random(n).astype(np.float32),
        runner_up_index=rng.integers(0, 45, n).astype(np.int32),
        runner_up_probability=rng.random(n).astype(np.float32),
        unknown=rng.random(n) < 0.1,
        unknown_score=rng.random(n).astype(np.float32),
        packets_used=np.full(n, 16, np.uint16),
        answer_ts_ns=records["last_ts_ns"].copy(),
        top_index=np.zeros((n, 0), np.int32),
        top_probability=np.zeros((n, 0), np.float32),
    )
    return EventBatch("bench.pcap", records, answers)


def _read_stream(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        while connection.recv(1 << 20):
            pass


def _read_datagrams(bound: socket.socket) -> None:
    while True:
        bound.recv(65536)


@contextmanager
def receiver(*, is_udp: bool) -> Iterator[int]:
    """The port of somebody who reads and forgets."""
    kind = socket.SOCK_DGRAM if is_udp else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as listening:
        listening.bind(("127.0.0.1", 0))
        if not is_udp:
            listening.listen()
        target = _read_datagrams if is_udp else _read_stream
        process = multiprocessing.get_context("fork").Process(target=target, args=(listening,), daemon=True)
        process.start()
        try:
            yield listening.getsockname()[1]
        finally:
            process.terminate()
            process.join()


def send(sink: Sink, told: list[Told]) -> float:
    """CPU seconds for all of it."""
    sink.open()
    begun_s = time.process_time()
    for start in range(0, len(told), BATCH_EVENTS):
        batch = told[start : start + BATCH_EVENTS]
        while batch:
            batch = batch[sink.write(batch) :]
    sink.flush()
    sink.close()
    return time.process_time() - begun_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    begun_s = time.process_time()
    events = list(events_of(flow_batch(given.events)))
    told = [Told(number, event, encode_line(event)) for number, event in enumerate(events, 1)]
    making_s = time.process_time() - begun_s
    import confluent_kafka

    mock = confluent_kafka.Producer({"bootstrap.servers": "x", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = mock.list_topics(timeout=10).brokers.values()
    print(f"{given.events} events of {len(told[0].line)} bytes; making event and line: "
          f"{given.events / making_s:,.0f} a CPU-second\n")  # fmt: skip
    print("| sink | events per CPU-second |\n|---|---|")
    with (
        tempfile.TemporaryDirectory() as folder,
        receiver(is_udp=False) as tcp,
        receiver(is_udp=True) as udp,
    ):
        uris = {
            "file": f"file:{folder}/x.jsonl",
            "csv": f"csv:{folder}/x.csv",
            "zeek, JSON": f"zeek:{folder}/json",
            "zeek, TSV": f"zeek:{folder}/tsv?format=tsv",
            "parquet": f"parquet:{folder}/parquet",
            "tcp": f"tcp://127.0.0.1:{tcp}",
            "udp": f"udp://127.0.0.1:{udp}",
            "ipfix+udp": f"ipfix+udp://127.0.0.1:{udp}",
            "ipfix+tcp": f"ipfix+tcp://127.0.0.1:{tcp}",
            "kafka, with its mock broker": f"kafka://127.0.0.1:{broker.port}/bench?linger.ms=5",
        }
        rates: dict[str, list[float]] = {name: [] for name in uris}
        for _ in range(given.rounds):
            for name, uri in uris.items():
                for path in Path(folder).glob("x.*"):
                    path.unlink()
                rates[name].append(given.events / send(parse_uri(uri).sink(), told))
        for name, measured in rates.items():
            print(
                f"| {name} | {statistics.median(measured):,.0f} ({min(measured):,.0f} to {max(measured):,.0f}) |"
            )


if __name__ == "__main__":
    main()
