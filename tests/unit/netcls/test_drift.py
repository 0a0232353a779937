"""`netcls drift`: traffic of the same kind says nothing, another link raises the warning; accuracy without labels."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from capture.errors import CheckpointError
from capture.flow_table import FlowTableConfig
from capture.representations import TokenBatch, build
from models.checkpoint import load_checkpoint
from models.learning.packet_augment import Strength, augment_packets
from models.predictor import Predictor
from netcls.bench_traffic import Traffic, write_capture
from netcls.cli.main import main
from netcls.evaluation.drift import (
    Histogram,
    compare,
    make_reference,
    read_reference,
    write_reference,
)
from netcls.tokens import tokens_of_capture
from tests.unit.models.test_early_exit import random_tokens, saved


def tokens_of(path):
    parts = [tokens for _, tokens in tokens_of_capture(str(path), build("packets"), FlowTableConfig())]
    return TokenBatch(
        {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays},
        np.concatenate([part.packets_used for part in parts]),
    )


def over_a_slow_link(path, slow):
    """The same packets, 50 times further apart."""
    data = bytearray(path.read_bytes())
    order = "<" if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    unit = 10**6 if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4") else 10**9
    at, first = 24, None
    while at < len(data):
        seconds, part, captured = struct.unpack_from(f"{order}III", data, at)
        ticks = seconds * unit + part
        first = ticks if first is None else first
        struct.pack_into(f"{order}II", data, at, *divmod(first + (ticks - first) * 50, unit))
        at += 16 + captured
    slow.write_bytes(data)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift")
    for seed in (0, 1):
        write_capture(folder / f"{seed}.pcap", Traffic(6000, 400, seed=seed))
    over_a_slow_link(folder / "1.pcap", folder / "slow.pcap")
    model = saved(folder / "model")
    tokens = tokens_of(folder / "0.pcap")
    with Predictor(model, threads=1, device="cpu") as predictor:
        confidence = predictor.predict(tokens).probabilities.max(axis=1)
    write_reference(model.path, make_reference(tokens, confidence, np.arange(len(tokens)) % 4 > 0))
    return folder


def drift(capsysbinary, scene, name):
    arguments = ["drift", str(scene / name), "--model", str(scene / "model"), "--json", "--threads", "1"]
    assert main(arguments) == 0
    said = capsysbinary.readouterr()
    return json.loads(said.out), said.err.decode()


def test_a_replay_of_the_same_kind_of_traffic_says_nothing(scene, capfdbinary):
    result, said = drift(capfdbinary, scene, "1.pcap")
    assert (result["warning"], result["reasons"], said) == (False, [], "")
    assert result["flows"] >= 300
    assert max(field["psi"] for field in result["fields"].values()) < 0.25
    assert result["accuracy"]["calibration"] == pytest.approx(0.75, abs=0.01)
    assert result["accuracy"]["estimated"] == pytest.approx(0.75, abs=0.1)


def test_a_replay_over_another_link_raises_the_warning(scene, capfdbinary):
    result, said = drift(capfdbinary, scene, "slow.pcap")
    assert result["warning"]
    assert result["fields"]["gap_us"]["moved"]
    assert not result["fields"]["protocol"]["moved"]
    assert "gap_us: stability index" in said


@pytest.mark.parametrize(
    ("strength", "field"),
    [
        (Strength(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, lossy=1.0, lost=0.5, midstream=0), "packets"),
        (Strength(0, 0, 3.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), "tcp_window"),
        (Strength(0, 0, 0, 1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0), None),
    ],
)
def test_loss_and_windows_of_another_link_are_named_and_some_bytes_more_are_not(scene, strength, field):
    tokens = tokens_of(scene / "1.pcap")
    arrays = augment_packets(tokens.arrays, np.random.default_rng(0), strength)
    changed = TokenBatch(arrays, (arrays["flags"][..., 0] > 0).sum(axis=1).astype(np.uint16))
    reference = read_reference(scene / "model")
    result = compare(reference, changed, np.full(len(changed), 0.9))
    moved = [name for name, each in result["fields"].items() if each["moved"]]
    assert (field in moved) if field else moved == []


def test_accuracy_is_estimated_from_confidence():
    """Half of the calibration answers are wrong, the less sure half; later only a tenth is that sure."""
    confidence = np.concatenate([np.linspace(0.2, 0.5, 500), np.linspace(0.6, 0.9, 500)])
    tokens = random_tokens(1000)
    reference = make_reference(tokens, confidence, confidence > 0.55)
    assert compare(reference, tokens, confidence)["accuracy"]["estimated"] == pytest.approx(0.5, abs=0.01)
    later = compare(reference, tokens, np.where(np.arange(1000) < 100, 0.8, 0.3))
    assert later["accuracy"]["estimated"] == pytest.approx(0.1)
    assert later["accuracy"]["estimated_by_confidence"] == pytest.approx(0.5 - (0.55 - 0.35), abs=0.01)
    assert later["warning"]
    assert later["reasons"] == ["estimated accuracy 0.10, on calibration flows 0.50"]
    few = compare(reference, tokens.take(slice(0, 20)), confidence[:20])
    assert (few["enough_flows"], few["warning"]) == (False, False)
    assert not any(field["moved"] for field in few["fields"].values())


def test_the_stability_index_is_the_formula_s():
    histogram = Histogram.of(np.repeat([1, 5], [60, 40]), 100, np.array([3.0]))
    assert histogram.shares == [0.6, 0.4]
    index, by_chance = histogram.psi(np.repeat([2, 9], [30, 70]), 50)
    assert index == pytest.approx((0.3 - 0.6) * np.log(0.5) + (0.7 - 0.4) * np.log(0.7 / 0.4))
    assert by_chance == pytest.approx(1 / 100 + 1 / 50)


def test_the_default_has_a_reference_of_its_own_fields():
    reference = read_reference(load_checkpoint("default").path)
    assert {"packets", "ip_len", "gap_us", "tcp_window", "protocol"} <= set(reference.fields)
    assert 0 < reference.accuracy < 1


def test_a_reference_that_is_none_is_refused(tmp_path, scene):
    with pytest.raises(CheckpointError, match="fine-tune the model anew"):
        read_reference(tmp_path)
    good = json.loads((scene / "model/reference.json").read_text())
    for change in ({"format": 2}, {"fields": []}, {"accuracy": "x"}, {"confidence": {"edges": [2, 1]}}):
        (tmp_path / "reference.json").write_text(json.dumps(good | change))
        with pytest.raises(CheckpointError, match="not as expected"):
            read_reference(tmp_path)
