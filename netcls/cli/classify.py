"""``netcls classify`` and ``netcls flows``: captures in, one line per flow out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from capture.errors import CaptureError, NetclsError, UsageError
from netcls.cli.console import Progress, note, report
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
    paths_argument,
    precision_option,
    talk_options,
    threads_option,
)
from netcls.inputs import find_captures

if TYPE_CHECKING:
    from netcls.event_batch import EventBatch
    from netcls.formats import EventWriter
    from netcls.live import LiveRun
    from netcls.live_workers import WorkerPool
    from netcls.output import Output
    from netcls.pipeline import Run, RunOptions

F = TypeVar("F", bound=Callable[..., Any])

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130


def flow_options(function: F) -> F:
    """Options that decide what a flow is."""
    for decorate in (
        click.option("--strict", is_flag=True, help="A capture that is cut off is an error, not a warning."),
        click.option(
            "--follow-idle-s",
            type=click.FloatRange(min=0),
            metavar="SECONDS",
            default=0.0,
            show_default="until interrupted",
            help="Stop following when nothing has come for so many seconds.",
        ),
        click.option("--follow", is_flag=True, help="At the end of a file wait for more, as `tail -f` does."),
        click.option(
            "--as-one-stream",
            is_flag=True,
            help="Captures are parts of one, in the order of their first packets: flows go on in the next file.",
        ),
        flow_table_options,
        handshake_option,
    ):
        function = decorate(function)
    return function


@click.command("classify", cls=NetclsCommand)
@paths_argument
@model_option
@click.option(
    "--top", type=click.IntRange(min=0), metavar="N", default=0, help="Best labels to give with each answer."
)
@click.option("--summary", is_flag=True, help="Per label: flows, packets, bytes; instead of the flows.")
@flow_options
@decode_options
@format_option("table", "jsonl", "csv", "parquet")
@event_output_option
@threads_option
@device_option
@precision_option
@early_exit_option
@talk_options
def classify(**options: Any) -> int:
    """Label every flow of captures.

    PATH is a capture (pcap or pcapng, plain or in gzip, zstd, xz, bzip2, lz4), a folder of captures, or - for
    standard input.
    """
    return _deliver(options, classify=True)


@click.command("flows", cls=NetclsCommand)
@paths_argument
@flow_options
@decode_options
@format_option("table", "jsonl", "csv", "parquet", "none")
@event_output_option
@talk_options
def flows(**options: Any) -> int:
    """Flow records only, without a model.

    PATH as for classify. Format none counts and writes nothing.
    """
    return _deliver(options, classify=False)


def refuse_stats(options: dict[str, Any]) -> None:
    """Raise UsageError if ``--stats`` has no place in the output."""
    if options["stats"] and (options["format"] in ("csv", "parquet") or options.get("summary")):
        clash = "--summary" if options.get("summary") else f"--format {options['format']}"
        raise UsageError(f"--stats has no place in {clash}; use --format jsonl, or --verbose")


def _deliver(options: dict[str, Any], *, classify: bool) -> int:
    from netcls.pipeline import Run

    check_destination(options)
    refuse_stats(options)
    desk = Desk(options)
    captures = desk.find(options["paths"])
    make = partial(_writer, classify=classify)
    with destination(options, make, is_live=False) as (writer, discard):
        with Run(captures, _run_options(options), classify=classify, on_error=desk.failed) as run:
            interrupted = _write_all(run, writer, desk)
            if options["stats"]:
                writer.write_stats(desk.stats_event(run))
        writer.finish()
        if desk.n_failed and desk.n_failed == desk.n_inputs:
            discard()
    desk.close(run)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_MISTAKE if desk.n_failed else 0


def _write_all(run: Run, writer: EventWriter, desk: Desk) -> bool:
    """True if it was interrupted; what came out until then is written."""
    try:
        for batch in run:
            desk.saw(batch, run)
            writer.write(batch)
    except KeyboardInterrupt:
        return True
    finally:
        desk.progress.clear()
    return False


def _writer(options: dict[str, Any], output: Output, *, classify: bool) -> EventWriter:
    name = options["format"] or ("table" if output.is_terminal else "jsonl")
    if options.get("summary"):
        from netcls.summary import SummaryWriter

        return SummaryWriter(name, output)
    from netcls.formats import event_writer

    return event_writer(name, output, has_labels=classify)


def _run_options(options: dict[str, Any]) -> RunOptions:
    from netcls.pipeline import RunOptions

    return RunOptions(**run_fields(options, RunOptions))


def run_fields(options: dict[str, Any], kind: type[RunOptions]) -> dict[str, Any]:
    """What the flags say of the fields of ``kind``."""
    given = {name: options[name] for name in kind.__dataclass_fields__ if name in options}
    return given | {"memory_limit_bytes": options["memory_limit_mib"] << 20}


@dataclass
class Desk:
    """What goes to standard error beside a run: failures, warnings, progress, the books."""

    options: dict[str, Any]
    is_live: bool = False
    n_inputs: int = 0
    n_failed: int = 0
    n_flows: int = 0
    n_warned: int = 0
    newest_ts_ns: int = 0
    sources: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.progress = Progress(not (self.options["quiet"] or self.options["no_progress"]))

    def find(self, paths: tuple[str, ...]) -> list[str]:
        """The captures of all PATHs; those that hold none are reported."""
        captures: list[str] = []
        for path in paths:
            try:
                captures += find_captures(path)
            except UsageError as error:
                self.n_inputs += 1
                self.failed(error)
        self.n_inputs += len(captures)
        return captures

    def failed(self, error: CaptureError | NetclsError) -> None:
        """Report an input that cannot be used."""
        self.progress.clear()
        self.n_failed += 1
        report("error", str(error))

    def saw(self, batch: EventBatch, run: Run | LiveRun | WorkerPool) -> None:
        """Note what a batch says, warn of what happened, draw the progress."""
        self.n_flows += len(batch) if batch.final else 0
        self.sources.add(batch.source)
        self.newest_ts_ns = max(self.newest_ts_ns, int(batch.records["last_ts_ns"].max()))
        self.warn(run)
        self.progress.show(f"{batch.source}: {self.n_flows:,} flows")

    def stats_event(self, run: Run | LiveRun | WorkerPool) -> Any:
        """The counters as the last event."""
        from netcls.event import stats_event

        stats: dict[str, Any] = {"netcls": run.counters.as_dict()}
        if self.is_live:
            stats = {"capture": run.counters.capture()} | stats
        return stats_event(stats, self.newest_ts_ns, self.sources, is_live=self.is_live)

    def close(self, run: Run | LiveRun | WorkerPool) -> None:
        """Last warnings, and the books if they are wanted."""
        self.warn(run)
        if self.is_live and not self.options["quiet"]:
            for line in run.counters.live_lines():
                note(f"netcls: {line}")
        if self.options["verbose"]:
            from netcls.table import books_lines

            for line in books_lines(run.counters.as_dict()):
                note(line)

    def warn(self, run: Run | LiveRun | WorkerPool) -> None:
        """Report what was not reported yet."""
        for text in run.warnings[self.n_warned :]:
            self.progress.clear()
            if not self.options["quiet"]:
                report("warning", text)
        self.n_warned = len(run.warnings)
