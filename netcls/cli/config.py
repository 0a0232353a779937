"""``netcls config``: what is in force, and whether a file can be used."""

from __future__ import annotations

import json as json_text
from typing import Any, Final

import click
from click.core import ParameterSource

from capture.errors import UsageError, did_you_mean
from netcls.cli.options import CONFIG_PATH, CommandGroup, NetclsCommand, json_option, option_tree
from netcls.config import read_config
from netcls.output import Output

_ORIGINS: Final = {
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: "file",
}

# command -> option -> (value, origin)
Settings = dict[str, dict[str, tuple[Any, str]]]


@click.group("config", cls=CommandGroup)
def config() -> None:
    """Settings from the environment and a TOML file: show, check."""


@config.command("show", cls=NetclsCommand)
@click.argument("command", required=False)
@click.option("--origin", is_flag=True, help="Also where each value comes from.")
@json_option
@click.pass_context
def show(ctx: click.Context, command: str | None, origin: bool, json: bool) -> None:
    """Values in force of every option of every command, as TOML, or of one COMMAND."""
    settings = _settings(ctx)
    if command is not None:
        if command not in settings:
            raise UsageError(f"no command '{command}'{did_you_mean(command, settings)}")
        settings = {command: settings[command]}
    with Output() as output:
        output.write((_as_json(settings) if json else _as_toml(settings, with_origin=origin)).encode())


@config.command("check", cls=NetclsCommand)
@click.argument("file", metavar="FILE.toml")
@click.pass_context
def check(ctx: click.Context, file: str) -> None:
    """Read a configuration file with every check; exit code 2 if it cannot be used."""
    root = ctx.find_root()
    if not isinstance(root.command, click.Group):
        raise TypeError("the root command is not a group")
    values = read_config(file, option_tree(root, root.command))
    for names, command in _leaves(root, root.command):
        _convert_all(root, names, command, values, file)
    if values.get("serve"):
        from netcls.cli.serve import check_values

        check_values(root, values["serve"], file)
    with Output() as output:
        output.write(f"{file}: can be used\n".encode())


def _convert_all(
    root: click.Context, names: list[str], command: click.Command, values: dict[str, Any], file: str
) -> None:
    for name in names:
        values = values[name]
    ctx = click.Context(command, parent=root, info_name=" ".join(names), default_map=values)
    ctx.meta[CONFIG_PATH] = file
    for parameter in command.params:
        if parameter.name in values:
            # In its own context, so that the message names command and file.
            parameter.handle_parse_result(ctx, {}, [])


def _settings(ctx: click.Context) -> Settings:
    root = ctx.find_root()
    if not isinstance(root.command, click.Group):
        raise TypeError("the root command is not a group")
    path = ctx.meta.get(CONFIG_PATH)
    values = read_config(path, option_tree(root, root.command)) if path else {}
    settings: Settings = {}
    for names, command in _leaves(root, root.command):
        given: Any = values
        prefix = "NETCLS"
        for name in names:
            given = given.get(name, {})
            prefix += f"_{name.upper().replace('-', '_')}"
        below = click.Context(
            command,
            info_name=" ".join(names),
            default_map=given,
            auto_envvar_prefix=prefix,
            resilient_parsing=True,
        )
        settings[".".join(names)] = {
            p.name: _in_force(below, p)
            for p in command.params
            if isinstance(p, click.Option) and p.name and p.expose_value
        }
    return {name: options for name, options in settings.items() if options}


def _in_force(ctx: click.Context, option: click.Option) -> tuple[Any, str]:
    option.handle_parse_result(ctx, {}, [])
    source = ctx.get_parameter_source(option.name or "")
    value = ctx.params.get(option.name or "")
    return value if isinstance(value, str | int | float | tuple) else None, _ORIGINS.get(
        source or ParameterSource.DEFAULT, "default"
    )


def _leaves(
    ctx: click.Context, group: click.Group, above: tuple[str, ...] = ()
) -> list[tuple[list[str], click.Command]]:
    found: list[tuple[list[str], click.Command]] = []
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, click.Group):
            found += _leaves(ctx, command, (*above, name))
        elif command is not None:
            found.append(([*above, name], command))
    return found


def _as_json(settings: Settings) -> str:
    plain = {
        command: {name: {"value": value, "origin": origin} for name, (value, origin) in options.items()}
        for command, options in settings.items()
    }
    return json_text.dumps(plain, indent=2) + "\n"


def _as_toml(settings: Settings, *, with_origin: bool) -> str:
    lines: list[str] = []
    for command, options in settings.items():
        lines.append(f"[{command}]")
        for name, (value, origin) in options.items():
            # TOML has no null: an option without a value stands as a comment.
            line = f"# {name} =" if value is None else f"{name} = {json_text.dumps(value)}"
            lines.append(f"{line}  # {origin}" if with_origin else line)
        lines.append("")
    return "\n".join(lines)
