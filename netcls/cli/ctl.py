"""``netcls ctl COMMAND``: talks to a running daemon over its control socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Final

import click

from capture.errors import LiveError, UsageError
from netcls.cli.options import NetclsCommand
from netcls.daemon.places import running_control_path
from netcls.output import Output

_PROTOCOL: Final = {"version": "0.2"}
_TIMEOUT_S: Final = 60.0
_LONGEST_ANSWER: Final = 64 << 20


@click.command("ctl", cls=NetclsCommand)
@click.argument("command", metavar="COMMAND")
@click.argument("argument", required=False)
@click.option(
    "--control", metavar="PATH", show_default="where `netcls serve` puts it", help="The control socket."
)
def ctl(command: str, argument: str | None, control: str | None) -> None:
    """Ask a running `netcls serve`.

    COMMAND is one of status, stats, flows, reload, reopen, shutdown, uptime, version, iface-list, iface-stat IFACE,
    conf-get VARIABLE, dump-counters, command-list. The answer is on standard output. Exit code 2 if the daemon cannot
    do it, or there is none.
    """
    path = running_control_path() if control is None else Path(control)
    request: dict[str, Any] = {"command": command}
    if argument is not None:
        request["arguments"] = {("variable" if command == "conf-get" else "iface"): argument}
    answer = ask(path, request)
    if answer.get("return") != "OK":
        raise UsageError(f"{command}: {answer.get('message')}")
    message = answer.get("message")
    text = message if isinstance(message, str) else json.dumps(message, indent=2)
    with Output() as output:
        output.write(f"{text}\n".encode())


def ask(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """One question to a daemon, after the handshake.

    Raises:
        LiveError: if nobody answers there.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(path))
            lines = connection.makefile("rb")
            for sent in (_PROTOCOL, request):
                connection.sendall(json.dumps(sent).encode() + b"\n")
                line = lines.readline(_LONGEST_ANSWER)
                answer: Any = json.loads(line)
                if not isinstance(answer, dict):
                    raise ValueError
                if answer.get("return") != "OK":
                    break
            said: dict[str, Any] = answer
            return said
    except OSError as error:
        raise LiveError(
            f"control socket '{path}': {error.strerror or error}; is `netcls serve` running, and may this user ask it?"
        ) from None
    except ValueError:
        raise LiveError(
            f"control socket '{path}': got no answer of netcls; another program listens there"
        ) from None
