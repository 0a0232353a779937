"""A checkpoint folder: written whole or not at all, and refused by name for anything that is not as it should be."""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from capture.errors import CheckpointError
from models import atomic_write
from models.checkpoint import (
    Calibration,
    Checkpoint,
    load_checkpoint,
    read_files,
    save_checkpoint,
    write_card,
)
from tests.unit.models.tiny_family import SETTINGS, checkpoint_arguments, registered


@pytest.fixture(autouse=True)
def _tiny_family() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "tiny", **checkpoint_arguments())
    return tmp_path / "tiny"


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value)))


def with_key(*keys: str, value: Any) -> Callable[[Any], Any]:
    """A change that sets a nested key."""

    def change(document: Any) -> Any:
        inner = document
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return document

    return change


def without_key(*keys: str) -> Callable[[Any], Any]:
    def change(document: Any) -> Any:
        inner = document
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return document

    return change


def header_file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_was_saved_is_loaded(folder: Path) -> None:
    loaded = load_checkpoint(folder)
    said = checkpoint_arguments()
    for name in (
        "kind",
        "family",
        "model_config",
        "representation_settings",
        "labels",
        "calibration",
        "card",
    ):
        assert getattr(loaded, name) == said[name]
    assert loaded.state.keys() == said["state"].keys()
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in said["state"].items())
    assert (loaded.name, loaded.representation, loaded.representation_id) == (
        "tiny",
        "netmamba",
        "netmamba-1",
    )


def test_a_backbone_is_saved_and_loaded(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path / "base", **checkpoint_arguments("backbone"))
    assert load_checkpoint(tmp_path / "base").digest == saved.digest
    assert saved.labels == []


def test_the_digest_is_of_what_decides_an_answer_and_not_of_the_card(folder: Path, tmp_path: Path) -> None:
    original = load_checkpoint(folder)
    assert len(original.digest) == 12
    assert int(original.digest, 16) >= 0
    assert original.save(tmp_path / "copy").digest == original.digest

    state = dict(original.state)
    state["head.bias"] = state["head.bias"] + 1e-6
    changes: list[dict[str, Any]] = [
        {"labels": ["a", "c", "b"]},
        {"calibration": Calibration(1.6, 0.6)},
        {"calibration": Calibration(1.5, None)},
        {"representation_settings": SETTINGS | {"field_policy": "none"}},
        {"state": state},
    ]
    digests = {save_checkpoint(tmp_path / "x", **checkpoint_arguments(**change)).digest for change in changes}
    assert len(digests | {original.digest}) == len(changes) + 1
    other_card = checkpoint_arguments(card={"summary": "corrected"})
    assert save_checkpoint(tmp_path / "x", **other_card).digest == original.digest


def test_the_readme_is_the_card_for_people(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for line in (
        "# Tiny",
        "For tests.",
        "| input | netmamba-1 |",
        "| n_packets | 2 |",
        "- b",
        "## Metrics",
        "- macro_f1: 0.5123",
    ):
        assert line in text.splitlines()


def test_a_saved_checkpoint_replaces_the_one_before_and_leaves_nothing_beside_it(folder: Path) -> None:
    before = load_checkpoint(folder)
    after = save_checkpoint(folder, **checkpoint_arguments(labels=["x", "y", "z"]))
    assert load_checkpoint(folder).digest == after.digest != before.digest
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    assert before.state["head.bias"].shape == (3,)  # the old one is still readable by who has it open


def test_replacing_works_where_names_cannot_be_exchanged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic_write, "_exchange", lambda a, b: False)
    after = save_checkpoint(folder, **checkpoint_arguments(labels=["x", "y", "z"]))
    assert load_checkpoint(folder).digest == after.digest
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a", "b"]}, r"labels\.json has 2 labels, the weights answer 3"),
        ({"labels": ["a", "b", "b"]}, "got label 'b' twice"),
        ({"calibration": Calibration(math.inf)}, "calibration|JSON"),
        ({"card": {"x": object()}}, r"card\.json: cannot be written"),
        ({"state": {}}, r"no unknown and 7 \("),
    ],
)
def test_what_would_not_load_is_never_put_in_place(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    before = load_checkpoint(folder).digest
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(folder, **checkpoint_arguments(**change))
    assert load_checkpoint(folder).digest == before
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_a_full_disk_leaves_the_old_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    before = load_checkpoint(folder).digest
    monkeypatch.setattr(atomic_write, "_fsync", full)
    with pytest.raises(
        CheckpointError, match=r"tiny: cannot be written \(No space left on device\); free some space"
    ):
        save_checkpoint(folder, **checkpoint_arguments(labels=["x", "y", "z"]))
    assert load_checkpoint(folder).digest == before
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_another_card_leaves_weights_and_digest_alone(folder: Path) -> None:
    before = load_checkpoint(folder)
    write_card(before, {**before.card, "summary": "Corrected.", "precision": {"bf16": {"flows": 7}}})
    after = load_checkpoint(folder)
    assert (after.digest, after.card["summary"], after.card["title"]) == (before.digest, "Corrected.", "Tiny")
    assert "- bf16: flows 7" in (folder / "README.md").read_text().splitlines()
    with pytest.raises(CheckpointError, match=r"card\.json: cannot be written"):
        write_card(before, {"x": object()})
    assert load_checkpoint(folder).card == after.card
    assert {path.name for path in folder.iterdir()} == {path.name for path in before.path.iterdir()}


@pytest.mark.parametrize("is_swapped", [False, True])
def test_a_save_that_is_killed_leaves_the_old_checkpoint_or_the_new_one(
    folder: Path, is_swapped: bool
) -> None:
    before = load_checkpoint(folder).digest
    code = (
        "import os, sys, models.atomic_write as a\n"
        "from tests.unit.models.tiny_family import checkpoint_arguments, registered\n"
        "from models.checkpoint import save_checkpoint\n"
        "swap = a._swap\n"
        f"a._swap = lambda *names: ({is_swapped} and swap(*names), os.kill(os.getpid(), 9))\n"
        "with registered():\n"
        "    save_checkpoint(sys.argv[1], **checkpoint_arguments(labels=['x', 'y', 'z']))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    loaded = load_checkpoint(folder)
    assert loaded.labels == (["x", "y", "z"] if is_swapped else ["a", "b", "c"])
    assert (loaded.digest == before) is not is_swapped
    save_checkpoint(folder, **checkpoint_arguments())  # what the killed one left beside it is in nobody's way
    assert load_checkpoint(folder).digest == before


def test_a_folder_that_is_no_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(
        CheckpointError, match="got something that is no checkpoint, expected a new or empty folder"
    ):
        save_checkpoint(tmp_path, **checkpoint_arguments())
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# One damage each: the file, the change of its JSON, what the error says.
JSON_DAMAGES: list[tuple[str, Callable[[Any], Any], str]] = [
    (
        "config.json",
        with_key("format", value=2),
        "got format 2, expected 1; install the netcls that wrote it",
    ),
    ("config.json", with_key("format", value=True), "got format True, expected 1"),
    ("config.json", without_key("kind"), "got no key 'kind'"),
    ("config.json", with_key("famly", value="x"), "got unknown key 'famly'; did you mean 'family'"),
    (
        "config.json",
        with_key("kind", value="oracle"),
        "got kind 'oracle', expected one of classifier, backbone",
    ),
    ("config.json", with_key("kind", value="backbone"), "got 3 labels, expected 0 to 0 for a backbone"),
    ("config.json", with_key("family", value="netmmba"), "got family 'netmmba'; did you mean 'netmamba'"),
    ("config.json", with_key("family", value="netmamba"), "got unknown key 'width'"),
    ("config.json", with_key("family", value=None), "got null as family, expected a string"),
    ("config.json", lambda _: [], "got a list, expected an object"),
    ("config.json", with_key("model", "depth", value=3), "got unknown key 'depth'; did you mean 'width'"),
    ("config.json", without_key("model", "width"), "got no key 'width'"),
    (
        "config.json",
        with_key("model", "width", value="12"),
        r"got model\.width = '12', expected a whole number",
    ),
    (
        "config.json",
        with_key("model", "width", value=True),
        r"got model\.width = True, expected a whole number",
    ),
    (
        "config.json",
        with_key("model", "width", value=12.0),
        r"got model\.width = 12\.0, expected a whole number",
    ),
    ("config.json", with_key("model", "width", value=-1), "model: width is -1; expected 1 or more"),
    ("config.json", with_key("model", "width", value=10**9), "expected at most 1048576"),
    (
        "config.json",
        with_key("model", "width", value=13),
        r"got shape \[12, 16\], expected \[13, 16\]|\[1, 13\]",
    ),
    ("config.json", with_key("model", "n_layers", value=10**6), "expected at most 256"),
    ("config.json", with_key("model", "n_layers", value=2), r"got no unknown and 2 \('blocks\.1\.weight'"),
    (
        "config.json",
        with_key("model", "n_bytes", value=20),
        r"got model\.n_bytes = 20, expected 16 for these",
    ),
    (
        "config.json",
        with_key("representation", "name", value="netmaba"),
        "got 'netmaba'; did you mean 'netmamba'",
    ),
    (
        "config.json",
        with_key("representation", "version", value=99),
        "got version 99, expected 1; the tokens changed",
    ),
    (
        "config.json",
        with_key("representation", "version", value=1.0),
        r"got a number as representation\.version",
    ),
    ("config.json", without_key("representation", "settings", "stride"), "got no key 'stride'"),
    ("config.json", with_key("representation", "settings", "color", value=1), "has no setting 'color'"),
    ("config.json", with_key("representation", "settings", "stride", value=3), "stride 3 does not divide"),
    (
        "config.json",
        with_key("representation", "settings", "n_packets", value=3),
        r"model\.n_bytes = 16, expected 24",
    ),
    ("labels.json", lambda _: {"a": 1}, "got labels that are not all strings"),
    ("labels.json", lambda _: ["a", "b", 3], "got labels that are not all strings"),
    ("labels.json", lambda _: [], "got 0 labels, expected 1 to 10000 for a classifier"),
    ("labels.json", lambda _: ["a", "b", "c", "d"], r"labels\.json has 4 labels, the weights answer 3"),
    ("labels.json", lambda _: ["a", "b", "a"], "got label 'a' twice"),
    ("labels.json", lambda _: ["a", "b", ""], "got a label of 0 characters"),
    ("labels.json", lambda _: ["a", "b", "x" * 201], "got a label of 201 characters"),
    ("labels.json", lambda _: ["a", "b", "c\x1b[31m"], r"got label 'c\\x1b\[31m' with control characters"),
    ("labels.json", lambda _: ["a", "b", "c\u202e"], "with control characters"),
    ("labels.json", lambda _: ["a", "b", "c\ud800"], "with control characters"),
    ("labels.json", lambda _: [str(i) for i in range(10**6)], "got 1000000 labels|bytes of JSON"),
    ("calibration.json", without_key("temperature"), "got no key 'temperature'"),
    (
        "calibration.json",
        with_key("temperature", value=0),
        "got temperature 0, expected a finite number above 0",
    ),
    ("calibration.json", with_key("temperature", value=-1.0), r"got temperature -1\.0"),
    ("calibration.json", with_key("temperature", value=math.nan), "NaN is not a JSON number"),
    ("calibration.json", with_key("temperature", value=10**400), "got temperature 1000"),
    ("calibration.json", with_key("temperature", value="1"), "got temperature '1'"),
    (
        "calibration.json",
        with_key("unknown_threshold", value=1.5),
        r"got unknown_threshold 1\.5, expected null or",
    ),
    ("card.json", lambda _: "nice", "got a string, expected an object"),
]


@pytest.mark.parametrize(("name", "change", "message"), JSON_DAMAGES)
def test_json_that_is_not_as_it_should_be_is_refused_by_name(
    folder: Path, name: str, change: Callable[[Any], Any], message: str
) -> None:
    edit(folder / name, change)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(folder)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


TEXT_DAMAGES = [
    ("config.json", b"", "got no valid JSON"),
    ("config.json", b"\xff\xfe", "got no valid JSON"),
    ("card.json", b"[" * 100_000, "got JSON nested too deep, expected at most 32 levels|got no valid JSON"),
    ("card.json", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "got JSON nested too deep"),
    (
        "card.json",
        b'{"a":' + b"[" * 40 + b"]" * 40 + b"}",
        "got JSON nested too deep, expected at most 32 levels",
    ),
    ("card.json", b'{"a": 1, "a": 2}', "key 'a' stands twice"),
    ("card.json", b'{"a": "' + b"x" * (9 << 20) + b'"}', "bytes of JSON, expected at most 8388608"),
    ("card.json", b'{"a": ' + b"9" * 10_000 + b"}", "got no valid JSON"),
]


@pytest.mark.parametrize(("name", "text", "message"), TEXT_DAMAGES, ids=range(len(TEXT_DAMAGES)))
def test_text_that_is_no_sane_json_is_refused(folder: Path, name: str, text: bytes, message: str) -> None:
    (folder / name).write_bytes(text)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


WEIGHT_DAMAGES: list[tuple[bytes, str]] = [
    (b"", "begins with nothing, expected safetensors"),
    (b"PK\x03\x04" + b"\0" * 99, "got a pickle"),
    (struct.pack("<Q", 2**63) + b"{}", "got a header length of 9223372036854775808 bytes in a file of 10"),
    (struct.pack("<Q", 50) + b"{}", "got a header length of 50 bytes in a file of 10"),
    (struct.pack("<Q", 5 << 20) + b"{" * (5 << 20), "got a header length of 5242880 bytes"),
    (header_file(b"{" + b" " * 20), "got no valid JSON"),
    (header_file(b'{"a":' * 90_000 + b"1" + b"}" * 90_000), "nested too deep"),
    (header_file({"a": 1}), "tensor 'a': expected dtype, shape and data_offsets"),
    (header_file({"a" * 300: 1}), "got a name of 300 characters"),
    (header_file({"a": entry([2], 0, 8, "F99")}, bytes(8)), "got dtype 'F99'"),
    (header_file({"a": entry([-2], 0, 8)}, bytes(8)), "got no usable shape"),
    (header_file({"a": entry([1] * 9, 0, 4)}, bytes(4)), "got no usable shape, expected at most 8 sizes"),
    (header_file({"a": entry([2**40, 2**40], 0, 8)}, bytes(8)), "got 8 bytes, expected 48357032784585"),
    (
        header_file({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        "tensor 'b': got data from byte 4",
    ),
    (header_file({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, bytes(20)), "expected byte 8"),
    (header_file({"a": entry([2], 8, 0)}, bytes(8)), "got -8 bytes"),
    (header_file({"a": entry([2], 0, 8)}, bytes(7)), "got 7 bytes of tensor data, expected 8"),
    (header_file({"a": entry([2], 0, 8)}, bytes(9)), "got 9 bytes of tensor data, expected 8"),
    (header_file({"a": entry([2], 0, 8)}, bytes(8)), r"got 1 \('a'\) unknown and 7 \("),
]


@pytest.mark.parametrize(("data", "message"), WEIGHT_DAMAGES, ids=range(len(WEIGHT_DAMAGES)))
def test_weights_whose_header_lies_are_refused(folder: Path, data: bytes, message: str) -> None:
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_weights_cut_off_anywhere_are_refused(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for size in range(0, len(whole), 41):
        (folder / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: got "):
            load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state | {"head.bias": torch.tensor([0.0, math.nan, 0.0])},
            "tensor 'head.bias': got NaN",
        ),
        (
            lambda state: state | {"head.bias": torch.tensor([0.0, math.inf, 0.0])},
            "tensor 'head.bias': got NaN or inf",
        ),
        (lambda state: state | {"head.bias": state["head.bias"].double()}, "got dtype F64, expected F32"),
        (
            lambda state: state | {"head.weight": state["head.weight"].t()},
            r"got shape \[12, 3\], expected \[3, 12\]",
        ),
        (
            lambda state: state | {"extra": torch.zeros(1)},
            r"got 1 \('extra'\) unknown and no missing tensors",
        ),
        (
            lambda state: {name: tensor for name, tensor in state.items() if name != "pos_embed"},
            r"got no unknown and 1 \('pos_embed'\) missing tensors",
        ),
        (
            lambda state: {"conv1.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(3)},
            r"got 2 \('conv1\.weight', 'fc\.bias'\) unknown and 7 .*expected the 7 of a tiny classifier",
        ),
    ],
)
def test_tensors_that_are_not_the_networks_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str
) -> None:
    state = {name: tensor.contiguous() for name, tensor in change(checkpoint_arguments()["state"]).items()}
    (folder / "model.safetensors").write_bytes(save(state))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_under_the_name_of_the_weights_is_refused_and_never_run(
    folder: Path, tmp_path: Path, protocol: int
) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Canary(tmp_path / "canary"), protocol))
    with pytest.raises(
        CheckpointError, match=r"got a pickle .*expected safetensors; pickles are never loaded"
    ):
        load_checkpoint(folder)
    torch.save(Canary(tmp_path / "canary"), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="got a pickle"):
        load_checkpoint(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "labels.json", "calibration.json", "card.json"]
)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(
        CheckpointError, match=rf"{name}: got no such file, expected a checkpoint folder with"
    ):
        load_checkpoint(folder)


def test_a_link_out_of_the_folder_is_refused_and_one_inside_it_is_not(folder: Path, tmp_path: Path) -> None:
    (folder / "card.json").rename(folder / "the-card.json")
    (folder / "card.json").symlink_to("the-card.json")
    assert load_checkpoint(folder).card["title"] == "Tiny"
    (folder / "the-card.json").rename(tmp_path / "outside.json")
    (folder / "card.json").unlink()
    (folder / "card.json").symlink_to("../outside.json")
    with pytest.raises(
        CheckpointError, match=r"card\.json: got a link to .*outside\.json, expected a file inside"
    ):
        load_checkpoint(folder)
    (tmp_path / "outside.json").unlink()
    with pytest.raises(CheckpointError, match="got a link to nothing"):
        load_checkpoint(folder)


def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "card.json").unlink()
    os.mkfifo(folder / "card.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(folder)
    (folder / "card.json").unlink()
    (folder / "card.json").mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(folder)


def test_listing_and_showing_import_neither_torch_nor_numba(folder: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from models.checkpoint import list_checkpoints, read_files\n"
        f"list_checkpoints(Path({str(folder.parent)!r})), read_files(Path({str(folder)!r}))\n"
        "print([m for m in ('torch', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_the_files_alone_gives_the_digest_of_loading(folder: Path) -> None:
    loaded: Checkpoint = load_checkpoint(folder)
    assert read_files(folder).digest == loaded.digest


def test_netmamba_itself_is_saved_and_loaded(tmp_path: Path) -> None:
    from dataclasses import asdict

    from models.families import FAMILIES

    family = FAMILIES["netmamba"]
    config = family.config_for(SETTINGS, d_model=16, n_layers=2, d_state=4, mask_ratio=0.5)
    for kind, model in (
        ("classifier", family.build_classifier(config, 3)),
        ("backbone", family.build_pretrainer(config)),
    ):
        arguments = checkpoint_arguments(
            kind,
            family="netmamba",
            model_config=asdict(config),
            state=model.state_dict(),
            labels=["a", "b", "c"] if kind == "classifier" else [],
        )
        saved = save_checkpoint(tmp_path / kind, **arguments)
        assert all(torch.equal(saved.state[name], tensor) for name, tensor in model.state_dict().items())
