"""Every mistake in the configuration of ``netcls serve``, found before anything opens: a line each.

A line names the key, what was got, what was expected, and what to do. No numpy here: privileges are not dropped yet.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from capture.errors import CheckpointError, LiveError, UsageError
from capture.live import interfaces
from netcls.daemon.places import AUTO, control_path, someone_answers_at

if TYPE_CHECKING:
    from models.checkpoint_files import CheckpointFiles
    from netcls.daemon.config import ServeConfig

_CAP_NET_RAW: Final = 13
_LONGEST_SOCKET_PATH: Final = 107


def early_problems(config: ServeConfig, *, as_if_starting: bool = True) -> list[str]:
    """What is wrong, in the order of the options.

    Args:
        config: as given.
        as_if_starting: also what only matters to a process that starts now: privileges, and what another one holds.
    """
    found: list[str] = []
    found += _source(config, as_if_starting)
    found += _models(config)
    found += _listen(config, as_if_starting)
    found += _places(config, as_if_starting)
    found += _others(config)
    return found


def output_problems(config: ServeConfig) -> list[str]:
    """What is wrong with the sinks, and with faults on purpose. Imports what they need, numpy with it."""
    from netcls.daemon.faults import Faults
    from netcls.daemon.outputs import runner_settings, sink_of

    found = []
    try:
        Faults.from_environment()
    except UsageError as error:
        found.append(str(error))
    for uri in config.output:
        try:
            runner_settings(uri, config)
            sink_of(uri, ())
        except UsageError as error:
            found.append(str(error))
            continue
        found += _unwritable_output(uri)
    if len(set(config.output)) < len(config.output):
        found.append("output: got the same URI twice; expected each once")
    return found


def _source(config: ServeConfig, as_if_starting: bool) -> Iterator[str]:
    # A file may leave this to a flag.
    if not config.iface and config.spool is None and as_if_starting:
        yield "iface: got none, and no spool; expected an interface (--iface eth0) or a folder (--spool DIR)"
    if config.iface and config.spool is not None:
        yield "spool: got one, and interfaces too; expected one of them; run two daemons for both"
    if len(set(config.iface)) < len(config.iface):
        yield f"iface: got one twice in {', '.join(config.iface)}; expected each once"
    for name in config.iface:
        try:
            interfaces.require_interface(name)
        except LiveError as error:
            yield f"iface: got '{name}'; {error}"
    if config.iface and as_if_starting and config.backend == "ring" and not _has_net_raw():
        yield (
            "iface: got no permission to capture, expected CAP_NET_RAW; in the systemd unit AmbientCapabilities="
            "CAP_NET_RAW, in a container --cap-add NET_RAW, or start it with sudo (dropped once the socket is bound)"
        )
    if config.spool is not None:
        folder = Path(config.spool)
        if not folder.is_dir():
            yield f"spool: got '{folder}', which is no folder; expected one; make it with `mkdir`"
        elif not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            yield f"spool: got '{folder}', where this user cannot write; expected a folder for its journal; chown it"


def _models(config: ServeConfig) -> Iterator[str]:
    from models.checkpoint import resolve_name
    from models.checkpoint_files import read_files

    read: dict[str, CheckpointFiles] = {}
    for key, name in (("model", config.model), ("small_model", config.small_model)):
        if name is None:
            continue
        try:
            read[key] = read_files(resolve_name(name))
        except CheckpointError as error:
            yield f"{key}: {error}"
            continue
        if read[key].kind != "classifier":
            yield f"{key}: got '{name}', a {read[key].kind}; expected a classifier; make one with `netcls finetune`"
    if len(read) == 2 and _input_of(read["model"]) != _input_of(read["small_model"]):
        big, small = read["model"], read["small_model"]
        yield (
            f"small_model: got '{config.small_model}', which reads {_input_of(small)[0]}; expected {_input_of(big)[0]} "
            f"with the same settings, as model '{config.model}' reads; choose a model of the same representation"
        )


def _input_of(files: CheckpointFiles) -> tuple[str, dict[str, object]]:
    return f"{files.representation}-{files.representation_version}", files.representation_settings


def _listen(config: ServeConfig, as_if_starting: bool) -> Iterator[str]:
    if config.token_file is not None:
        try:
            if not Path(config.token_file).read_text("utf-8").strip():
                yield f"token_file: got '{config.token_file}', which is empty; expected the token in it"
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            yield f"token_file: got '{config.token_file}', which cannot be read ({reason}); expected the token in it"
    if config.listen == "none":
        return
    host, colon, port = config.listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        yield f"listen: got '{config.listen}'; expected HOST:PORT such as 127.0.0.1:8710, or none"
        return
    if importlib.util.find_spec("uvicorn") is None or importlib.util.find_spec("starlette") is None:
        yield "listen: the page and the API need missing packages; pip install 'netcls[serve]', or listen = none"
    is_loopback = host.startswith("127.") or host in ("::1", "localhost")
    if not is_loopback and config.token is None and config.token_file is None:
        yield (
            f"listen: got '{config.listen}', which others can reach, without a token; expected --token-file, or "
            f"127.0.0.1:{port} and an SSH tunnel"
        )
    if as_if_starting and port != "0" and (trouble := _cannot_bind(host, int(port))):
        yield f"listen: got '{config.listen}': {trouble}; is another netcls running? Choose another port"


def _cannot_bind(host: str, port: int) -> str:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _places(config: ServeConfig, as_if_starting: bool) -> Iterator[str]:
    if config.store is not None:
        yield from _unwritable("store", Path(config.store))
    if config.control == AUTO and not as_if_starting:
        return
    try:
        path = control_path(config.control)
    except UsageError as error:
        yield f"control: {error}"
        return
    if path is not None:
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            yield f"control: got a path of {len(os.fsencode(path))} bytes; expected at most {_LONGEST_SOCKET_PATH}"
        yield from _unwritable("control", path)
        if as_if_starting and someone_answers_at(path):
            yield (
                f"control: got '{path}', where another netcls answers; expected a free path; stop it with "
                f"`netcls ctl shutdown`, or give --control"
            )


def _unwritable(key: str, path: Path) -> Iterator[str]:
    folder = path.parent
    if not folder.is_dir():
        yield f"{key}: got '{path}', but there is no folder '{folder}'; make it with `mkdir`"
    elif path.is_dir():
        yield f"{key}: got '{path}', which is a folder; expected a file in it"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        yield f"{key}: got '{path}', where this user cannot write; expected one where it can; chown it"


def _unwritable_output(uri: str) -> Iterator[str]:
    from netcls.sinks.uri import parse_uri

    parsed = parse_uri(uri)
    if parsed.scheme in ("file", "csv", "unix"):
        yield from _unwritable("output", Path(parsed.path))
    elif parsed.scheme in ("parquet", "zeek"):
        folder = Path(parsed.path)
        if folder.is_dir() and not os.access(folder, os.W_OK):
            yield f"output: got '{uri}', where this user cannot write; expected a folder that it can; chown it"


def _others(config: ServeConfig) -> Iterator[str]:
    if config.user is not None:
        try:
            pwd.getpwnam(config.user)
        except KeyError:
            yield f"user: got '{config.user}'; expected a user of this machine; `useradd --system {config.user}`"
        if os.geteuid() != 0:
            yield f"user: got '{config.user}', but only root can become another user; leave it out"


def _has_net_raw() -> bool:
    if not sys.platform.startswith("linux"):
        return True  # another system has other rules; opening will tell
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return True
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _CAP_NET_RAW & 1)
