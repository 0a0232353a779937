"""``netcls sniff``: live interfaces in, events out as soon as there is something to say.

Sockets are opened and every privilege is dropped before numpy, numba and torch are imported (see ``capture.live``).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from capture.errors import UsageError
from netcls.cli.classify import Desk, refuse_stats, run_fields
from netcls.cli.console import note
from netcls.cli.destination import check_destination, destination
from netcls.cli.options import (
    NetclsCommand,
    decode_options,
    device_option,
    early_exit_option,
    event_output_option,
    flow_table_options,
    format_option,
    handshake_option,
    model_option,
    precision_option,
    talk_options,
    threads_option,
)
from netcls.live_open import BACKENDS, Listening, open_interfaces
from netcls.output import Output

if TYPE_CHECKING:
    from collections.abc import Callable

    from netcls.event_batch import EventBatch
    from netcls.formats import EventWriter
    from netcls.live import LiveRun
    from netcls.live_open import Opened
    from netcls.live_workers import WorkerPool

EXIT_INTERRUPTED = 130
# After so long a thread hands Python's lock over: the ring must not wait 5 ms for each of its steps.
_SWITCH_INTERVAL_S: Final = 0.0005


@click.command("sniff", cls=NetclsCommand)
@click.argument("interfaces", nargs=-1, required=True, metavar="IFACE...")
@model_option
@click.option(
    "--top", type=click.IntRange(min=0), metavar="N", default=0, help="Best labels to give with each answer."
)
@click.option(
    "--summary", is_flag=True, help="Per label: flows, packets, bytes; at the end, instead of the flows."
)
@click.option(
    "--emit",
    type=click.Choice(["first", "last", "both"]),
    default="both",
    help="An event when a flow is answered, when it ends, or both (and one between when the answer changes).",
)
@click.option(
    "--duration-s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    show_default="until Ctrl-C",
    help="End by itself after so many seconds.",
)
@click.option(
    "--count", type=click.IntRange(min=1), metavar="N", show_default="no end", help="End after so many flows."
)
@click.option("--bpf", metavar="EXPR", default="", help="Only packets that match, as for tcpdump.")
@click.option("--promisc", is_flag=True, help="Also frames that are meant for other hosts.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    help="Processes that share the packets by flow.",
)
@click.option("--write", metavar="FILE.pcap", help="Save every packet that was seen; appears when complete.")
@click.option(
    "--backend",
    type=click.Choice(list(BACKENDS)),
    default="ring",
    help="ring: Linux; scapy: portable, slow, counts no drops.",
)
@click.option(
    "--ring-mib", type=click.IntRange(min=2), metavar="N", default=32, help="Memory of a ring, MiB."
)
@click.option(
    "--ready-timeout-s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=1.0,
    help="A flow that lacks packets is answered early after so many seconds; 0: never.",
)
@click.option(
    "--max-latency-ms",
    type=click.FloatRange(min=0),
    metavar="MS",
    default=20.0,
    help="So many milliseconds a ready flow waits for others to make a full batch.",
)
@decode_options
@handshake_option
@flow_table_options
@format_option("table", "jsonl", "csv", "parquet")
@event_output_option
@threads_option
@device_option
@precision_option
@early_exit_option
@talk_options
def sniff(**options: Any) -> int:
    """Label the flows of live interfaces, as they come.

    Needs CAP_NET_RAW (or sudo), and drops every privilege once the interfaces are open. Ctrl-C ends all flows and
    delivers their answers and the books; a second one ends at once.
    """
    check_destination(options)
    refuse_stats(options)
    listening = Listening(
        names=options["interfaces"],
        backend=options["backend"],
        bpf=options["bpf"],
        promisc=options["promisc"],
        workers=options["workers"],
        ring_mib=options["ring_mib"],
    )
    if options["write"] and listening.workers > 1:
        raise UsageError("--write with several workers: each sees a part of the packets; use --workers 1")
    from capture.live.privileges import drop_privileges

    opened = open_interfaces(listening)
    try:
        drop_privileges()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        return _deliver(options, opened)
    finally:
        opened.close()


def _deliver(options: dict[str, Any], opened: Opened) -> int:
    desk = Desk(options, is_live=True)
    names = options["interfaces"]
    with ExitStack() as stack:
        writer, _ = stack.enter_context(destination(options, _writer, is_live=True))
        save = stack.enter_context(Output(options["write"])) if options["write"] else None
        run = _run(options, opened, save)
        stack.callback(run.close)
        run.warnings[:0] = opened.warnings
        # The signals are ours until the last event has left.
        signals = stack.enter_context(_stop_on_signals(run.stop))
        run.start()
        if not options["quiet"]:
            note(f"netcls: capturing on {', '.join(names)}; Ctrl-C ends")
        run.on_news = partial(desk.warn, run)
        for batch in _events(run, options):
            desk.saw(batch, run)
            if not options["summary"] or batch.final:
                writer.write(batch)
        desk.progress.clear()
        if options["stats"]:
            desk.sources.update(names)
            writer.write_stats(desk.stats_event(run))
        writer.finish()
        desk.close(run)
    return EXIT_INTERRUPTED if signal.SIGINT in signals else 0


def _events(run: LiveRun | WorkerPool, options: dict[str, Any]) -> Iterator[EventBatch]:
    if options["count"] is None:
        yield from run
        return
    from netcls.live import first_flows

    yield from first_flows(run, options["count"], run.stop)


def _run(options: dict[str, Any], opened: Opened, save: Output | None) -> LiveRun | WorkerPool:
    from netcls.live import LiveOptions, LiveRun, refuse_mixed_link_types

    live_options = LiveOptions(**run_fields(options, LiveOptions))
    if len(opened.rings) > 1:
        from netcls.live_workers import WorkerPool

        return WorkerPool(opened.rings, live_options)
    sources = opened.sources()
    if save is not None:
        refuse_mixed_link_types(sources)
    return LiveRun(sources, live_options, save=save)


def _writer(options: dict[str, Any], output: Output) -> EventWriter:
    name = options["format"] or ("table" if output.is_terminal else "jsonl")
    if options["summary"]:
        from netcls.summary import SummaryWriter

        return SummaryWriter(name, output)
    if name == "table":
        from netcls.live_table import LiveTableWriter

        return LiveTableWriter(output)
    from netcls.formats import event_writer

    return event_writer(name, output, has_labels=True)


@contextmanager
def _stop_on_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM calls ``stop``, the second interrupts. Yields the list of those that came."""
    came: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
