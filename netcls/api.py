"""The Python interface: load a checkpoint, classify captures, take the events as dicts or as a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capture.errors import UsageError, did_you_mean
from netcls.event import as_dict, events_of
from netcls.inputs import find_captures
from netcls.pipeline import Run, RunOptions

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from models.checkpoint import Checkpoint
    from netcls.counters import Counters
    from netcls.event_batch import EventBatch

PathLike = str | os.PathLike[str]


def load(name: PathLike = "default") -> Checkpoint:
    """Load a checkpoint and check everything in it against everything.

    Args:
        name: of a checkpoint that ships with netcls, or a folder.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    from models.checkpoint import load_checkpoint

    return load_checkpoint(os.fspath(name))


def classify(
    paths: PathLike | Iterable[PathLike],
    model: PathLike | Checkpoint = "default",
    **options: Any,
) -> Result:
    """Classify the flows of captures.

    Nothing is read before the result is iterated or made a table.

    Args:
        paths: capture file, folder of captures, ``-`` (standard input), or several of these.
        model: name or folder of a checkpoint, or one that :func:`load` gave.
        options: fields of :class:`netcls.pipeline.RunOptions`, such as ``idle_timeout_s`` or ``top``.

    Raises:
        UsageError: for an option that does not exist.
        CheckpointError: if the model cannot be loaded.
        CaptureError: from the result, for a capture that cannot be read.
    """
    known = [name for name in RunOptions.__dataclass_fields__ if name != "model"]
    for name in options:
        if name not in known:
            raise UsageError(f"classify() has no option '{name}'{did_you_mean(name, known)}")
    checkpoint = load(model) if isinstance(model, str | os.PathLike) else model
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    return Result([os.fspath(path) for path in several], RunOptions(**options), checkpoint)


def finetune(
    data: PathLike,
    *,
    out: PathLike,
    base: str | None = None,
    on_progress: Callable[[str, dict[str, Any]], None] | None = None,
    **options: Any,
) -> Checkpoint:
    """Train a model for your own labels; the same as the command ``netcls finetune``.

    Args:
        data: labelled captures: a folder of class folders, a table of captures, or a table of flows.
        out: checkpoint folder to make; must not exist or be empty. The report lies in it as ``report.json``.
        base: name or folder of the checkpoint to start from; ``none``: random weights; None: the default checkpoint, or
            random weights where the options say what the network is.
        on_progress: called with a stage and its details.
        options: fields of :class:`netcls.finetuning.FinetuneOptions`, such as ``split`` or ``epochs``.

    Returns:
        The checkpoint, loaded from ``out``.

    Raises:
        UsageError: for an option that does not exist or cannot be.
        DataError: if the labelled data cannot be used.
        CheckpointError: if the base cannot be loaded.
    """
    from netcls.finetuning import FinetuneOptions, run_finetune

    known = [name for name in FinetuneOptions.__dataclass_fields__ if name not in ("data", "out", "base")]
    for name in options:
        if name not in known:
            raise UsageError(f"finetune() has no option '{name}'{did_you_mean(name, known)}")
    run_finetune(FinetuneOptions(os.fspath(data), os.fspath(out), base, **options), on_progress)
    return load(Path(out).absolute())


class Result:
    """Classified flows, as an iterable of events: dicts exactly like the JSON lines of the command.

    Every iteration reads the captures again.

    Attributes:
        counters: the books of the latest iteration; None before the first.
        warnings: of the latest iteration, one line each.
    """

    def __init__(self, paths: list[str], options: RunOptions, checkpoint: Checkpoint) -> None:
        self._paths = paths
        self._options = options
        self._checkpoint = checkpoint
        self.counters: Counters | None = None
        self.warnings: list[str] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches():
            yield from map(as_dict, events_of(batch))

    def batches(self) -> Iterator[EventBatch]:
        """The same flows as columns."""
        captures = [path for given in self._paths for path in find_captures(given)]
        with Run(captures, self._options, classify=True, checkpoint=self._checkpoint) as run:
            self.counters, self.warnings = run.counters, run.warnings
            yield from run

    def to_arrow(self) -> pa.Table:
        """All events as one flat table, nested names joined by ``_``.

        Raises:
            UsageError: where pyarrow is not installed.
        """
        from netcls.arrow import event_schema, record_batch, require_pyarrow

        return require_pyarrow().Table.from_batches(map(record_batch, self.batches()), event_schema())

    def to_pandas(self) -> pd.DataFrame:
        """As :meth:`to_arrow`, as a pandas DataFrame."""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> pl.DataFrame:
        """As :meth:`to_arrow`, as a polars DataFrame."""
        import polars as pl

        return pl.from_arrow(self.to_arrow())
