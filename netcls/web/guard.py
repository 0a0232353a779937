"""Who may ask what: the checks that every request passes before a route sees it.

    Host -> rate -> Origin (POST, DELETE) -> token or session -> body limit -> route -> security headers

Host stops a page elsewhere from reaching a loopback server through its own name (DNS rebinding), Origin one that posts
blindly (CSRF); both hold without a token too.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from capture.errors import UsageError

MIN_TOKEN_CHARS: Final = 16
SESSION_COOKIE: Final = "netcls_session"
SESSION_S: Final = 12 * 3600
_MAX_PEERS: Final = 4096
_OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/login", "/static/page.css", "/static/favicon.svg"})
_UNLIMITED_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_CHANGING: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})

SECURITY_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What the guard asks for.

    Attributes:
        host: that the server listens on.
        token: None: none is asked for, which is allowed on loopback only.
        host_names: further names that clients may call the server by.
        requests_per_s: of one client, over time; ``burst`` of them at once.
        burst: see there.
    """

    host: str
    token: str | None = None
    host_names: tuple[str, ...] = ()
    requests_per_s: float = 50.0
    burst: int = 300

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise UsageError(
                f"listen address {self.host} can be reached from elsewhere, and no token is set; set a token, or "
                "listen on 127.0.0.1"
            )
        if self.token is not None and (len(self.token) < MIN_TOKEN_CHARS or not self.token.isascii()):
            raise UsageError(
                f"the token has {len(self.token)} characters; expected at least {MIN_TOKEN_CHARS}, all ASCII, such as "
                f"those of: python3 -c 'import secrets; print(secrets.token_urlsafe())'"
            )


def is_loopback(host: str) -> bool:
    """True for the names and addresses that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """An ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self.rules = app, rules
        self._secret = secrets.token_bytes(32)
        self._rates = _Buckets(rules.requests_per_s, rules.burst)
        self._brake = GuessBrake()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, pass on, and add the security headers to whatever is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["netcls.guard"] = self
        headers = Headers(scope=scope)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    answer.setdefault(name, value)
                if not scope["path"].startswith("/static/"):
                    answer.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope, headers)
        if refusal is None:
            await self._app(scope, receive, with_headers)
            return
        status, text, more = refusal
        body = json.dumps({"error": text}).encode()
        if status == 401 and scope["path"] == "/" and scope["method"] == "GET":
            # A browser that opens the page is shown where to log in.
            status, body, more = 303, b"", {"location": "/login"}
        await with_headers(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", b"application/json"),
                    (b"content-length", str(len(body)).encode()),
                    *((name.encode(), value.encode()) for name, value in more.items()),
                ],
            }
        )
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str, dict[str, str]] | None:
        path, peer = scope["path"], peer_of(scope)
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._is_our_host(host):
            return (
                403,
                f"this server is not {host[:100]!r}; call it by its address or a name it was given",
                {},
            )
        if path not in _UNLIMITED_PATHS and not self._rates.take(peer):
            return (
                429,
                f"more than {self.rules.requests_per_s:g} requests a second; slow down",
                {"retry-after": "1"},
            )
        if scope["method"] in _CHANGING and not _is_same_origin(headers, host):
            return 403, "the request comes from a page of another origin", {}
        if self.rules.token is None or path in _OPEN_PATHS:
            return None
        return self._unless_known(headers, peer)

    def _unless_known(self, headers: Headers, peer: str) -> tuple[int, str, dict[str, str]] | None:
        if self._has_session(headers):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            return 401, "a bearer token is needed", {"www-authenticate": "Bearer"}
        return self.check_token(given.strip(), peer)

    def check_token(self, given: str, peer: str) -> tuple[int, str, dict[str, str]] | None:
        """None if it is the token; while a client that guessed wrong has to wait, nothing is compared."""
        wait_s = self._brake.wait_s(peer)
        if wait_s > 0:
            return 429, "too many wrong tokens; wait", {"retry-after": str(math.ceil(wait_s))}
        assert self.rules.token is not None
        if hmac.compare_digest(given.encode("utf-8", "replace"), self.rules.token.encode()):
            self._brake.forget(peer)
            return None
        self._brake.note_wrong(peer)
        return 401, "this is not the token", {"www-authenticate": 'Bearer error="invalid_token"'}

    def new_session(self) -> str:
        """The value of a cookie that stands for the token for some hours, in this process."""
        until = str(int(time.time()) + SESSION_S)
        return f"{until}.{self._signature(until)}"

    def _has_session(self, headers: Headers) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(SESSION_COOKIE)
        except CookieError:
            return False
        until, _, signature = (cookie.value if cookie else "").partition(".")
        if not (until.isascii() and until.isdigit() and len(until) < 12):
            return False
        fits = hmac.compare_digest(signature.encode("utf-8", "replace"), self._signature(until).encode())
        return fits and int(until) > time.time()

    def _signature(self, until: str) -> str:
        return hmac.new(self._secret, until.encode(), hashlib.sha256).hexdigest()

    def _is_our_host(self, host: str) -> bool:
        name = _without_port(host).lower()
        if name in (
            self.rules.host.lower(),
            "localhost",
            *(known.lower() for known in self.rules.host_names),
        ):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        # A name can be made to point here, an address is what it is.
        return not is_loopback(self.rules.host) or is_loopback(name)


class GuessBrake:
    """Each wrong token of a client doubles the time for which no further one is looked at."""

    def __init__(self, first_s: float = 0.5, most_s: float = 300.0) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._wrong: OrderedDict[str, tuple[int, float]] = (
            OrderedDict()
        )  # peer -> tries, when it may try again

    def wait_s(self, peer: str) -> float:
        """Seconds until a client may try again."""
        return max(self._wrong.get(peer, (0, 0.0))[1] - time.monotonic(), 0.0)

    def note_wrong(self, peer: str) -> None:
        """A client gave a wrong token."""
        tries = self._wrong.pop(peer, (0, 0.0))[0] + 1
        wait_s = min(self._first_s * 2.0 ** min(tries - 1, 20), self._most_s)
        self._wrong[peer] = tries, time.monotonic() + wait_s
        while len(self._wrong) > _MAX_PEERS:
            self._wrong.popitem(last=False)

    def forget(self, peer: str) -> None:
        """A client gave the right one."""
        self._wrong.pop(peer, None)


class _Buckets:
    """Requests a client has left."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, float(burst)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, peer: str) -> bool:
        now_s = time.monotonic()
        left, at_s = self._left.pop(peer, (self._burst, now_s))
        left = min(left + (now_s - at_s) * self._per_s, self._burst)
        allowed = left >= 1.0
        self._left[peer] = (left - 1.0 if allowed else left), now_s
        while len(self._left) > _MAX_PEERS:
            self._left.popitem(last=False)
        return allowed


def peer_of(scope: Scope) -> str:
    """Who asks: an IPv4 address, or the /64 of an IPv6 one, whose owner has the rest of it for nothing."""
    client = scope.get("client")
    address = client[0] if client else ""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return str(address)
    if parsed.version == 4 or parsed.ipv4_mapped:
        return str(address)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def _is_same_origin(headers: Headers, host: str) -> bool:
    """A browser says where a POST comes from; who says nothing is no browser."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origins: Iterable[str] = headers.getlist("origin")
    # Behind a proxy that ends TLS the scheme differs; host and port are what tells two sites apart here.
    allowed = {f"{scheme}://{host}".lower() for scheme in ("http", "https")}
    return all(origin.lower() in allowed for origin in origins)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0] if host.count(":") == 1 else host
