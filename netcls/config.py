"""The TOML file: one table a command, keys named like the options; keys above all tables hold for every command.

    threads = 2                 # every command that has --threads

    [classify]
    idle_timeout_s = 60         # netcls classify --idle-timeout-s

    [models.list]
    json = true

A flag beats the environment (``NETCLS_CLASSIFY_IDLE_TIMEOUT_S``), which beats the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from capture.errors import UsageError, did_you_mean

# Command -> its option names (with underscores), or its sub-commands with theirs.
OptionTree = Mapping[str, "Iterable[str] | OptionTree"]


def read_config(path: str, options: OptionTree) -> dict[str, Any]:
    """Read a configuration file and spread it over the commands.

    Args:
        path: of the TOML file.
        options: every command with the names of its options.

    Returns:
        Command -> option name -> value, as click's ``default_map`` takes it. Values are not checked here:
        the option that takes one does.

    Raises:
        UsageError: if the file cannot be read or is not TOML, or for a key that no command has.
    """
    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the configuration file '{path}': {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"configuration file '{path}' is not TOML: {error}") from None
    table = _underscored(table)
    shared = {key: value for key, value in table.items() if not isinstance(value, dict)}
    _check_shared(shared, options, path)
    own = {key: value for key, value in table.items() if isinstance(value, dict)}
    return _spread(own, shared, options, path, "")


def _underscored(table: dict[str, Any]) -> dict[str, Any]:
    """Options may be written as on the command line; commands keep their hyphens."""
    return {
        key if isinstance(value, dict) else key.replace("-", "_"): _underscored(value)
        if isinstance(value, dict)
        else value
        for key, value in table.items()
    }


def _check_shared(shared: dict[str, Any], options: OptionTree, path: str) -> None:
    known = sorted(_leaves(options))
    for key in shared:
        if key not in known:
            raise UsageError(
                f"configuration file '{path}': no command has an option '{key}'{did_you_mean(key, known)}"
            )


def _leaves(options: OptionTree) -> set[str]:
    names: set[str] = set()
    for value in options.values():
        names |= _leaves(value) if isinstance(value, Mapping) else set(value)
    return names


def _spread(
    own: dict[str, Any], shared: dict[str, Any], options: OptionTree, path: str, above: str
) -> dict[str, Any]:
    for key, value in own.items():
        if key not in options:
            raise UsageError(
                f"configuration file '{path}': there is no command '{above}{key}'{did_you_mean(key, options)}"
            )
        if not isinstance(value, dict):
            raise UsageError(
                f"configuration file '{path}': '{above}{key}' is a value; expected a table [{above}{key}]"
            )
    spread: dict[str, Any] = {}
    for command, below in options.items():
        given = own.get(command, {})
        if isinstance(below, Mapping):
            spread[command] = _spread(given, shared, below, path, f"{above}{command}.")
        else:
            names = set(below)
            _check_options(given, names, path, above + command)
            spread[command] = {key: value for key, value in shared.items() if key in names} | given
    return spread


def _check_options(given: dict[str, Any], names: set[str], path: str, command: str) -> None:
    for key, value in given.items():
        if key not in names:
            raise UsageError(
                f"configuration file '{path}': [{command}] has no option '{key}'{did_you_mean(key, names)}"
            )
        if isinstance(value, dict):
            raise UsageError(
                f"configuration file '{path}': [{command}.{key}] is a table; expected a value for '{key}'"
            )
