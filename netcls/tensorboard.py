"""Curves of a training run as TensorBoard event files; the package that writes them comes with ``netcls[train]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from capture.errors import UsageError

CURVES: Final = ("loss", "lr", "samples_per_s")
EVERY_STEPS: Final = 10
"""Of the first step and of every tenth: a run of 150,000 steps then fills about 2 MB."""


class EventLog:
    """Writes one event file; close it, or use it as a context.

    Args:
        folder: for TensorBoard's ``--logdir``; made if it is not there.
        resume: the run goes on: what an earlier file has of later steps is told to be void.

    Raises:
        UsageError: if tensorboardX is not installed, or nothing can be written there.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        try:
            import tensorboardX
        except ImportError:
            raise UsageError(
                "--tensorboard: got a folder, but the package tensorboardX is not installed; "
                "pip install 'netcls[train]', or leave it out"
            ) from None
        self._make = tensorboardX.SummaryWriter
        self._folder = folder
        self._resume = resume
        self._writer: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--tensorboard: {folder}: cannot be made ({error.strerror})") from None

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, details: dict[str, Any]) -> None:
        """One step: its number in ``step``, :data:`CURVES`, and the parts of the loss, if it has any."""
        step = details["step"]
        if self._writer is None:
            # Made with the first step, because only now it is known where a resumed run goes on.
            self._writer = self._make(str(self._folder), purge_step=step if self._resume else None)
        elif step % EVERY_STEPS:
            return
        for name, value in details.items():
            if name in CURVES or name.endswith("_loss"):
                self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer is not None:
            self._writer.close()
