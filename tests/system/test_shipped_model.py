"""The model that ships: it loads, says the truth about itself, and labels the demonstration capture."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

import netcls
from models.checkpoint import list_checkpoints, load_checkpoint
from netcls.datasets.labels import match_flows
from netcls.datasets.sources import read_source
from netcls.pipeline import Run
from tests.packets import DATA

DEMO = DATA / "captures" / "demo.pcap.zst"


@pytest.fixture(scope="module")
def checkpoint():
    return netcls.load("default")


def test_every_shipped_checkpoint_is_whole_and_small():
    listed = list_checkpoints()
    assert {"default", "netmamba"} <= {entry["name"] for entry in listed}
    for entry in listed:
        assert load_checkpoint(entry["name"]).digest == entry["checkpoint"]
        assert entry["size_bytes"] < 12_000_000


def test_the_default_hides_what_a_leak_free_model_may_not_see(checkpoint):
    assert checkpoint.representation_settings["field_policy"] == "leak_free"


def test_the_card_says_how_it_was_split_and_what_simple_models_reach(checkpoint):
    card = json.dumps(checkpoint.card).lower()
    for word in (
        "no test group was trained on",
        "macro_f1",
        "majority",
        "lightgbm",
        "commit",
        "seed",
        "licence",
    ):
        assert word in card, word
    low, high = checkpoint.card["metrics"]["macro_f1_interval"]
    assert low <= checkpoint.card["metrics"]["macro_f1"] <= high


def test_the_card_names_no_address_and_no_folder_of_its_makers(checkpoint):
    text = (checkpoint.path / "README.md").read_text() + json.dumps(checkpoint.card)
    assert "/work" not in text
    assert "/home" not in text


def test_the_demonstration_is_labelled_far_better_than_by_the_commonest_label(checkpoint):
    """Its episodes were held out; the labels are the lab's."""
    (capture,) = read_source(DATA / "demo_labels.csv").captures
    labels = read_source(DATA / "demo_labels.csv").labels
    going = Run([str(DEMO)], classify=True, checkpoint=checkpoint)
    right, truth = 0, []
    for batch in going:
        found = match_flows(batch.records, capture.rows).labels
        known = found >= 0
        said = np.array(checkpoint.labels)[batch.answers.label_index]
        wanted = np.array(labels)[np.maximum(found, 0)]
        right += int((said == wanted)[known].sum())
        truth += wanted[known].tolist()
    assert going.counters.books_balance()
    assert len(truth) >= 100
    commonest = Counter(truth).most_common(1)[0][1]
    assert right > commonest
    assert right >= len(truth) / 2


def test_classifying_never_imports_the_compiler_of_torch():
    """A second of every start, for nothing."""
    code = (
        "import sys, netcls; "
        f"assert list(netcls.classify({str(DEMO)!r})); "
        "print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
