"""The newest events in memory, and those who follow them.

A follower is a place in the ring and nothing more, so a hundred of them cost no memory. One that falls too far behind
is cut and counted; it may come back and say where it was.
"""

from __future__ import annotations

import asyncio
import bisect
import secrets
import threading
from collections.abc import Sequence
from typing import Final

from netcls.sinks.base import Told

RING_EVENTS: Final = 50_000
MAX_LAG_EVENTS: Final = 10_000
MAX_FOLLOWERS: Final = 256


class TooManyFollowersError(Exception):
    """No further follower is let in."""


class EventRing:
    """A sink that keeps the newest events and wakes their followers.

    Args:
        size: events kept.
        max_lag: so many events a follower may be behind the newest before it is cut.

    Attributes:
        name: of the sink.
        boot: differs between processes, so that an id of an earlier one is not taken for one of this.
        n_cut: followers that were too slow.
    """

    name: Final = "page"

    def __init__(self, size: int = RING_EVENTS, max_lag: int = MAX_LAG_EVENTS) -> None:
        self._size, self._max_lag = size, min(max_lag, size)
        self._told: list[Told] = []  # grows to `size`, then is a ring: place p of all lies at p % size
        self._end = 0  # events taken since the start
        self._lock = threading.Lock()
        self._followers: set[Follower] = set()
        self.boot = secrets.token_hex(4)
        self.n_cut = 0

    # --- the sink

    def open(self) -> None:
        """Nothing to open."""

    def write(self, batch: Sequence[Told]) -> int:
        """Keep events; the oldest make room. Followers are woken once a batch."""
        with self._lock:
            for told in batch:
                if len(self._told) < self._size:
                    self._told.append(told)
                else:
                    self._told[self._end % self._size] = told
                self._end += 1
            slow = [follower for follower in self._followers if self._end - follower.place > self._max_lag]
            for follower in slow:
                follower.is_cut = True
                self._followers.discard(follower)
            self.n_cut += len(slow)
            woken = [*self._followers, *slow]
        for follower in woken:
            follower.wake()
        return len(batch)

    def flush(self) -> None:
        """Nothing survives the process."""

    def reopen(self) -> None:
        """Nothing to reopen."""

    def close(self) -> None:
        """Let all followers go."""
        with self._lock:
            gone, self._followers = self._followers, set()
        for follower in gone:
            follower.is_over = True
            follower.wake()

    # --- those who follow

    def __len__(self) -> int:
        return len(self._told)

    @property
    def n_followers(self) -> int:
        """How many follow now."""
        return len(self._followers)

    def follow(self, last_id: str = "") -> Follower:
        """Begin to follow, from the event behind ``last_id`` on if the ring still has it, else from now on.

        Must be called in the event loop that the follower waits in.

        Raises:
            TooManyFollowersError: if there are `MAX_FOLLOWERS`.
        """
        follower = Follower(self)
        with self._lock:
            if len(self._followers) >= MAX_FOLLOWERS:
                raise TooManyFollowersError
            follower.place, follower.n_missed = self._place_behind(last_id)
            self._followers.add(follower)
        return follower

    def id_of(self, told: Told) -> str:
        """The id of a server-sent event."""
        return f"{self.boot}-{told.number}"

    def _place_behind(self, last_id: str) -> tuple[int, int]:
        boot, _, number = last_id.partition("-")
        if boot != self.boot or not (number.isascii() and number.isdigit()) or len(number) > 19:
            return self._end, 0
        first = self._end - len(self._told)
        # What came since may be more than a follower may lag behind.
        least = max(first, self._end - self._max_lag)
        at = bisect.bisect_right(range(first, self._end), int(number), key=lambda p: self._at(p).number)
        place = max(first + at, least)
        if place >= self._end:
            return self._end, 0
        return place, max(self._at(place).number - int(number) - 1, 0)

    def _at(self, place: int) -> Told:
        return self._told[place % self._size]

    def take(self, follower: Follower, at_most: int) -> list[Told]:
        """The next events of a follower."""
        with self._lock:
            if follower.is_cut:
                return []
            end = min(self._end, follower.place + at_most)
            taken = [self._at(place) for place in range(follower.place, end)]
            follower.place = end
            return taken

    def leave(self, follower: Follower) -> None:
        """A follower goes."""
        with self._lock:
            self._followers.discard(follower)


class Follower:
    """Somebody's place in the ring.

    Attributes:
        place: of the next event to take.
        n_missed: events between the one it asked for and the first that the ring still has.
        is_cut: it was too slow.
        is_over: the ring was closed.
    """

    def __init__(self, ring: EventRing) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self.place = 0
        self.n_missed = 0
        self.is_cut = False
        self.is_over = False

    def wake(self) -> None:
        """There is news. From any thread."""
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:  # its loop has ended
            self._ring.leave(self)

    async def take(self, at_most: int) -> list[Told]:
        """The next events, as soon as there is one; empty once it was cut or the ring is closed."""
        while True:
            self._news.clear()
            taken = self._ring.take(self, at_most)
            if taken or self.is_cut or self.is_over:
                return taken
            await self._news.wait()

    def leave(self) -> None:
        """Follow no longer."""
        self._ring.leave(self)
