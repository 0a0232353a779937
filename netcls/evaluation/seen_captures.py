"""Which captures a checkpoint has been trained on, as far as its folder says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capture.errors import DataError
from netcls.datasets.files import write_then_rename
from netcls.datasets.sources import LabelledCapture
from netcls.training_run import CORPUS_FILE, TRAINING_FILE

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class SeenCaptures:
    """How far the test captures are new to a checkpoint.

    Attributes:
        tested: captures that are tested.
        trained_on: of these, captures that it was trained on with labels; None: its folder has no list.
        pretrained_on: of these, captures that its backbone was pre-trained on without labels; None: no list of them.
        warning: one sentence; empty where every test capture is known to be new.
    """

    tested: int
    trained_on: int | None
    pretrained_on: int | None
    warning: str

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def seen_captures(checkpoint: Checkpoint, name: str, tested: Iterable[str]) -> SeenCaptures:
    """Compare the SHA-256 of test captures with the lists in a checkpoint's folder.

    Args:
        checkpoint: a classifier or a backbone.
        name: what to call it.
        tested: SHA-256 of each test capture.
    """
    digests = set(tested)
    trained = _listed(checkpoint.path / TRAINING_FILE)
    corpus = _listed(checkpoint.path / CORPUS_FILE)
    n_trained = None if trained is None else len(digests & trained)
    n_corpus = None if corpus is None else len(digests & corpus)
    if checkpoint.kind == "backbone":
        n_trained = 0
    elif corpus is None and checkpoint.card.get("training", {}).get("base", "?") is None:
        n_corpus = 0  # from random weights: there is no corpus
    sentences = []
    if n_trained is None:
        sentences.append(
            f"{name} has no list of its training captures; it may have been trained on what is tested"
        )
    elif n_trained:
        sentences.append(
            f"{name} was trained on {n_trained} of {len(digests)} test captures: its score is void"
        )
    if n_corpus is None:
        sentences.append(f"{name} does not list what its backbone was pre-trained on")
    elif n_corpus:
        sentences.append(
            f"{n_corpus} of {len(digests)} test captures are in the corpus that {name} was pre-trained on "
            "without labels: optimistic"
        )
    return SeenCaptures(len(digests), n_trained, n_corpus, "; ".join(sentences))


def write_seen_captures(folder: Path, trained_on: Iterable[LabelledCapture], base: Checkpoint | None) -> None:
    """Write the lists of a fine-tuned checkpoint: its own captures, those of its base, its base's corpus.

    Args:
        folder: of the checkpoint.
        trained_on: captures with labels that trained it, picked its epoch or fitted its temperature.
        base: what it started from.
    """
    own = {capture.digest(): capture.path.name for capture in trained_on}
    if base is not None:
        if (base.path / CORPUS_FILE).is_file():
            _write(folder / CORPUS_FILE, _lines(base.path / CORPUS_FILE))
        if base.kind == "classifier" and not (base.path / TRAINING_FILE).is_file():
            return  # half a list would promise too much
        own = _lines(base.path / TRAINING_FILE) | own
    _write(folder / TRAINING_FILE, own)


def _write(path: Path, names: dict[str, str]) -> None:
    text = "".join(f"{digest}  {' '.join(name.split())}\n" for digest, name in sorted(names.items()))
    with write_then_rename(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def _listed(path: Path) -> set[str] | None:
    return set(_lines(path)) if path.is_file() else None


def _lines(path: Path) -> dict[str, str]:
    """SHA-256 and name of each line; nothing where there is no file."""
    if not path.is_file():
        return {}
    names = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        digest, _, name = line.strip().partition(" ")
        if not digest:
            continue
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise DataError(
                f"{path}:{number}: got {digest[:40]!r}, expected a SHA-256 of 64 hex digits and a name"
            )
        names[digest] = name.strip()
    return names
