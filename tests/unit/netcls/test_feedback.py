"""Labels that an operator gives become a model."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from capture.errors import DataError
from capture.representations import build
from netcls.cli.main import cli
from netcls.datasets.build import build_flows
from netcls.datasets.sources import read_source
from netcls.event import events_of
from netcls.pipeline import Run, RunOptions
from netcls.sinks.base import Told
from netcls.store import Store, StoreOptions
from netcls.store.kept import KeptFlows

DEMO = Path(__file__).resolve().parents[2] / "data" / "captures" / "demo.pcap.zst"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A store of the demo capture's flows, each labelled with what its server port says; the tokens of the flows."""
    path = tmp_path_factory.mktemp("store") / "flows.db"
    kept = KeptFlows()
    seen = {}

    def watch(flows, keep):
        kept.see(flows, keep)
        tokens = run._answerer.representation.tokenize(flows)
        for row, flow_id in enumerate(flows.records["flow_id"].tolist()):
            seen[flow_id] = {name: array[row] for name, array in tokens.arrays.items()}

    run = Run([str(DEMO)], RunOptions(threads=1), classify=True)
    run._answerer.watch = watch
    store = Store(StoreOptions(path), kept)
    store.open()
    with run:
        events = [event for batch in run for event in events_of(batch)]
    store.write([Told(number, event, b"{}\n") for number, event in enumerate(events, 1)])
    for number, event in enumerate(events):
        assert store.put_label(event.flow_id, ("a", "b")[number % 2])
    store.close()
    return path, seen


def test_the_tokens_are_those_that_the_model_saw(labelled):
    path, seen = labelled
    source = read_source(path)
    assert (source.form, source.labels) == (5, ("a", "b"))
    flows, report = build_flows(source, build("packets", {}))
    assert report.flows == len(seen) == len(flows)
    for row, flow_id in enumerate(flows.records["flow_id"].tolist()):
        for name, array in flows.tokens.arrays.items():
            np.testing.assert_array_equal(array[row], seen[flow_id][name])


def test_flows_kept_for_another_model_are_refused(labelled):
    path, _ = labelled
    with pytest.raises(DataError, match="were kept for another model"):
        build_flows(read_source(path), build("netmamba", {}))


def test_a_store_without_labels_says_what_to_do(tmp_path):
    store = Store(StoreOptions(tmp_path / "flows.db"))
    store.open()
    store.close()
    with pytest.raises(DataError, match="give flows their right label on the page"):
        read_source(tmp_path / "flows.db")


def test_the_command_takes_data_or_a_store_and_not_both(tmp_path):
    from click.testing import CliRunner

    for arguments, word in ((["--out", "x"], "neither"), (["d", "--from-store", "s", "--out", "x"], "both")):
        done = CliRunner().invoke(cli, ["finetune", *arguments])
        assert done.exit_code != 0
        assert word in str(done.exception) + done.output


def test_labels_become_a_checkpoint(labelled, tmp_path):
    from netcls.finetuning import FinetuneOptions, run_finetune

    path, _ = labelled
    begun_s = time.monotonic()
    result = run_finetune(
        FinetuneOptions(
            str(path),
            str(tmp_path / "model"),
            method="head",
            split="flow",
            epochs=1,
            baselines=False,
            threads=1,
        )
    )
    assert result["labels"] == ["a", "b"]
    assert json.loads((tmp_path / "model" / "labels.json").read_text())
    assert time.monotonic() > begun_s
