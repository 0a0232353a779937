"""A folder that captures are put into, as the source: each file once, also across restarts.

    waiting until it has not grown for a while -> read, answered, handed to the sinks -> noted in the journal

The journal (``.netcls-journal.jsonl`` in the folder) holds a line a file, by name, size and time of change. A file that
was being read when the process was killed has no line, so it is read again: its flows have the same ``flow_id``. A file
that cannot be read is moved to ``bad/``.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from capture.errors import CaptureError, CheckpointError
from netcls.counters import Counters
from netcls.event_batch import EventBatch
from netcls.inputs import CAPTURE_SUFFIXES, COMPRESSED_SUFFIXES
from netcls.live import Answered, Pace
from netcls.pipeline import Answerer, Run, RunOptions

if TYPE_CHECKING:
    from netcls.step_queue import StepQueue

_LOG: Final = logging.getLogger("netcls.daemon")

JOURNAL: Final = ".netcls-journal.jsonl"
BAD: Final = "bad"
_ENDINGS: Final = tuple(plain + packed for plain in CAPTURE_SUFFIXES for packed in COMPRESSED_SUFFIXES)
_LOOK_S: Final = 0.25
_LONGEST_LINE: Final = 1 << 16

# name, size in bytes, time of change in nanoseconds
FileKey = tuple[str, int, int]


class Journal:
    """Which files are done.

    Args:
        path: of the journal; made when the first file is done.

    Attributes:
        done: keys of the files.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.done: set[FileKey] = set()
        self._is_torn = False
        if path.exists():
            self._read()

    def _read(self) -> None:
        with self._path.open("rb") as lines:
            while line := lines.readline(_LONGEST_LINE):
                self._is_torn = not line.endswith(b"\n")  # a kill in the middle of a line
                try:
                    entry = json.loads(line)
                    self.done.add((str(entry["name"]), int(entry["size"]), int(entry["mtime_ns"])))
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue

    def note(self, key: FileKey, **more: Any) -> None:
        """This file is done; on the disk before the next one is begun."""
        entry = dict(zip(("name", "size", "mtime_ns"), key, strict=True)) | more
        line = json.dumps(entry).encode() + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            os.write(descriptor, b"\n" + line if self._is_torn else line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._is_torn = False
        self.done.add(key)


class SpoolRun:
    """What a :class:`netcls.live.LiveRun` is, over the files of a folder; it ends when it is told to.

    Args:
        folder: to watch; not its sub-folders.
        options: how captures are read.
        answerer: not closed here.
        settle_s: so long a file must not have changed before it is read.

    Attributes:
        counters, books: the same: they balance after each file.
        warnings: one line each.
        n_done, n_bad, n_waiting: files.
    """

    queue: StepQueue | None = None

    def __init__(
        self, folder: str, options: RunOptions, answerer: Answerer, *, settle_s: float = 2.0
    ) -> None:
        self._folder = Path(folder)
        self._options, self._settle_s = options, settle_s
        self._answerer = answerer
        self._next_answerer: Answerer | None = None
        self.counters = Counters()
        self.books = self.counters
        self.warnings: list[str] = []
        self.pace = Pace(0, 0.0)
        self.on_news: Callable[[], None] | None = None
        self.on_answered: Callable[[Answered], None] | None = None
        self.at_predict: Callable[[Any], None] | None = None
        self.on_done: Callable[[], None] | None = None
        self._beat: Callable[[], None] = lambda: None
        self._at_block: Callable[[int], None] | None = None
        self._stopping = threading.Event()
        self._journal = Journal(self._folder / JOURNAL)
        self._seen: dict[str, FileKey] = {}
        self._steady_since_s: dict[str, float] = {}
        self.n_done = self.n_bad = self.n_waiting = 0

    @property
    def answerer(self) -> Answerer:
        """Who answers now."""
        return self._answerer

    def swap(self, answerer: Answerer) -> None:
        """Let another model answer, from the next file on.

        Raises:
            CheckpointError: if it reads another representation.
        """
        if not answerer.reads_like(self._answerer):
            raise CheckpointError("a model of another representation; restart netcls to change it")
        self._next_answerer = answerer

    def watch(
        self,
        beat: Callable[[], None],
        at_block: Callable[[int], None] | None = None,
        at_decode: Callable[[int], None] | None = None,
    ) -> None:
        """As for a live run."""
        self._beat, self._at_block = beat, at_block or at_decode

    def spool_status(self) -> dict[str, int]:
        """Files by what became of them."""
        return {"done": self.n_done, "bad": self.n_bad, "waiting": self.n_waiting}

    def start(self) -> None:
        """Nothing: the iteration looks into the folder."""

    def stop(self) -> None:
        """End soon. A file that is being read is begun anew by the next start."""
        self._stopping.set()

    def close(self) -> None:
        """Nothing is held."""

    def __iter__(self) -> Iterator[EventBatch]:
        while not self._stopping.is_set():
            self._sign_of_life()
            key = self._next_file()
            if key is None:
                self._stopping.wait(_LOOK_S)
                continue
            yield from self._one_file(key)

    def _sign_of_life(self) -> None:
        self._beat()
        if self.on_news is not None:
            self.on_news()

    def _next_file(self) -> FileKey | None:
        """The oldest file that is complete and not done yet."""
        import time

        now_s = time.monotonic()
        ready: list[FileKey] = []
        self.n_waiting = 0
        present = self._candidates()
        for name, key in present.items():
            if key in self._journal.done:
                continue
            self.n_waiting += 1
            if self._seen.get(name) != key:
                self._seen[name], self._steady_since_s[name] = key, now_s
            if now_s - self._steady_since_s[name] >= self._settle_s:
                ready.append(key)
        for name in self._seen.keys() - present.keys():
            del self._seen[name], self._steady_since_s[name]
        return min(ready, key=lambda key: (key[2], key[0]), default=None)

    def _candidates(self) -> dict[str, FileKey]:
        found: dict[str, FileKey] = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or not entry.name.lower().endswith(_ENDINGS):
                        continue
                    try:
                        if entry.is_file(follow_symlinks=False):
                            stat = entry.stat(follow_symlinks=False)
                            found[entry.name] = (entry.name, stat.st_size, stat.st_mtime_ns)
                    except OSError:
                        continue  # gone in between
        except OSError as error:
            text = f"cannot look into the spool '{self._folder}': {error.strerror}; waiting for it"
            if self.warnings[-1:] != [text]:
                self.warnings.append(text)
        return found

    def _one_file(self, key: FileKey) -> Iterator[EventBatch]:
        if self._next_answerer is not None:
            self._answerer, self._next_answerer = self._next_answerer, None
        path = self._folder / key[0]
        run = Run([str(path)], self._options, classify=True, answerer=self._answerer)
        n_flows = 0
        try:
            for batch in run:
                n_flows += len(batch)
                yield batch
                self._sign_of_life()
                if self._at_block is not None:
                    self._at_block(len(batch))
                if self._stopping.is_set():
                    self.warnings.append(
                        f"'{path}' was not read to its end; the next start reads it again from the beginning"
                    )
                    return
        except CaptureError as error:
            self._set_aside(path, key, error)
        else:
            if self.on_done is not None:
                self.on_done()
            self._journal.note(key, flows=n_flows)
            self.n_done += 1
        self.warnings += run.warnings
        counters = copy(self.counters)
        counters.by_reason = self.counters.by_reason.copy()
        counters.tunnels_not_followed = self.counters.tunnels_not_followed.copy()
        counters.add(run.counters)
        self.counters = self.books = counters

    def _set_aside(self, path: Path, key: FileKey, error: CaptureError) -> None:
        self.n_bad += 1
        _LOG.warning("spool: %s; it is moved to %s/", error, BAD)
        try:
            (self._folder / BAD).mkdir(mode=0o750, exist_ok=True)
            target = self._folder / BAD / path.name
            if target.exists():
                target = target.with_name(f"{target.name}.{key[2]}")
            path.rename(target)
        except OSError as trouble:
            self.warnings.append(f"cannot move '{path}' to {BAD}/: {trouble.strerror}; it is passed over")
            self._journal.note(key, bad=True)
