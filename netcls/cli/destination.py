"""Where a run's events go: standard output or a file in some format, or a sink of the daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from capture.errors import UsageError
from netcls.cli.console import report
from netcls.output import Output
from netcls.sinks.uri import SinkUri, parse_uri

if TYPE_CHECKING:
    from netcls.formats import EventWriter

# Of these a file is made that appears when it is complete, unless settings ask for one that grows.
_FILE_SCHEMES: Final = ("-", "file", "csv")
_WITHOUT_STATS: Final = ("csv", "parquet", "zeek", "ipfix+udp", "ipfix+tcp")

MakeWriter = Callable[[dict[str, Any], Output], "EventWriter"]


def check_destination(options: dict[str, Any]) -> None:
    """Find what cannot be, before anything is opened; ``csv:FILE`` sets ``--format``.

    Raises:
        UsageError: if ``--output`` cannot be, or another option has no place beside it.
    """
    uri = parse_uri(options["output"])
    if options["stats"] and uri.scheme in _WITHOUT_STATS:
        raise UsageError(f"--stats has no place in {uri.scheme}:; use --format jsonl, or --verbose")
    if uri.scheme == "csv" and not uri.settings:
        if options["format"] not in (None, "csv"):
            raise UsageError(f"--format {options['format']} has no place in csv:; leave it out")
        options["format"] = "csv"
    elif not _is_file(uri):
        for name in ("format", "summary"):
            if options.get(name):
                raise UsageError(
                    f"--{name} has no place with --output {uri.scheme}:, which has a form of its own; leave it out"
                )


@contextmanager
def destination(
    options: dict[str, Any], make: MakeWriter, *, is_live: bool
) -> Iterator[tuple[EventWriter, Callable[[], None]]]:
    """The writer of a run, and what to call if nothing of it shall be left.

    Args:
        options: of the command.
        make: the writer for an output, where the output is one.
        is_live: see :class:`netcls.sinks.event_writer.SinkEventWriter`.
    """
    uri = parse_uri(options["output"])
    if _is_file(uri):
        with Output(uri.path or "-") as output:
            yield make(options, output), output.discard
        return
    from netcls.sinks.event_writer import SinkEventWriter

    def on_state(name: str, is_up: bool, why: str) -> None:
        if not options["quiet"]:
            report("warning", f"sink '{name}' is {'up' if is_up else 'down'}: {why}")

    with SinkEventWriter(uri, is_live=is_live, on_state=on_state) as writer:
        yield writer, lambda: None
    if (loss := writer.loss()) and not options["quiet"]:
        report("warning", loss)


def _is_file(uri: SinkUri) -> bool:
    return uri.scheme in _FILE_SCHEMES and not uri.settings and not uri.runner_settings
