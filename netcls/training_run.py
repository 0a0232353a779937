"""What every training command does around the training itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from capture.errors import UsageError

CORPUS_FILE: Final = "corpus.sha256"  # beside a checkpoint: the captures its backbone was pre-trained on
TRAINING_FILE: Final = "training.sha256"  # beside a classifier: the labelled captures that it has seen


def wait_passively() -> None:
    """Let idle OpenMP threads sleep: spinning ones halve the speed of busy cores. Works before torch is loaded only."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def check_out(out: Path, *, resume: bool) -> Path:
    """Where the run's state lies, after making sure that nothing there is lost.

    Raises:
        UsageError: the folder is in use, or there is nothing to resume.
    """
    run_dir = out.with_name(out.name + ".run")
    has_state = (run_dir / "state.json").is_file()
    if resume and not has_state:
        raise UsageError(f"{run_dir}: holds no state of an interrupted run; start without --resume")
    # A run that was killed while it wrote its last files left a state and a checkpoint: resumed, it writes them again.
    is_own = resume and (out / "config.json").is_file()
    if out.exists() and not is_own and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is already there; expected a new or empty folder, give another --out")
    if not resume and run_dir.exists() and (has_state or not _is_unborn(run_dir)):
        raise UsageError(
            f"{run_dir}: an interrupted run lies there; give --resume, or remove it to start anew"
        )
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: the folder {out.absolute().parent} does not exist; make it first")
    return run_dir


def _is_unborn(run_dir: Path) -> bool:
    """Whether a run was killed before its first state was complete: there is nothing to resume, nothing to lose."""
    from models.learning.run_state import is_left_over

    return run_dir.is_dir() and all(is_left_over(path) for path in run_dir.iterdir())
