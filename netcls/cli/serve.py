"""``netcls serve``: the daemon. Interfaces or a spool of captures in; sinks, control socket, page and API out.

Order: read and check everything, open the interfaces, drop every privilege, and only then import numpy and torch.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, cast

import click

from capture.errors import UsageError
from netcls.cli.console import report
from netcls.cli.options import (
    ARGUMENTS,
    CONFIG_PATH,
    NetclsCommand,
    decode_options,
    device_option,
    handshake_option,
    model_option,
    precision_option,
    threads_option,
)
from netcls.daemon.checks import early_problems, output_problems
from netcls.daemon.config import ServeConfig
from netcls.daemon.places import control_path
from netcls.live_open import BACKENDS, Listening, open_interfaces

if TYPE_CHECKING:
    from netcls.daemon.appliance import Appliance
    from netcls.live_open import Opened
    from netcls.pipeline import Answerer
    from netcls.sinks.base import Sink

EXIT_MISTAKE: Final = 2
EXIT_FORCED: Final = 130
_SWITCH_INTERVAL_S: Final = 0.0005  # see netcls.cli.sniff
_PAGE_QUEUE_EVENTS: Final = 20_000


class _Reread(dict[str, Any]):
    """Where the options go when the command line is read again, for a reload."""


def _seconds(default: float, text: str, *names: str, may_be_zero: bool = False) -> Callable[[Any], Any]:
    return click.option(
        *names,
        type=click.FloatRange(min=0, min_open=not may_be_zero),
        metavar="SECONDS",
        default=default,
        help=text,
    )


def _number(default: int, text: str, *names: str, least: int = 1) -> Callable[[Any], Any]:
    return click.option(*names, type=click.IntRange(min=least), metavar="N", default=default, help=text)


@click.command("serve", cls=NetclsCommand)
@click.option("--iface", multiple=True, metavar="IFACE", help="Interface to capture; may repeat.")
@click.option(
    "--spool", metavar="DIR", help="Instead: a folder that captures are put into; each is read once."
)
@_seconds(
    2.0, "So long a spooled file has not grown before it is read.", "--spool-settle-s", may_be_zero=True
)
@model_option
@click.option("--small-model", metavar="NAME|DIR", help="Answers under overload; of the same representation.")
@_number(0, "Best labels to give with each answer.", "--top", least=0)
@click.option(
    "--output",
    "-o",
    multiple=True,
    metavar="URI",
    help="Where events go: file:, unix:, kafka:, -, ...; may repeat.",
)
@_number(10_000, "Events that wait for each output.", "--queue-events")
@click.option(
    "--when-full",
    type=click.Choice(["block", "drop_oldest", "drop_newest"]),
    show_default="drop_oldest for interfaces, block for a spool",
    help="What a full queue does.",
)
@click.option("--listen", metavar="HOST:PORT|none", default="127.0.0.1:8710", help="Of the page and the API.")
@click.option("--token", metavar="TOKEN", help="Clients of the API must show it; better in a file.")
@click.option("--token-file", metavar="FILE", help="The token stands in there.")
@click.option(
    "--host-name", multiple=True, metavar="NAME", help="By which clients may call the page; may repeat."
)
@click.option("--store", metavar="FILE", show_default="in memory", help="History that survives a restart.")
@_number(1024, "Size of the history, MiB.", "--store-max-mib")
@_seconds(30 * 86_400.0, "Age of the history.", "--store-max-age-s")
@click.option("--control", metavar="PATH|auto|none", default="auto", help="Socket of `netcls ctl`.")
@click.option("--user", metavar="NAME", help="To become once the interfaces are open (root only).")
@click.option("--emit", type=click.Choice(["first", "last", "both"]), default="both", help="As for sniff.")
@click.option("--bpf", metavar="EXPR", default="", help="Only packets that match, as for tcpdump.")
@click.option("--promisc/--no-promisc", default=False, help="Also frames that are meant for other hosts.")
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="ring", help="As for sniff.")
@_number(32, "Memory of a ring, MiB.", "--ring-mib", least=2)
@_seconds(
    1.0, "A flow that lacks packets is answered early after so long.", "--ready-timeout-s", may_be_zero=True
)
@click.option(
    "--max-latency-ms",
    type=click.FloatRange(min=0),
    metavar="MS",
    default=20.0,
    help="So long a ready flow waits for others to make a full batch.",
)
@_number(16_384, "Ready flows that may wait for the model.", "--queue-flows", least=256)
@_seconds(120.0, "A flow ends after so long without a packet.", "--idle-timeout-s")
@_seconds(1800.0, "A flow ends when it is this old.", "--active-timeout-s")
@_seconds(
    5.0,
    "Late packets of a closed TCP flow still count to it for so long.",
    "--tcp-linger-s",
    may_be_zero=True,
)
@_number(256, "Ceiling of the flow table, MiB.", "--memory-limit-mib")
@_number(0, "Leave out flows with fewer packets.", "--min-packets", least=0)
@_seconds(10.0, "Between two stats events.", "--stats-interval-s")
@_seconds(10.0, "So long a stop may take.", "--drain-s")
@_seconds(10.0, "A stage that stands still for so long ends the process.", "--stall-timeout-s")
@decode_options
@handshake_option
@threads_option
@device_option
@precision_option
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
@click.option("--quiet", "-q", is_flag=True, help="Log warnings only.")
@click.pass_context
def serve(ctx: click.Context, /, **options: Any) -> int:
    """Run as a service: classify what passes, for months.

    Signals: TERM and INT stop (twice: at once), HUP reopens files, reads the configuration again and swaps the model,
    USR1 logs the counters.
    """
    reread = ctx.find_root().obj
    if isinstance(reread, _Reread):
        reread.update(options)
        return 0
    from netcls.daemon.log import set_up_log

    set_up_log(quiet=options["quiet"], verbose=options["verbose"])
    config = ServeConfig.of(options)
    problems = early_problems(config)
    if problems:
        return _refuse(problems + output_problems(config))
    with ExitStack() as stack:
        opened = _open(config)
        if opened is not None:
            stack.callback(opened.close)
        _drop(config)
        if problems := output_problems(config):
            return _refuse(problems)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        return _serve(config, opened, partial(_read_again, list(ctx.meta[ARGUMENTS])), stack)


def check_values(root: click.Context, values: dict[str, Any], file: str) -> None:
    """Find what is wrong with the ``[serve]`` table of a file, beyond its types.

    Raises:
        UsageError: with all of it, the first line first.
    """
    with serve.make_context("serve", [], parent=root, default_map=values) as ctx:
        ctx.meta[CONFIG_PATH] = file
        config = ServeConfig.of(ctx.params)
    problems = early_problems(config, as_if_starting=False) + output_problems(config)
    for problem in problems[1:]:
        report("error", f"{file}: {problem}")
    if problems:
        raise UsageError(f"{file}: {problems[0]}")


def _refuse(problems: list[str]) -> int:
    for problem in problems:
        report("error", problem)
    return EXIT_MISTAKE


def _read_again(arguments: list[str]) -> ServeConfig:
    """The configuration as the same command line gives it now.

    Raises:
        UsageError: if it cannot be used now.
    """
    from netcls.cli.main import cli, usage_text

    options = _Reread()
    try:
        with cli.make_context("netcls", list(arguments), obj=options) as ctx:
            cli.invoke(ctx)
    except click.ClickException as error:
        raise UsageError(usage_text(error)) from None
    config = ServeConfig.of(options)
    if problems := early_problems(config, as_if_starting=False) + output_problems(config):
        raise UsageError("; ".join(problems))
    return config


def _open(config: ServeConfig) -> Opened | None:
    """The interfaces; the only step that needs CAP_NET_RAW."""
    if not config.is_live:
        return None
    return open_interfaces(
        Listening(
            names=config.iface,
            backend=config.backend,
            bpf=config.bpf,
            promisc=config.promisc,
            ring_mib=config.ring_mib,
        )
    )


def _drop(config: ServeConfig) -> None:
    from capture.live.privileges import drop_privileges

    drop_privileges(config.user)


def _serve(
    config: ServeConfig, opened: Opened | None, reread: Callable[[], ServeConfig], stack: ExitStack
) -> int:
    from netcls.daemon.appliance import Appliance
    from netcls.daemon.control import ControlServer
    from netcls.daemon.faults import Faults

    page = _Page.of(config)
    appliance = Appliance(
        config,
        partial(_make_run, opened),
        page_sinks=page.sinks if page else (),
        reread=reread,
        faults=Faults.from_environment(),
    )
    stack.callback(appliance.close)
    if page is not None:
        stack.callback(page.start(appliance, config))
    path = control_path(config.control)
    if path is not None:
        server = ControlServer(appliance, path)
        stack.callback(server.stop)
        server.start()
        appliance.servers.append(server)
    stack.enter_context(_signals(appliance))
    return appliance.serve()


def _make_run(opened: Opened | None, config: ServeConfig, answerer: Answerer) -> Any:
    from netcls.daemon.runs import live_run, run_options
    from netcls.daemon.spool import SpoolRun

    if opened is not None:
        return live_run(opened, config, answerer)
    assert config.spool is not None
    return SpoolRun(config.spool, run_options(config), answerer, settle_s=config.spool_settle_s)


class _Page:
    """The web part: its ring and its store are sinks like others."""

    def __init__(self, config: ServeConfig) -> None:
        from netcls.store import Store, StoreOptions
        from netcls.store.kept import KeptFlows
        from netcls.web.ring import EventRing

        self.ring, self.kept = EventRing(), KeptFlows()
        options = StoreOptions(
            path=None if config.store is None else Path(config.store),
            max_age_s=config.store_max_age_s,
            max_bytes=config.store_max_mib << 20,
        )
        self.store = Store(options, self.kept)
        self.sinks: list[tuple[Sink, int]] = [
            (cast("Sink", self.ring), _PAGE_QUEUE_EVENTS),
            (cast("Sink", self.store), _PAGE_QUEUE_EVENTS),
        ]

    @classmethod
    def of(cls, config: ServeConfig) -> _Page | None:
        """None where nothing listens."""
        return None if config.listen == "none" else cls(config)

    def start(self, appliance: Appliance, config: ServeConfig) -> Callable[[], None]:
        """Listen; returns what stops it.

        Raises:
            UsageError: if that cannot be.
        """
        from netcls.web.server import start

        appliance.watch_flows(self.kept.see)
        token = config.token
        if config.token_file is not None:
            token = Path(config.token_file).read_text("utf-8").strip()
        server = start(
            appliance, config.listen, token, ring=self.ring, store=self.store, host_names=config.host_name
        )
        appliance.url = server.url
        appliance.servers.append(server)
        return server.stop


@contextmanager
def _signals(appliance: Appliance) -> Iterator[None]:
    """TERM, INT, HUP and USR1 as the appliance's requests; a second TERM or INT ends at once."""
    came: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            os._exit(EXIT_FORCED)
        appliance.request_shutdown()

    handlers: dict[signal.Signals, Any] = {
        signal.SIGTERM: stop,
        signal.SIGINT: stop,
        signal.SIGHUP: lambda *_: appliance.request("reload"),
        signal.SIGUSR1: lambda *_: appliance.request("stats"),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
