"""Options that mean the same wherever they occur, and where their values come from.

A flag beats the environment (``NETCLS_<COMMAND>_<OPTION>``), which beats the TOML file, which beats the default.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from capture.errors import UsageError, did_you_mean
from netcls.config import OptionTree, read_config

CONFIG_PATH: Final = "netcls.config"  # keys of click's ctx.meta
ARGUMENTS: Final = "netcls.arguments"
SPLITS: Final = ("capture", "group", "host", "time", "flow")

# Options that say how to run, not what to do; a configuration file cannot set them.
_NOT_IN_FILES: Final = frozenset({"config", "help", "version"})

F = TypeVar("F", bound=Callable[..., Any])


class NetclsCommand(click.Command):
    """A command with ``--config``, that knows every variable of the environment that begins with its name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--config"],
                metavar="FILE.toml",
                is_eager=True,
                expose_value=False,
                callback=_config_of_command,
                help="Settings; a flag or the environment beats them.",
            )
        )

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """As click does, then refuse misspelt variables of the environment."""
        ctx = super().make_context(*args, **kwargs)
        if not ctx.resilient_parsing:
            self._check_environment(ctx)
        return ctx

    def _check_environment(self, ctx: click.Context) -> None:
        if not ctx.auto_envvar_prefix:
            return
        prefix = f"{ctx.auto_envvar_prefix}_"
        known = [f"{prefix}{p.name.upper()}" for p in self.params if isinstance(p, click.Option) and p.name]
        for name in os.environ:
            if name.startswith(prefix) and name not in known:
                raise UsageError(
                    f"environment variable {name} is no option of {ctx.command_path}{did_you_mean(name, known)}"
                )


class CommandGroup(click.Group):
    """Commands that are imported when they are asked for.

    Args:
        commands_at: name -> ``module:attribute``, in the order of the help.
    """

    def __init__(self, *args: Any, commands_at: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._commands_at = commands_at or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in their order."""
        return [*self._commands_at, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, imported."""
        place = self._commands_at.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; ``netcls`` alone is its help, a group alone is a mistake."""
        if not args and ctx.parent is None:
            args = ["--help"]
        elif not args:
            raise click.UsageError(
                f"no command given; choose one of {', '.join(self.list_commands(ctx))}", ctx
            )
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name for one that is not known."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            raise click.UsageError(f"no command '{args[0]}'{did_you_mean(args[0], known)}", ctx)
        return super().resolve_command(ctx, args)


def option_tree(ctx: click.Context, group: click.Group) -> OptionTree:
    """Every command below a group with the names of the options that a file can set."""
    tree: dict[str, Any] = {}
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, click.Group):
            tree[name] = option_tree(ctx, command)
        elif command is not None:
            tree[name] = [
                p.name for p in command.params if isinstance(p, click.Option) and p.name not in _NOT_IN_FILES
            ]
    return tree


def apply_config(ctx: click.Context, path: str) -> None:
    """Give the values of a TOML file to the command of ``ctx`` and all below it.

    Raises:
        UsageError: see :func:`netcls.config.read_config`.
    """
    root = ctx.find_root()
    if not isinstance(root.command, click.Group):
        return
    values = read_config(path, option_tree(root, root.command))
    for name in ctx.command_path.split()[1:]:
        values = values.get(name, {})
    ctx.default_map = {**(ctx.default_map or {}), **values}
    ctx.meta[CONFIG_PATH] = path


def _config_of_command(ctx: click.Context, _param: click.Parameter, path: str | None) -> None:
    if path:
        apply_config(ctx, path)


def paths_argument(function: F) -> F:
    """``PATH...``: captures, folders, ``-``."""
    return click.argument("paths", nargs=-1, required=True, metavar="PATH...")(function)


def model_option(function: F) -> F:
    """``--model``."""
    return click.option(
        "--model", "-m", default="default", metavar="NAME|DIR", help="Checkpoint that ships, or a folder."
    )(function)


def flow_table_options(function: F) -> F:
    """Options that decide what a flow is."""
    for decorate in (
        click.option(
            "--memory-limit-mib",
            type=click.IntRange(min=1),
            metavar="N",
            default=256,
            help="Ceiling of the flow table, MiB; beyond it the least recently seen flow ends.",
        ),
        click.option(
            "--tcp-linger-s",
            type=click.FloatRange(min=0),
            metavar="SECONDS",
            default=5.0,
            help="Late packets of a closed TCP flow still count to it for so many seconds.",
        ),
        click.option(
            "--active-timeout-s",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            default=1800.0,
            help="A flow ends when it is this old, seconds.",
        ),
        click.option(
            "--idle-timeout-s",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            default=120.0,
            help="A flow ends after so many seconds without a packet.",
        ),
        click.option(
            "--min-packets",
            type=click.IntRange(min=0),
            metavar="N",
            default=0,
            help="Leave out flows with fewer packets.",
        ),
        click.option("--stats", is_flag=True, help="A last line with every counter (jsonl, table)."),
    ):
        function = decorate(function)
    return function


def format_option(*names: str, shown_default: str = "table on a terminal, else jsonl") -> Callable[[F], F]:
    """``--format``; None where it is not given, which means what ``shown_default`` says."""
    return click.option(
        "--format",
        "-f",
        type=click.Choice(names),
        show_default=shown_default,
        help="Form of the result.",
    )


def output_option(function: F) -> F:
    """``--output``: a file."""
    return _output_option(function, "FILE", "Appears under its name when it is complete.")


def event_output_option(function: F) -> F:
    """``--output``: a file, or a sink for events."""
    sinks = "csv: parquet: zeek: unix: tcp:// udp:// ipfix+udp:// kafka://"
    return _output_option(function, "FILE|URI", f"A file appears when it is complete. Or a sink: {sinks}")


def _output_option(function: F, metavar: str, text: str) -> F:
    return click.option(
        "--output", "-o", default="-", metavar=metavar, show_default="standard output", help=text
    )(function)


def _clock_offset(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | str | None:
    """``auto`` as it is, everything else as seconds."""
    if value is None or value == "auto":
        return value
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither auto nor a time in seconds") from None


def matching_options(function: F) -> F:
    """How the times of a table of flows are compared with those of the packets."""
    for decorate in (
        click.option(
            "--clock-offset",
            callback=_clock_offset,
            metavar="auto|SECONDS",
            show_default="none",
            help="Added to the times of a table's rows; auto: what each capture shows.",
        ),
        click.option(
            "--tolerance-s",
            type=click.FloatRange(min=0),
            metavar="SECONDS",
            default=1.0,
            help="By how much times of rows and flows may differ, seconds.",
        ),
    ):
        function = decorate(function)
    return function


def split_options(function: F) -> F:
    """How flows are divided among training and test."""
    return _split_options(function, SPLITS)


def evaluation_split_options(function: F) -> F:
    """The same, and ``none``: all of DATA is tested."""
    return _split_options(function, (*SPLITS, "none"))


def _split_options(function: F, kinds: tuple[str, ...]) -> F:
    for decorate in (
        click.option(
            "--leave-out",
            multiple=True,
            metavar="VALUE[,VALUE]",
            show_default="chosen by seed",
            help="A group that is tested on; may repeat.",
        ),
        click.option(
            "--group-rule",
            type=click.Choice(["tuple", "each"]),
            default="tuple",
            help="Whether a group is all its columns together, or each of them.",
        ),
        click.option(
            "--split",
            type=click.Choice(kinds),
            show_default="the one of a built dataset, else capture",
            help="What test flows have not in common with training flows."
            + (" none: all of DATA is tested." if "none" in kinds else ""),
        ),
    ):
        function = decorate(function)
    return function


def decap_option(function: F) -> F:
    """``--decap``."""
    return click.option(
        "--decap",
        type=click.Choice(["inner", "outer"]),
        default="inner",
        help="Flows of what is inside tunnels (VXLAN, GRE, GTP-U, ...), or of the tunnels.",
    )(function)


def decode_options(function: F) -> F:
    """What of a packet makes its flow: ``--decap``, ``--check-checksums``."""
    check = click.option(
        "--check-checksums",
        is_flag=True,
        help="Reject packets with a wrong IPv4, TCP or UDP checksum. Not for captures of the sending host: where "
        "the network card makes them (offload), outgoing packets are captured without.",
    )
    return decap_option(check(function))


def handshake_option(function: F) -> F:
    """``--sni``."""
    return click.option(
        "--sni/--no-sni",
        default=True,
        help="Server name and ALPN of TLS and QUIC handshakes in the events; never model input.",
    )(function)


def labelled_data_options(function: F) -> F:
    """How the labels of DATA are read, and how many flows of a capture count."""
    for decorate in (
        click.option(
            "--max-flows-per-capture",
            type=click.IntRange(min=0),
            metavar="N",
            show_default="20, or all of a built dataset",
            help="Flows of each class from each capture; 0: all.",
        ),
        click.option(
            "--drop-label",
            multiple=True,
            default=("background",),
            metavar="LABEL",
            help="Label that is left out; may repeat.",
        ),
        click.option(
            "--group",
            metavar="COLUMN[,COLUMN]",
            default="",
            show_default="the table's group",
            help="Columns whose values are a group (tables).",
        ),
        click.option("--label", default="label", metavar="COLUMN", help="Column of the label (tables)."),
    ):
        function = decorate(function)
    return function


def column_names(text: str) -> tuple[str, ...]:
    """The columns of a ``COLUMN[,COLUMN]``."""
    return tuple(filter(None, text.split(",")))


def threads_option(function: F) -> F:
    """``--threads``."""
    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        show_default="one per core",
        help="Threads of the model.",
    )(function)


def device_option(function: F) -> F:
    """``--device``."""
    return click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where the model runs."
    )(function)


def precision_option(function: F) -> F:
    """``--precision``."""
    return click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "int8"]),
        default="auto",
        help="Of the model's matrix products on a CPU. auto: the fastest that CPU and model's card allow.",
    )(function)


def early_exit_option(function: F) -> F:
    """``--early-exit``."""
    return click.option(
        "--early-exit",
        is_flag=True,
        help="Answer a flow after fewer packets where the model is sure; --stats says what that saves.",
    )(function)


def seed_option(function: F) -> F:
    """``--seed``."""
    return click.option(
        "--seed", type=click.IntRange(min=0), metavar="N", default=0, help="Of everything drawn by chance."
    )(function)


def json_option(function: F) -> F:
    """``--json``."""
    return click.option("--json", is_flag=True, help="Machine-readable result.")(function)


def talk_options(function: F) -> F:
    """``--quiet``, ``--verbose`` and ``--no-progress``."""
    for decorate in (
        click.option("--no-progress", is_flag=True, help="No progress line on a terminal."),
        click.option("--verbose", "-v", is_flag=True, help="Also the counters, on standard error."),
        click.option("--quiet", "-q", is_flag=True, help="No warnings, no progress; errors only."),
    ):
        function = decorate(function)
    return function
