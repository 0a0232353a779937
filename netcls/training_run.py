"""What every training command does around the training itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from capture.errors import UsageError

CORPUS_FILE: Final = "corpus.sha256"  # beside a backbone: the captures it was pre-trained on


def wait_passively() -> None:
    """Let idle OpenMP threads sleep: spinning ones halve the speed of busy cores. Works before torch is loaded only."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def check_out(out: Path, *, resume: bool) -> Path:
    """Where the run's state lies, after making sure that nothing there is lost.

    Raises:
        UsageError: the folder is in use, or there is nothing to resume.
    """
    run_dir = out.with_name(out.name + ".run")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is already there; expected a new or empty folder, give another --out")
    if resume and not (run_dir / "state.json").is_file():
        raise UsageError(f"{run_dir}: holds no state of an interrupted run; start without --resume")
    if not resume and run_dir.exists():
        raise UsageError(
            f"{run_dir}: an interrupted run lies there; give --resume, or remove it to start anew"
        )
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: the folder {out.absolute().parent} does not exist; make it first")
    return run_dir
