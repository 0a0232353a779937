"""The web server in a thread of the appliance.

server = start(appliance, "127.0.0.1:8710", None, ring=ring, store=store)
...
server.stop()
"""

from __future__ import annotations

import logging
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

from capture.errors import UsageError
from netcls.web.ring import EventRing

if TYPE_CHECKING:
    from netcls.store import Store
    from netcls.web.appliance import ApplianceLike
    from netcls.web.upload import UploadLimits

DEFAULT_LISTEN: Final = "127.0.0.1:8710"
_START_LIMIT_S: Final = 10.0
_MAX_CONNECTIONS: Final = 1024
_IDLE_S: Final = 30


class WebServer:
    """A running server.

    Attributes:
        url: where it answers.
    """

    def __init__(self, server: Any, thread: threading.Thread, ring: EventRing, url: str) -> None:
        self._server, self._thread, self._ring, self.url = server, thread, ring, url

    @property
    def is_alive(self) -> bool:
        """False once its thread has ended."""
        return self._thread.is_alive()

    def stop(self, within_s: float = 5.0) -> None:
        """Answer what is being asked, let followers go, end the thread. May be called again."""
        self._server.should_exit = True
        self._ring.close()
        self._thread.join(within_s)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(1.0)


def start(
    appliance: ApplianceLike,
    listen: str,
    token: str | None,
    *,
    ring: EventRing,
    store: Store,
    host_names: tuple[str, ...] = (),
    limits: UploadLimits | None = None,
) -> WebServer:
    """Listen, and answer in a thread from now on.

    Args:
        appliance: what the answers are about.
        listen: ``HOST:PORT``; port 0 takes a free one.
        token: that clients must show; None: none, on loopback only.
        ring: newest events; also a sink of the appliance.
        store: history; also a sink of the appliance.
        host_names: by which clients may call this server, beside its addresses.
        limits: of uploads.

    Raises:
        UsageError: without the extra ``serve``, for an address that is none, is taken, or needs a token.
    """
    try:
        import sse_starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UsageError(
            f"the page and the API need the package {error.name}; pip install 'netcls[serve]'"
        ) from None
    from netcls.web.app import Site, build_app
    from netcls.web.guard import Rules
    from netcls.web.upload import UploadLimits

    host, port = split_listen(listen)
    rules = Rules(host, token, host_names)
    listener = _bound(host, port)
    config = uvicorn.Config(
        build_app(Site(appliance, ring, store, rules, limits or UploadLimits())),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=16 << 10,
    )
    # One line a request is no news for an appliance's log.
    logging.getLogger("uvicorn.access").disabled = True
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="netcls-web", daemon=True)
    thread.start()
    _wait_until_started(server, thread)
    shown = f"[{host}]" if ":" in host else host
    return WebServer(server, thread, ring, f"http://{shown}:{listener.getsockname()[1]}")


def split_listen(listen: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPV6]:PORT`` as its parts.

    Raises:
        UsageError: if it is neither.
    """
    host, colon, port = listen.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise UsageError(f"listen is {listen!r}; expected HOST:PORT such as {DEFAULT_LISTEN} or [::1]:8710")
    return host, int(port)


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}: {error.strerror or error}; give an address of this machine"
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}; is another netcls running? Choose another --listen"
        ) from None
    return listener


def _wait_until_started(server: Any, thread: threading.Thread) -> None:
    waited = threading.Event()
    for _ in range(int(_START_LIMIT_S / 0.01)):
        if server.started:
            return
        if not thread.is_alive():
            break
        waited.wait(0.01)
    raise UsageError("the web server did not start; the log says why")
