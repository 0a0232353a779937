"""The files of a checkpoint folder, read with suspicion and without torch.

    model.safetensors   the weights
    config.json         {"format": 1, "kind", "family", "model": {...},
                         "representation": {"name", "version", "settings"}}
    labels.json         ["web", "video", ...], in the order of the head's rows; [] for a backbone
    calibration.json    {"temperature": 1.3, "unknown_threshold": 0.7 or null}; may have
                         "early_exit": [{"packets": 4, "temperature": 1.5, "threshold": 0.98}, ...]
    card.json           data, split, seeds, commit, metrics, baselines, licence, known limits
    README.md           the card for people; not read

This module checks each file by itself; :mod:`models.checkpoint_verify` checks them against each other and the code.
"""

from __future__ import annotations

import hashlib
import math
import re
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capture.errors import CheckpointError, did_you_mean
from models.bounded_json import canonical_json, read_json
from models.safetensors_header import TensorEntry, read_header
from models.tasks import CLASS, Task, read_task

FORMAT: Final = 1
KINDS: Final = ("classifier", "backbone")
WEIGHTS_FILE: Final = "model.safetensors"
REQUIRED_FILES: Final = (WEIGHTS_FILE, "config.json", "labels.json", "calibration.json", "card.json")
MAX_LABELS: Final = 10_000
MAX_EXIT_LEVELS: Final = 32
MAX_LABEL_CHARACTERS: Final = 200
DIGEST_CHARACTERS: Final = 12


@dataclass(frozen=True, slots=True)
class ExitLevel:
    """When an answer may be given before a flow's last packet.

    Attributes:
        packets: after so many.
        temperature: of answers after so many packets.
        threshold: least probability of the answer, 0 to 1.
    """

    packets: int
    temperature: float
    threshold: float

    def document(self) -> dict[str, Any]:
        """As it stands in ``calibration.json``."""
        return {"packets": self.packets, "temperature": self.temperature, "threshold": self.threshold}


@dataclass(frozen=True, slots=True)
class Calibration:
    """How logits become probabilities and when an answer is "unknown".

    Attributes:
        temperature: logits are divided by it; finite, > 0.
        unknown_threshold: an unknown score above it makes the answer "unknown"; 0 to 1, None = never.
        early_exit: levels of early answers, rising; empty where the checkpoint knows none.
    """

    temperature: float = 1.0
    unknown_threshold: float | None = None
    early_exit: tuple[ExitLevel, ...] = ()

    def document(self) -> dict[str, Any]:
        """The value of ``calibration.json``. Levels have their key; older checkpoints have none."""
        levels = [level.document() for level in self.early_exit]
        more = {"early_exit": levels} if levels else {}
        return {"temperature": self.temperature, "unknown_threshold": self.unknown_threshold, **more}


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """What the files of a checkpoint folder say, each checked by itself.

    Attributes:
        path: the folder.
        kind: ``classifier`` or ``backbone``.
        family: name in ``models.families.FAMILIES``; not yet looked up.
        model_config: fields of the family's configuration; not yet compared.
        representation: name of the input representation.
        representation_version: its version when the weights were trained.
        representation_settings: all its settings.
        labels: label names in the order of the head's rows; empty for a backbone.
        task: what the head answers.
        calibration: of ``calibration.json``.
        card: of ``card.json``.
        tensors: header of the weights; the data is not read.
        digest: first 12 hex digits of the SHA-256 over config, labels, calibration and weights. The card is not part
            of it: correcting a sentence does not make another model.
        size_bytes: of all files together.
    """

    path: Path
    kind: str
    family: str
    model_config: dict[str, Any]
    representation: str
    representation_version: int
    representation_settings: dict[str, Any]
    labels: list[str]
    task: Task
    calibration: Calibration
    card: dict[str, Any]
    tensors: dict[str, TensorEntry]
    digest: str
    size_bytes: int

    @property
    def n_parameters(self) -> int:
        """Elements of all tensors together."""
        return sum(entry.n_items for entry in self.tensors.values())


def read_files(folder: Path) -> CheckpointFiles:
    """Read a checkpoint folder's files and check each by itself; no tensor data is kept, torch is not imported.

    Raises:
        CheckpointError: for anything missing, damaged, or not as expected.
    """
    size_bytes = sum(_check_file(folder, name) for name in REQUIRED_FILES)
    try:
        config = read_json(folder / "config.json")
        _check_config(folder / "config.json", config)
        labels = read_json(folder / "labels.json")
        check_labels(labels, config["kind"], str(folder / "labels.json"))
        calibration = _calibration(folder / "calibration.json")
        card = read_json(folder / "card.json")
        if not isinstance(card, dict):
            raise CheckpointError(f"{folder / 'card.json'}: got {_kind_of(card)}, expected an object")
        tensors = read_header(folder / WEIGHTS_FILE)
        digest = _digest(folder / WEIGHTS_FILE, config, labels, calibration)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror}); check the permissions") from None
    representation = config["representation"]
    return CheckpointFiles(
        path=folder,
        kind=config["kind"],
        family=config["family"],
        model_config=config["model"],
        representation=representation["name"],
        representation_version=representation["version"],
        representation_settings=representation["settings"],
        labels=labels,
        task=_task(folder / "config.json", config, labels),
        calibration=calibration,
        card=card,
        tensors=tensors,
        digest=digest,
        size_bytes=size_bytes,
    )


def config_document(
    kind: str,
    family: str,
    model_config: dict[str, Any],
    representation: str,
    representation_version: int,
    representation_settings: dict[str, Any],
    task: Task = CLASS,
) -> dict[str, Any]:
    """The value of ``config.json``. A task other than ``class`` has its key; older checkpoints have none."""
    more = {} if task == CLASS else {"task": task.document()}
    return {
        "format": FORMAT,
        "kind": kind,
        "family": family,
        "model": model_config,
        "representation": {
            "name": representation,
            "version": representation_version,
            "settings": representation_settings,
        },
        **more,
    }


def check_labels(labels: Any, kind: str, where: str) -> None:
    """Label names must be printable, short, distinct; a backbone has none.

    Raises:
        CheckpointError: naming the first that is not.
    """
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f"{where}: got labels that are not all strings, expected a list of strings")
    least, most = (1, MAX_LABELS) if kind == "classifier" else (0, 0)
    if not least <= len(labels) <= most:
        raise CheckpointError(f"{where}: got {len(labels)} labels, expected {least} to {most} for a {kind}")
    for label in labels:
        if not 1 <= len(label) <= MAX_LABEL_CHARACTERS:
            raise CheckpointError(
                f"{where}: got a label of {len(label)} characters ({label[:20]!r}...), expected 1 to "
                f"{MAX_LABEL_CHARACTERS}; shorten it"
            )
        if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in label):
            raise CheckpointError(
                f"{where}: got label {label!r} with control characters, expected printable text"
            )
    if len(set(labels)) != len(labels):
        seen: set[str] = set()
        twice = next(label for label in labels if label in seen or seen.add(label))  # type: ignore[func-returns-value]
        raise CheckpointError(f"{where}: got label {twice!r} twice, expected distinct names; rename one")


def check_calibration(temperature: Any, unknown_threshold: Any, where: str) -> None:
    """A finite temperature above 0, and a threshold from 0 to 1 or None.

    Raises:
        CheckpointError: naming the one that is not.
    """
    if not _is_number(temperature) or not temperature > 0:
        raise CheckpointError(
            f"{where}: got temperature {temperature!r:.40}, expected a finite number above 0"
        )
    if unknown_threshold is not None and (
        not _is_number(unknown_threshold) or not 0 <= unknown_threshold <= 1
    ):
        raise CheckpointError(
            f"{where}: got unknown_threshold {unknown_threshold!r:.40}, expected null or a number from 0 to 1"
        )


def _check_file(folder: Path, name: str) -> int:
    """Size in bytes of a required file, which must be a regular file inside the folder."""
    path = folder / name
    try:
        status = path.stat()
        inside = path.resolve().is_relative_to(folder.resolve())
    except FileNotFoundError:
        what = "a link to nothing" if path.is_symlink() else "no such file"
        raise CheckpointError(
            f"{path}: got {what}, expected a checkpoint folder with {', '.join(REQUIRED_FILES)}"
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise CheckpointError(
            f"{path}: cannot be read ({error}); check the path and its permissions"
        ) from None
    if not inside:
        raise CheckpointError(
            f"{path}: got a link to {path.resolve()}, expected a file inside the folder; copy the file there"
        )
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: got something that is not a regular file; copy the file there")
    return status.st_size


def _check_config(path: Path, config: Any) -> None:
    """Shape and types of ``config.json``; whether the names are known is not asked here."""
    if isinstance(config, dict) and config.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{path}: got format {config['format']!r:.40}, expected {FORMAT}; install the netcls that wrote it"
        )
    check_keys(str(path), _without_task(config), ("format", "kind", "family", "model", "representation"))
    if type(config["format"]) is not int:
        raise CheckpointError(f"{path}: got format {config['format']!r:.40}, expected {FORMAT}")
    if config["kind"] not in KINDS:
        raise CheckpointError(f"{path}: got kind {config['kind']!r:.80}, expected one of {', '.join(KINDS)}")
    check_keys(f"{path}: representation", config["representation"], ("name", "version", "settings"))
    for where, value, kind in (
        ("family", config["family"], str),
        ("model", config["model"], dict),
        ("representation.name", config["representation"]["name"], str),
        ("representation.version", config["representation"]["version"], int),
        ("representation.settings", config["representation"]["settings"], dict),
    ):
        if type(value) is not kind:
            raise CheckpointError(f"{path}: got {_kind_of(value)} as {where}, expected {_KIND_NAMES[kind]}")


def _without_task(config: Any) -> Any:
    return {key: config[key] for key in config if key != "task"} if isinstance(config, dict) else config


def _task(path: Path, config: dict[str, Any], labels: list[str]) -> Task:
    if "task" not in config:
        return CLASS
    if config["kind"] != "classifier":
        raise CheckpointError(
            f"{path}: got a task for a {config['kind']}, expected one for a classifier only"
        )
    return read_task(config["task"], labels, str(path))


def check_keys(where: str, value: Any, expected: tuple[str, ...]) -> None:
    """``value`` must be an object with exactly the expected keys.

    Raises:
        CheckpointError: naming the first unknown or missing key.
    """
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{where}: got {_kind_of(value)}, expected an object with {', '.join(expected)}"
        )
    for key in value:
        if key not in expected:
            hint = did_you_mean(key, list(expected)) or f", expected {', '.join(expected)}"
            raise CheckpointError(f"{where}: got unknown key {key[:80]!r}{hint}")
    for key in expected:
        if key not in value:
            raise CheckpointError(f"{where}: got no key {key!r}, expected {', '.join(expected)}")


def _calibration(path: Path) -> Calibration:
    value = read_json(path)
    levels = value.pop("early_exit", []) if isinstance(value, dict) else []
    check_keys(str(path), value, ("temperature", "unknown_threshold"))
    check_calibration(value["temperature"], value["unknown_threshold"], str(path))
    threshold = value["unknown_threshold"]
    return Calibration(
        float(value["temperature"]),
        None if threshold is None else float(threshold),
        _exit_levels(levels, f"{path}: early_exit"),
    )


def _exit_levels(levels: Any, where: str) -> tuple[ExitLevel, ...]:
    if not isinstance(levels, list) or len(levels) > MAX_EXIT_LEVELS:
        raise CheckpointError(f"{where}: expected a list of at most {MAX_EXIT_LEVELS} levels")
    found: list[ExitLevel] = []
    for level in levels:
        check_keys(where, level, ("packets", "temperature", "threshold"))
        packets, threshold = level["packets"], level["threshold"]
        least = found[-1].packets + 1 if found else 1
        if type(packets) is not int or not least <= packets <= 1 << 16:
            raise CheckpointError(
                f"{where}: got packets {packets!r:.40}, expected whole numbers from 1, rising"
            )
        check_calibration(level["temperature"], None, where)
        if not _is_number(threshold) or not 0 <= threshold <= 1:
            raise CheckpointError(f"{where}: got threshold {threshold!r:.40}, expected a number from 0 to 1")
        found.append(ExitLevel(packets, float(level["temperature"]), float(threshold)))
    return tuple(found)


def _digest(weights: Path, config: Any, labels: list[str], calibration: Calibration) -> str:
    """SHA-256 over what decides an answer. Each JSON part is preceded by its length, so that no two runs together."""
    hasher = hashlib.sha256()
    numbers: list[Any] = [calibration.temperature, calibration.unknown_threshold]
    # Checkpoints without early answers keep the digest that they had before there were any.
    numbers += [level.document() for level in calibration.early_exit]
    for part in (config, labels, numbers):
        text = canonical_json(part)
        hasher.update(len(text).to_bytes(8, "little") + text)
    with weights.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()[:DIGEST_CHARACTERS]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


_KIND_NAMES: Final = {
    str: "a string",
    dict: "an object",
    list: "a list",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _kind_of(value: Any) -> str:
    return _KIND_NAMES[type(value)]


def is_plain_name(name: str) -> bool:
    """Whether this can be a checkpoint's name (a folder under ``models/pretrained``) rather than a path."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is not None
