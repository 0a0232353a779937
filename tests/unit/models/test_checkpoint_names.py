"""Names of checkpoints: what ships, aliases, paths, and the list of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capture.errors import CheckpointError
from models import checkpoint
from models.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    resolve_name,
    save_checkpoint,
)
from tests.unit.models.tiny_family import checkpoint_arguments, registered


@pytest.fixture(autouse=True)
def _tiny_family() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "pretrained"
    monkeypatch.setattr(checkpoint, "PRETRAINED", root)
    save_checkpoint(root / "tiny-lab", **checkpoint_arguments())
    save_checkpoint(root / "tiny-base", **checkpoint_arguments("backbone"))
    (root / "default.json").write_text('{"alias": "tiny-lab"}')
    return root


def test_names_and_aliases_find_what_ships_and_paths_find_folders(shipped: Path, tmp_path: Path) -> None:
    assert resolve_name("default") == resolve_name("tiny-lab") == shipped / "tiny-lab"
    assert load_checkpoint("default").name == "tiny-lab"
    save_checkpoint(tmp_path / "mine", **checkpoint_arguments())
    assert resolve_name(tmp_path / "mine") == resolve_name(f"{tmp_path}/mine") == tmp_path / "mine"


def test_an_unknown_name_is_answered_with_the_names_there_are(shipped: Path) -> None:
    expected = (
        "checkpoint 'defualt' is not known; did you mean 'default'?; "
        "the names are default, tiny-base, tiny-lab; or give a folder"
    )
    with pytest.raises(CheckpointError) as error:
        load_checkpoint("defualt")
    assert str(error.value) == expected


def test_a_path_that_is_not_there_is_no_name(shipped: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"^\./no/such: got no such folder, expected a checkpoint folder or a name"
    ):
        load_checkpoint("./no/such")
    with pytest.raises(CheckpointError, match=r"default\.json: got a file, expected a checkpoint folder"):
        load_checkpoint(shipped / "default.json")


@pytest.mark.parametrize("alias", ["../../etc", "default", "", None])
def test_an_alias_only_names_a_checkpoint_beside_it(shipped: Path, alias: Any) -> None:
    (shipped / "default.json").write_text(json.dumps({"alias": alias}))
    with pytest.raises(CheckpointError, match="expected one of tiny-base, tiny-lab"):
        load_checkpoint("default")


def test_the_list_tells_what_each_checkpoint_is(shipped: Path) -> None:
    rows = {row["name"]: row for row in list_checkpoints()}
    assert list(rows) == ["default", "tiny-base", "tiny-lab"]
    lab = load_checkpoint("tiny-lab")
    assert rows["default"] == {
        "name": "default",
        "alias": "tiny-lab",
        "family": "tiny",
        "kind": "classifier",
        "labels": ["a", "b", "c"],
        "task": "class",
        "parameters": sum(tensor.numel() for tensor in lab.state.values()),
        "size_bytes": sum(p.stat().st_size for p in lab.path.iterdir() if p.name != "README.md"),
        "checkpoint": lab.digest,
        "representation": "netmamba-1",
        "path": str(lab.path),
    }


def test_a_damaged_checkpoint_does_not_spoil_the_list(shipped: Path) -> None:
    (shipped / "tiny-base" / "labels.json").unlink()
    rows = {row["name"]: row for row in list_checkpoints()}
    assert "labels.json: got no such file" in rows["tiny-base"]["error"]
    assert rows["tiny-lab"]["checkpoint"]
