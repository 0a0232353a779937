"""From capture files to answered flows, with a tiny network and captures made by hand."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from capture.errors import CheckpointError, CutCaptureError, NotACaptureError, UsageError
from models.checkpoint import Checkpoint, save_checkpoint
from netcls.answers import AnswerStore
from netcls.event_batch import EventBatch, ModelName
from netcls.pipeline import Run, RunOptions
from tests.pcap_writer import START_S, Packet, tcp, udp_flow, write_pcap
from tests.unit.models.tiny_family import checkpoint_arguments, registered


@pytest.fixture(scope="module", autouse=True)
def _tiny_family() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny", **checkpoint_arguments())


def traffic(n_flows: int, seed: int = 0) -> list[Packet]:
    """UDP dialogues of 1 to 6 packets, their times interleaved."""
    rng = np.random.default_rng(seed)
    packets: list[Packet] = []
    for number in range(n_flows):
        sizes = rng.integers(0, 500, rng.integers(1, 7)).tolist()
        client = f"10.1.{number // 250}.{number % 250 + 1}"
        start_s = START_S + float(rng.uniform(0, 5))
        packets += udp_flow(client, 2000 + number, sizes, start_s=start_s, fill=int(rng.integers(256)))
    return packets


def run(path: Path, checkpoint: Checkpoint | None, **options: object) -> tuple[list[EventBatch], Run]:
    going = Run([str(path)], RunOptions(**options), classify=checkpoint is not None, checkpoint=checkpoint)
    return list(going), going


def column(batches: list[EventBatch], name: str) -> np.ndarray:
    return np.concatenate([batch.records[name] for batch in batches])


def test_each_flow_leaves_once_with_an_answer_and_the_books_balance(tmp_path, checkpoint):
    packets = traffic(700)
    batches, going = run(write_pcap(tmp_path / "a.pcap", packets), checkpoint)
    assert len(set(column(batches, "flow_id").tolist())) == len(column(batches, "flow_id")) == 700
    assert column(batches, "packets").sum() == len(packets) == going.counters.packets_seen
    assert going.counters.books_balance()
    assert going.counters.predictions == 700


def test_an_answer_is_what_the_network_says_of_that_flow_alone(tmp_path, checkpoint):
    together, _ = run(write_pcap(tmp_path / "all.pcap", traffic(60)), checkpoint)
    by_client = {}
    for batch in together:
        for port, label, probability in zip(
            batch.records["client_port"], batch.answers.label_index, batch.answers.probability, strict=True
        ):
            by_client[int(port)] = (int(label), float(probability))
    for number in (0, 7, 59):
        alone = [
            p
            for p in traffic(60)
            if int.from_bytes(p[1][34:36]) == 2000 + number or int.from_bytes(p[1][36:38]) == 2000 + number
        ]
        (batch,), _ = run(write_pcap(tmp_path / f"{number}.pcap", alone), checkpoint)
        label, probability = by_client[2000 + number]
        assert batch.answers.label_index[0] == label
        assert math.isclose(batch.answers.probability[0], probability, rel_tol=1e-5)


def test_the_same_capture_gives_the_same_answers_in_any_number_of_threads(tmp_path, checkpoint):
    path = write_pcap(tmp_path / "a.pcap", traffic(300))
    one, two = (run(path, checkpoint, threads=threads)[0] for threads in (1, 2))
    for left, right in zip(one, two, strict=True):
        assert np.array_equal(left.records, right.records)
        np.testing.assert_allclose(left.answers.probability, right.answers.probability, rtol=1e-5)


def test_flows_without_a_model_have_no_answers(tmp_path):
    batches, going = run(write_pcap(tmp_path / "a.pcap", traffic(20)), None)
    assert all(batch.answers is None for batch in batches)
    assert going.counters.predictions == 0
    assert going.counters.books_balance()


def test_flows_with_too_few_packets_are_left_out_and_counted(tmp_path, checkpoint):
    batches, going = run(write_pcap(tmp_path / "a.pcap", traffic(200)), checkpoint, min_packets=4)
    packets = column(batches, "packets").sum(axis=1)
    assert (packets >= 4).all()
    assert len(packets) + going.counters.flows_skipped == 200
    assert going.counters.flows_skipped > 0
    assert going.counters.books_balance()


def test_a_flow_answered_long_before_its_end_keeps_its_answer(tmp_path, checkpoint):
    """The first flow is ready at once, and a thousand others pass before it ends."""
    long_lived = udp_flow("10.2.0.1", 999, [10, 10, 10], gap_s=3.0)
    batches, _ = run(write_pcap(tmp_path / "a.pcap", [*long_lived, *traffic(1000)]), checkpoint)
    alone, _ = run(write_pcap(tmp_path / "b.pcap", long_lived), checkpoint)
    found = [
        (batch.answers.label_index[row], batch.answers.answer_ts_ns[row])
        for batch in batches
        for row in np.flatnonzero(batch.records["client_port"] == 999)
    ]
    assert found == [(alone[0].answers.label_index[0], alone[0].answers.answer_ts_ns[0])]


def test_rotated_captures_are_one_stream_and_flows_begin_in_the_file_of_their_first_packet(tmp_path):
    packets = sorted(traffic(60), key=lambda packet: packet[0])
    whole = write_pcap(tmp_path / "whole.pcap", packets)
    cuts = [0, len(packets) // 3, len(packets) // 2, len(packets)]
    names = ["c.pcap", "a.pcap", "b.pcap"]  # in the order of time, not of names
    for name, start, stop in zip(names, cuts, cuts[1:], strict=False):
        write_pcap(tmp_path / name, packets[start:stop])
    with Run([str(whole)], RunOptions(), classify=False) as one:
        expected = {int(r["flow_id"]): r for batch in one for r in batch.records}
    paths = [str(tmp_path / name) for name in sorted(names)]
    with Run(paths, RunOptions(as_one_stream=True), classify=False) as parts:
        batches = list(parts)
    found = {int(r["flow_id"]): (batch.source, r) for batch in batches for r in batch.records}
    assert found.keys() == expected.keys()
    begins = [packets[start][0] * 1e9 - 1000 for start in cuts[:-1]]  # half a file's unit of time
    for flow_id, (source, record) in found.items():
        assert record["packets"].tolist() == expected[flow_id]["packets"].tolist()
        number = sum(int(record["first_ts_ns"]) >= begin for begin in begins) - 1
        assert source == str(tmp_path / names[number])
    assert len({source for source, _ in found.values()}) == 3
    assert parts.counters.books_balance()
    with Run(paths, RunOptions(), classify=False) as apart:
        assert sum(len(batch) for batch in apart) > len(expected)


def test_standard_input_has_no_place_in_an_order(tmp_path):
    path = str(write_pcap(tmp_path / "a.pcap", traffic(1)))
    with pytest.raises(UsageError, match="standard input cannot be put in order with other captures"):
        list(Run(["-", path], RunOptions(as_one_stream=True), classify=False))


def test_a_capture_that_grows_is_followed_until_nothing_comes(tmp_path):
    packets = traffic(20)
    data = write_pcap(tmp_path / "whole.pcap", packets).read_bytes()
    growing = tmp_path / "growing.pcap"
    growing.write_bytes(data[:1000])

    def grow() -> None:
        with growing.open("ab") as file:
            for at in range(1000, len(data), 777):
                file.write(data[at : at + 777])
                file.flush()

    with Run([str(growing)], RunOptions(follow=True, follow_idle_s=3), classify=False) as run:
        writer = threading.Thread(target=grow)
        writer.start()
        n_packets = sum(int(batch.records["packets"].sum()) for batch in run)
        writer.join()
    assert n_packets == len(packets)
    assert run.counters.captures_cut == 0


def test_a_named_pipe_is_read_without_seeking(tmp_path):
    packets = traffic(20)
    data = write_pcap(tmp_path / "whole.pcap", packets).read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    with Run([str(pipe)], RunOptions(as_one_stream=True), classify=False) as run:
        n_packets = sum(int(batch.records["packets"].sum()) for batch in run)
    writer.join()
    assert n_packets == len(packets)


def test_a_bad_capture_among_good_ones_is_told_and_the_run_goes_on(tmp_path, checkpoint):
    good = write_pcap(tmp_path / "good.pcap", traffic(3))
    bad = tmp_path / "bad.pcap"
    bad.write_bytes(b"this is not a capture at all")
    errors: list[Exception] = []
    going = Run([str(bad), str(good)], classify=True, checkpoint=checkpoint, on_error=errors.append)
    assert sum(len(batch) for batch in going) == 3
    assert len(errors) == going.counters.captures_failed == 1
    with pytest.raises(NotACaptureError):
        run(bad, checkpoint)


def test_a_cut_capture_is_read_to_the_cut_with_a_warning_and_refused_when_strict(tmp_path, checkpoint):
    whole = write_pcap(tmp_path / "a.pcap", traffic(50)).read_bytes()
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(whole[:-7])
    _, going = run(cut, checkpoint)
    assert going.counters.captures_cut == len(going.warnings) == 1
    assert going.counters.books_balance()
    with pytest.raises(CutCaptureError):
        run(cut, checkpoint, strict=True)


def test_what_was_read_before_a_strict_error_is_still_handed_out(tmp_path, checkpoint):
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(write_pcap(tmp_path / "a.pcap", traffic(50)).read_bytes()[:-7])
    going = Run(
        [str(cut)], RunOptions(strict=True), classify=True, checkpoint=checkpoint, on_error=lambda _: None
    )
    assert sum(len(batch) for batch in going) == going.counters.flows_started > 0
    assert going.counters.books_balance()


def test_undecodable_packets_are_counted_by_name(tmp_path, checkpoint):
    odd = [(START_S, b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\x06" + bytes(28)), (START_S, b"\x45")]
    _, going = run(
        write_pcap(tmp_path / "a.pcap", [*odd, (START_S, tcp("10.0.0.1", 1, "10.0.0.2", 2, 2))]), checkpoint
    )
    assert going.counters.ignored() == {"arp": 1}
    assert going.counters.rejected() == {"truncated_link": 1}
    assert going.counters.packets_in_flows == 1
    assert json.loads(json.dumps(going.counters.as_dict()))["packets"]["imbalance"] == 0


def test_an_unknown_model_is_an_error_before_any_capture_is_opened(tmp_path):
    with pytest.raises(CheckpointError, match="no-such-model"):
        Run([str(tmp_path / "missing.pcap")], RunOptions(model="no-such-model"), classify=True)


def store(n_labels: int, n_top: int, threshold: float | None = None) -> AnswerStore:
    return AnswerStore(ModelName("m", "0" * 12, "r-1", tuple("abcdefgh"[:n_labels])), n_top, threshold)


def put(into: AnswerStore, serials: list[int], probabilities: list[list[float]], scores: list[float]) -> None:
    n = len(serials)
    into.put(
        np.array(serials, np.uint64), np.array(probabilities, np.float32), np.array(scores, np.float32),
        np.ones(n, np.uint16), np.arange(n, dtype=np.int64),
    )  # fmt: skip


def test_answers_come_back_by_flow_and_are_forgotten():
    kept = store(3, 0)
    put(kept, [5, 6, 7], [[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.2, 0.2, 0.6]], [0, 0, 0])
    answers = kept.pop(np.array([7, 5], np.uint64))
    assert answers.label_index.tolist() == [2, 1]
    assert answers.runner_up_index.tolist() == [0, 2]
    assert answers.top_index.shape == (2, 0)
    assert len(kept) == 1
    with pytest.raises(KeyError):
        kept.pop(np.array([5], np.uint64))


def test_equal_probabilities_answer_the_first_label_always():
    kept = store(4, 4)
    put(kept, [0], [[0.25] * 4], [0])
    assert kept.pop(np.array([0], np.uint64)).top_index.tolist() == [[0, 1, 2, 3]]


def test_a_model_of_one_label_has_no_runner_up():
    kept = store(1, 3)
    put(kept, [0], [[1.0]], [0])
    answers = kept.pop(np.array([0], np.uint64))
    assert answers.runner_up_index.tolist() == [-1]
    assert answers.top_index.tolist() == [[0]]


def test_only_scores_above_the_threshold_are_unknown():
    kept = store(2, 0, threshold=0.5)
    put(kept, [0, 1], [[0.5, 0.5]] * 2, [0.5, 0.51])
    assert kept.pop(np.array([0, 1], np.uint64)).unknown.tolist() == [False, True]


def test_the_store_grows_with_the_open_flows_and_not_with_the_flows_seen():
    kept = store(2, 0)
    for start in range(0, 5000, 100):
        put(kept, list(range(start, start + 100)), [[0.4, 0.6]] * 100, [0.4] * 100)
        kept.pop(np.arange(start, start + 100, dtype=np.uint64))
    assert len(kept) == 0
    assert len(kept._rows) == 256
