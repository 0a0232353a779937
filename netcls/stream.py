"""The Python interface to live interfaces: a stream of events, as a context manager."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, Self

from capture.errors import UsageError, did_you_mean
from netcls.event import as_dict, events_of
from netcls.live_open import Listening, open_interfaces

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from netcls.counters import Counters
    from netcls.event_batch import EventBatch

_OWN_OPTIONS: Final = ("count", "write")


def sniff(
    interfaces: str | Iterable[str], model: str | os.PathLike[str] | Checkpoint = "default", **options: Any
) -> Stream:
    """Classify the flows of live interfaces, as they come.

        with netcls.sniff("eth0", duration_s=60) as stream:
            for event in stream:
                print(event["netcls"]["label"])

    The interfaces are open when this returns; packets are taken from the first event that is asked for on. Needs
    CAP_NET_RAW for that moment, and keeps what privileges the process has (the command ``netcls sniff`` drops them).

    Args:
        interfaces: name, or several.
        model: name or folder of a checkpoint, or one that :func:`netcls.load` gave.
        options: fields of :class:`netcls.live.LiveOptions` (``emit``, ``duration_s``, ``idle_timeout_s``, ...) and of
            :class:`netcls.live_open.Listening` (``bpf``, ``promisc``, ``workers``, ``backend``, ``ring_mib``),
            ``count`` (end after so many flows) and ``write`` (save every packet to this pcap).

    Raises:
        UsageError: for an option that does not exist or cannot be.
        LiveError: if an interface cannot be opened.
        CheckpointError: if the model cannot be loaded.
    """
    names = (interfaces,) if isinstance(interfaces, str) else tuple(interfaces)
    return Stream(names, model, options)


class Stream:
    """Events of live interfaces: dicts exactly like the JSON lines of ``netcls sniff``. Iterate it once.

    Attributes:
        counters: the books; complete when the iteration has ended.
        warnings: one line each.
    """

    def __init__(
        self, names: tuple[str, ...], model: str | os.PathLike[str] | Checkpoint, options: dict[str, Any]
    ) -> None:
        from netcls.live import LiveOptions, LiveRun, first_flows, refuse_mixed_link_types
        from netcls.output import Output

        _refuse_unknown(options, LiveOptions)
        listening = Listening(names, **_only(options, Listening))
        checkpoint = None if isinstance(model, str | os.PathLike) else model
        name = os.fspath(model) if isinstance(model, str | os.PathLike) else str(model.path)
        live = LiveOptions(**_only(options, LiveOptions), model=name)
        if options.get("write") and listening.workers > 1:
            raise UsageError("write with several workers: each sees a part of the packets; use one")
        self._open = ExitStack()
        opened = open_interfaces(listening)
        self._open.callback(opened.close)
        try:
            save = (
                self._open.enter_context(Output(os.fspath(options["write"])))
                if options.get("write")
                else None
            )
            if listening.workers > 1:
                from netcls.live_workers import WorkerPool

                run: LiveRun | WorkerPool = WorkerPool(opened.rings, live)
            else:
                sources = opened.sources()
                for source in sources:
                    self._open.callback(source.close)
                if save is not None:
                    refuse_mixed_link_types(sources)
                run = LiveRun(sources, live, checkpoint=checkpoint, save=save)
            self._run = run
            self._open.callback(run.close)
        except BaseException:
            self._open.close()
            raise
        self._run.warnings[:0] = opened.warnings
        batches: Iterable[EventBatch] = self._run
        if options.get("count"):
            batches = first_flows(batches, options["count"], self._run.stop)
        self._batches = iter(batches)
        self._events = (as_dict(event) for batch in self._batches for event in events_of(batch))

    @property
    def counters(self) -> Counters:
        """See the class."""
        return self._run.counters

    @property
    def warnings(self) -> list[str]:
        """See the class."""
        return self._run.warnings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._events)

    def batches(self) -> Iterator[EventBatch]:
        """The same events as columns, instead of as dicts."""
        return self._batches

    def stop(self) -> None:
        """End all flows; the iteration ends behind their events. From any thread."""
        self._run.stop()

    def close(self) -> None:
        """Leave the interfaces; events that were not asked for are gone. May be called again."""
        self._open.close()


def _refuse_unknown(options: dict[str, Any], live: type[Any]) -> None:
    known = [
        f.name
        for kind in (live, Listening)
        for f in fields(kind)
        if f.name not in ("model", "names", "strict")
    ]
    known += _OWN_OPTIONS
    for name in options:
        if name not in known:
            raise UsageError(f"sniff() has no option '{name}'{did_you_mean(name, known)}")


def _only(options: dict[str, Any], kind: type[Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in options.items() if name in names}
