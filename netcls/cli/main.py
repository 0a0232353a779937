"""``netcls``: the group of commands, and what every way of ending looks like from outside.

Exit codes: 0 done; 1 a defect of netcls; 2 the operator's mistake or unreadable input, one line on standard
error; 130 interrupted, everything finished so far delivered. A closed pipe ends quietly.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence

import click
from click.core import ParameterSource

from capture.errors import NetclsError
from netcls.cli.console import report
from netcls.cli.options import ARGUMENTS, CONFIG_PATH, CommandGroup, apply_config
from netcls.output import OutputClosed

EXIT_DONE = 0
EXIT_DEFECT = 1
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130

_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)

_COMMANDS = {
    "classify": "netcls.cli.classify:classify",
    "flows": "netcls.cli.classify:flows",
    "sniff": "netcls.cli.sniff:sniff",
    "serve": "netcls.cli.serve:serve",
    "ctl": "netcls.cli.ctl:ctl",
    "doctor": "netcls.cli.doctor:doctor",
    "tokens": "netcls.cli.tokens:tokens",
    "explain": "netcls.cli.explain:explain",
    "models": "netcls.cli.models:models",
    "finetune": "netcls.cli.train:finetune",
    "pretrain": "netcls.cli.train:pretrain",
    "evaluate": "netcls.cli.evaluate:evaluate",
    "dataset": "netcls.cli.dataset:dataset",
    "convert": "netcls.cli.convert:convert",
    "drift": "netcls.cli.drift:drift",
    "export": "netcls.cli.export:export",
    "bench": "netcls.cli.bench:bench",
    "config": "netcls.cli.config:config",
}


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from netcls.cli.version import version_lines

    click.echo("\n".join(version_lines()))
    ctx.exit()


@click.group(
    cls=CommandGroup,
    commands_at=_COMMANDS,
    context_settings={
        "auto_envvar_prefix": "NETCLS",
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 110,
    },
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    allow_from_autoenv=False,
    callback=_print_version,
    help="Versions of netcls, torch and numba, and the default checkpoint's id.",
)
@click.option("--config", metavar="FILE.toml", help="Settings of any command; also NETCLS_CONFIG.")
@click.pass_context
def cli(ctx: click.Context, config: str | None) -> None:
    """Classify the flows of captures with a pretrained model, on a plain CPU.

    Results go to standard output, everything else to standard error.
    """
    if config:
        apply_config(ctx, config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; standard error has the one line that says why it is not 0."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "_NETCLS_COMPLETE" in os.environ:  # the shell asks for completions
        cli.main(given, prog_name="netcls")
    try:
        code = _run(given)
        sys.stdout.flush()
    except (OutputClosed, BrokenPipeError):
        _silence_stdout()
        return EXIT_DONE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except NetclsError as error:
        report("error", str(error))
        return EXIT_MISTAKE
    except click.ClickException as error:
        report("error", usage_text(error))
        return EXIT_MISTAKE
    except OSError as error:
        if error.errno not in _DISK_TROUBLE:
            return _defect(error, given)
        _silence_stdout()
        report("error", f"cannot write: {error.strerror}; free some space or choose another place")
        return EXIT_MISTAKE
    except Exception as error:
        return _defect(error, given)
    return code


def _run(arguments: list[str]) -> int:
    # Not cli.main(): that turns a closed pipe into exit code 1 and prints an interrupt's empty line.
    try:
        with cli.make_context("netcls", arguments) as ctx:
            ctx.meta[ARGUMENTS] = arguments
            result = cli.invoke(ctx)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    return result if isinstance(result, int) else EXIT_DONE


def usage_text(error: click.ClickException) -> str:
    """One line that says what was wrong, and where it came from."""
    text = error.format_message()
    if isinstance(error, click.BadParameter):
        text += _origin_of(error)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text = f"{text.rstrip('.')}; see {error.ctx.command_path} --help"
    return text


def _origin_of(error: click.BadParameter) -> str:
    ctx, parameter = error.ctx, error.param
    if ctx is None or parameter is None or parameter.name is None:
        return ""
    source = ctx.get_parameter_source(parameter.name)
    if source == ParameterSource.ENVIRONMENT:
        return f" (from {ctx.auto_envvar_prefix}_{parameter.name.upper()})"
    if source == ParameterSource.DEFAULT_MAP:
        return f" (from '{ctx.meta.get(CONFIG_PATH)}')"
    return ""


def _defect(error: Exception, arguments: list[str]) -> int:
    if os.environ.get("NETCLS_DEBUG") or "--verbose" in arguments or "-v" in arguments:
        traceback.print_exception(error)
    report(
        "defect",
        f"{type(error).__name__}: {error}; this is a defect of netcls, please report it "
        "(NETCLS_DEBUG=1 shows where)",
    )
    return EXIT_DEFECT


def _silence_stdout() -> None:
    # What is still buffered has nowhere to go; the interpreter would complain about it when it exits.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
