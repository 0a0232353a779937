"""A checkpoint: a folder of weights with everything needed to apply them, or a clear refusal.

:func:`load_checkpoint` checks the files by themselves (:mod:`models.checkpoint_files`), then against each other and the
code (:mod:`models.checkpoint_verify`). Nothing is ever unpickled. :func:`save_checkpoint` writes a sibling folder,
loads it back, and only then puts it in place, so a reader sees the old checkpoint or
the new one, never a half of either.

Listing and showing checkpoints imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from capture.errors import CheckpointError, did_you_mean
from models.atomic_write import replace_file, write_folder
from models.bounded_json import read_json
from models.checkpoint_files import (
    Calibration,
    CheckpointFiles,
    check_keys,
    config_document,
    is_plain_name,
    read_files,
)
from models.tasks import CLASS, Task

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "PRETRAINED",
    "Calibration",
    "Checkpoint",
    "checkpoint_names",
    "list_checkpoints",
    "load_checkpoint",
    "read_files",
    "resolve_name",
    "save_checkpoint",
    "write_card",
]

PRETRAINED: Final = Path(__file__).parent / "pretrained"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights and all that is needed to apply them, verified.

    Attributes:
        path: the folder it was read from.
        kind: ``classifier`` or ``backbone`` (the pre-training network).
        family: name in ``models.families.FAMILIES``.
        model_config: every field of the family's configuration.
        representation: name of the input representation.
        representation_version: the version that the weights were trained with.
        representation_settings: all its settings; ``capture.representations.build(representation, settings)``.
        labels: names in the order of the head's rows; empty for a backbone.
        calibration: temperature and unknown threshold.
        card: data, split, seeds, commit, metrics, licence, known limits.
        state: tensor by name, on the CPU.
        digest: first 12 hex digits of the SHA-256 over config, labels, calibration and weights.
        task: what the head answers; see :mod:`models.tasks`.
    """

    path: Path
    kind: str
    family: str
    model_config: dict[str, Any]
    representation: str
    representation_version: int
    representation_settings: dict[str, Any]
    labels: list[str]
    calibration: Calibration
    card: dict[str, Any]
    state: dict[str, Tensor]
    digest: str
    task: Task = CLASS

    @property
    def name(self) -> str:
        """The folder's name, as events show it."""
        return self.path.resolve().name

    @property
    def representation_id(self) -> str:
        """Name and version of the input, for example ``netmamba-1``."""
        return f"{self.representation}-{self.representation_version}"

    def save(self, directory: str | os.PathLike[str]) -> Checkpoint:
        """Write this checkpoint to another folder; see :func:`save_checkpoint`."""
        return save_checkpoint(
            directory,
            kind=self.kind,
            family=self.family,
            model_config=self.model_config,
            representation=self.representation,
            representation_version=self.representation_version,
            representation_settings=self.representation_settings,
            labels=self.labels,
            calibration=self.calibration,
            card=self.card,
            state=self.state,
            task=self.task,
        )


def load_checkpoint(name_or_dir: str | os.PathLike[str]) -> Checkpoint:
    """Load a checkpoint and check everything in it against everything.

    Args:
        name_or_dir: of a checkpoint that ships with netcls (``default``), or a folder.

    Raises:
        CheckpointError: for an unknown name, or the first thing in the folder that is not as expected.
    """
    return _load_folder(resolve_name(name_or_dir))


def save_checkpoint(
    directory: str | os.PathLike[str],
    *,
    kind: str,
    family: str,
    model_config: Mapping[str, Any],
    representation: str,
    representation_settings: Mapping[str, Any],
    labels: list[str],
    calibration: Calibration,
    card: Mapping[str, Any],
    state: Mapping[str, Tensor],
    representation_version: int | None = None,
    task: Task = CLASS,
) -> Checkpoint:
    """Write a checkpoint folder at once or not at all.

    Args:
        directory: the folder. An existing checkpoint there is replaced; anything else that is not empty is refused.
        kind: ``classifier`` or ``backbone``.
        family: name in ``models.families.FAMILIES``.
        model_config: every field of the family's configuration.
        representation: name of the input representation.
        representation_settings: its settings; those left out get their defaults.
        labels: names in the order of the head's rows; empty for a backbone.
        calibration: temperature and unknown threshold.
        card: any JSON object.
        state: tensor by name.
        representation_version: None means the version of the code that runs.
        task: what the head answers.

    Returns:
        The checkpoint as loaded back from what was written.

    Raises:
        CheckpointError: if the folder cannot be replaced or written, or if what was written would not load.
    """
    from capture.representations import build

    made = build(representation, dict(representation_settings))
    config = config_document(
        kind,
        family,
        dict(model_config),
        representation,
        made.version if representation_version is None else representation_version,
        made.settings(),
        task,
    )
    target = Path(directory)

    def write(folder: Path) -> Checkpoint:
        _write_files(folder, target.absolute().name, config, labels, calibration, card, state)
        return _load_folder(folder)

    return replace(write_folder(target, write, looks_like="config.json"), path=target)


def write_card(checkpoint: Checkpoint, card: Mapping[str, Any]) -> None:
    """Give a checkpoint's folder another card; weights, labels and digest stay.

    Args:
        checkpoint: as loaded.
        card: the whole new card, any JSON object.

    Raises:
        CheckpointError: if it is no JSON, or cannot be written.
    """
    config = config_document(
        checkpoint.kind,
        checkpoint.family,
        checkpoint.model_config,
        checkpoint.representation,
        checkpoint.representation_version,
        checkpoint.representation_settings,
    )
    texts = {
        "card.json": _json_text("card.json", dict(card)),
        "README.md": _readme(checkpoint.name, config, checkpoint.labels, card),
    }
    try:
        for name, text in texts.items():
            replace_file(checkpoint.path / name, text)
            (checkpoint.path / name).chmod(0o644)
    except OSError as error:
        raise CheckpointError(
            f"{checkpoint.path}: the card cannot be written ({error.strerror}); check space and permissions, or "
            "work on a copy of the folder"
        ) from None


def resolve_name(name_or_dir: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint.

    A path with a separator and an existing directory are folders; anything else is the name of a checkpoint that ships
    with netcls. ``NAME.json`` beside those folders holds ``{"alias": "OTHER"}``.

    Raises:
        CheckpointError: for an unknown name, with the names that are known.
    """
    text = os.fspath(name_or_dir)
    shipped = checkpoint_names()
    if text in shipped:
        return PRETRAINED / shipped[text]
    path = Path(text)
    if path.is_dir():
        return path
    if is_plain_name(text):
        known = ", ".join(shipped) or "none"
        raise CheckpointError(
            f"checkpoint {text!r} is not known{did_you_mean(text, list(shipped))}; the names are {known}; "
            "or give a folder"
        )
    got = "a file" if path.exists() else "no such folder"
    raise CheckpointError(
        f"{text}: got {got}, expected a checkpoint folder or a name; see `netcls models list`"
    )


def checkpoint_names(root: Path | None = None) -> dict[str, str]:
    """Names of the checkpoints that ship, aliases first: name -> folder below ``models/pretrained``."""
    root = PRETRAINED if root is None else root
    if not root.is_dir():
        return {}
    folders = {path.name: path.name for path in sorted(root.iterdir()) if (path / "config.json").exists()}
    aliases: dict[str, str] = {}
    for path in sorted(root.glob("*.json")):
        value = read_json(path)
        check_keys(str(path), value, ("alias",))
        if value["alias"] not in folders:
            raise CheckpointError(
                f"{path}: got alias {value['alias']!r:.80}, expected one of {', '.join(folders)}"
            )
        aliases[path.stem] = value["alias"]
    return aliases | folders


def list_checkpoints(root: Path | None = None) -> list[dict[str, Any]]:
    """One row for each name that ships: what ``netcls models list --json`` prints.

    Keys: name, family, kind, labels (names), parameters (elements of all tensors), size_bytes (of the folder's files),
    checkpoint (digest), representation, path; alias where the name is one. A damaged one has name, path
    and error.
    """
    root = PRETRAINED if root is None else root
    rows: list[dict[str, Any]] = []
    for name, folder in checkpoint_names(root).items():
        row: dict[str, Any] = {"name": name}
        if name != folder:
            row["alias"] = folder
        try:
            row |= _row(read_files(root / folder))
        except CheckpointError as error:
            row |= {"path": str(root / folder), "error": str(error)}
        rows.append(row)
    return rows


def _row(files: CheckpointFiles) -> dict[str, Any]:
    return {
        "family": files.family,
        "kind": files.kind,
        "labels": files.labels,
        "task": files.task.kind,
        "parameters": files.n_parameters,
        "size_bytes": files.size_bytes,
        "checkpoint": files.digest,
        "representation": f"{files.representation}-{files.representation_version}",
        "path": str(files.path),
    }


def _load_folder(folder: Path) -> Checkpoint:
    from models.checkpoint_verify import verify

    files = read_files(folder)
    return Checkpoint(
        path=folder,
        kind=files.kind,
        family=files.family,
        model_config=files.model_config,
        representation=files.representation,
        representation_version=files.representation_version,
        representation_settings=files.representation_settings,
        labels=files.labels,
        calibration=files.calibration,
        card=files.card,
        state=verify(files),
        digest=files.digest,
        task=files.task,
    )


def _write_files(
    folder: Path,
    name: str,
    config: dict[str, Any],
    labels: list[str],
    calibration: Calibration,
    card: Mapping[str, Any],
    state: Mapping[str, Tensor],
) -> None:
    from safetensors.torch import save

    # A clone of its own for each: safetensors refuses tensors that share memory, and a view would drag its base along.
    tensors = {key: tensor.detach().to("cpu").clone().contiguous() for key, tensor in state.items()}
    (folder / "model.safetensors").write_bytes(save(tensors))
    documents: dict[str, Any] = {
        "config.json": config,
        "labels.json": labels,
        "calibration.json": calibration.document(),
        "card.json": dict(card),
    }
    for file_name, value in documents.items():
        (folder / file_name).write_bytes(_json_text(file_name, value))
    (folder / "README.md").write_bytes(_readme(name, config, labels, card))


def _json_text(file_name: str, value: Any) -> bytes:
    import json

    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file_name}: cannot be written ({error}); give JSON values only") from None
    return f"{text}\n".encode("utf-8", "surrogatepass")


def _readme(name: str, config: dict[str, Any], labels: list[str], card: Mapping[str, Any]) -> bytes:
    from models.checkpoint_card import render_card

    return render_card(name, config, labels, dict(card)).encode("utf-8", "replace")
