"""Server-sent events: the lines of the ring, as they come."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Final

from sse_starlette.sse import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

from netcls.event import Event
from netcls.sinks.base import Told
from netcls.store import FlowFilter
from netcls.web.ring import EventRing, Follower, TooManyFollowersError

PING_S: Final = 15
SEND_TIMEOUT_S: Final = 20.0  # a client that takes nothing for so long is gone
_AT_ONCE: Final = 512


def event_stream(
    request: Request, ring: EventRing, asked: FlowFilter, max_per_s: int | None
) -> EventSourceResponse:
    """The events that are asked for, from the header ``Last-Event-ID`` on, or from now.

    Args:
        request: whose header is looked at.
        ring: to follow.
        asked: which events.
        max_per_s: of a page that shows samples; what is left out is told as ``event: skipped`` with its number.

    Raises:
        HTTPException: 503 if too many follow already.
    """
    try:
        follower = ring.follow(request.headers.get("last-event-id", "")[:64])
    except TooManyFollowersError:
        raise HTTPException(503, "too many clients follow the events", {"retry-after": "10"}) from None
    return EventSourceResponse(
        _lines(ring, follower, asked, max_per_s), ping=PING_S, send_timeout=SEND_TIMEOUT_S, sep="\n"
    )


async def _lines(
    ring: EventRing, follower: Follower, asked: FlowFilter, max_per_s: int | None
) -> AsyncIterator[bytes]:
    budget = _Budget(max_per_s) if max_per_s else None
    try:
        yield b"retry: 2000\n\n"
        if follower.n_missed:
            yield f"event: missed\ndata: {follower.n_missed}\n\n".encode()
        while told := await follower.take(_AT_ONCE):
            now_s = time.time()
            wanted = [each for each in told if _is_wanted(each, asked, now_s)]
            shown = budget.take(wanted) if budget else wanted
            text = [
                b"id: %b\ndata: %b\n\n" % (ring.id_of(each).encode(), each.line.rstrip()) for each in shown
            ]
            if len(shown) < len(wanted):
                text.append(b"event: skipped\ndata: %d\n\n" % (len(wanted) - len(shown)))
            if text:
                yield b"".join(text)
        if follower.is_cut:
            yield b"event: cut\ndata: too slow\n\n"
    finally:
        follower.leave()


def _is_wanted(told: Told, asked: FlowFilter, now_s: float) -> bool:
    event = told.event
    return asked == FlowFilter() or (isinstance(event, Event) and asked.holds(event, now_s))


class _Budget:
    """So many events a second, the newest of each piece."""

    def __init__(self, per_s: int) -> None:
        self._per_s, self._left, self._at_s = per_s, float(per_s), time.monotonic()

    def take(self, wanted: list[Told]) -> list[Told]:
        now_s = time.monotonic()
        self._left = min(self._left + (now_s - self._at_s) * self._per_s, float(self._per_s))
        self._at_s = now_s
        n = min(len(wanted), int(self._left))
        self._left -= n
        return wanted[len(wanted) - n :]
