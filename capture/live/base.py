"""What every live source shares: blocks that come or do not, the kernel's counters, what happened to the interface."""

from __future__ import annotations

import select
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from capture.block import PacketBlock

_CHECK_SECONDS: Final = 0.25


@dataclass(slots=True)
class LiveCounters:
    """What was seen on an interface so far.

    ``n_kernel_packets == n_packets + n_kernel_drops`` once the ring is empty, give or take a packet on its way.

    Attributes:
        n_packets, n_bytes: in the blocks given out, and their captured bytes.
        n_kernel_packets: that passed the filter, as the kernel counts, drops included.
        n_kernel_drops: that found the ring full.
        n_freezes: times the ring ran full.
        counts_drops: False where nobody counts what is lost (scapy).
    """

    n_packets: int = 0
    n_bytes: int = 0
    n_kernel_packets: int = 0
    n_kernel_drops: int = 0
    n_freezes: int = 0
    counts_drops: bool = True

    def plus(self, other: LiveCounters) -> LiveCounters:
        """The sum, of two sockets that share an interface."""
        return LiveCounters(
            self.n_packets + other.n_packets,
            self.n_bytes + other.n_bytes,
            self.n_kernel_packets + other.n_kernel_packets,
            self.n_kernel_drops + other.n_kernel_drops,
            self.n_freezes + other.n_freezes,
            self.counts_drops and other.counts_drops,
        )


class LiveSource(ABC):
    """An interface as a source of :class:`PacketBlock`.

    Attributes:
        name: of the interface, as given.
        link_type: LINKTYPE number of its packets.
        counters: what was seen so far.
    """

    def __init__(self, name: str, link_type: int) -> None:
        self.name = name
        self.link_type = link_type
        self.counters = LiveCounters()
        self._next_check_s = 0.0

    def warm_up(self) -> None:  # noqa: B027 - most have nothing to do
        """Load or compile what the first packet would have to wait for."""

    def begin(self) -> None:  # noqa: B027 - most have nothing to do
        """Packets may come from now on."""

    @abstractmethod
    def fileno(self) -> int:
        """A descriptor that can be polled for packets."""

    @abstractmethod
    def next_block(self) -> PacketBlock | None:
        """What has come, None if nothing has. Never waits. A block is valid until the next one is asked for."""

    @abstractmethod
    def close(self) -> None:
        """Leave the interface. May be called again."""

    def check(self) -> str:
        """Look, a few times a second, after the interface and the kernel's counters.

        Returns:
            A line for the operator if something has happened, else nothing.
        """
        now_s = time.monotonic()
        if now_s < self._next_check_s:
            return ""
        self._next_check_s = now_s + _CHECK_SECONDS
        self.count()
        return self._look()

    @abstractmethod
    def count(self) -> None:
        """Bring the kernel's counters up to date."""

    def _look(self) -> str:
        """What has happened to the interface since the last look."""
        return ""


def wait_for_packets(sources: Sequence[LiveSource], seconds: float) -> None:
    """Sleep until one of the sources has something to say, at most so long."""
    poll = select.poll()
    for source in sources:
        poll.register(source.fileno(), select.POLLIN)
    events = poll.poll(seconds * 1000)
    if events and not any(event & select.POLLIN for _, event in events):
        # Only errors (an interface that went down): they would wake us again at once.
        time.sleep(seconds)
