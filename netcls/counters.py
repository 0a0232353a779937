"""The books of one run: every packet seen is in a flow, rejected by name or ignored by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.reject import IGNORED_FROM, Reject

if TYPE_CHECKING:
    from capture.block import DecodedBlock
    from capture.decode import Decoder
    from capture.flow_table import FlowCounters
    from capture.handshake import HandshakeTracker
    from capture.live.base import LiveCounters


NO_QUIC_NAMES: Final = (
    "server names of QUIC flows are not read: that needs the package cryptography; "
    "pip install 'netcls[quic]', or give --no-sni"
)


@dataclass(slots=True)
class Counters:
    """What happened to the packets and flows of a run, summed over its captures.

    Attributes:
        packets_seen: given by the readers.
        bytes_seen: captured bytes of those packets.
        packets_in_flows: taken by the flow tables.
        by_reason: int64 (256,), packets by :class:`capture.reject.Reject` value; entry 0 counts the decoded ones.
        captures, captures_cut, captures_failed: read, ended in the middle of a record, not readable.
        time_backwards: packets older than the packet clock.
        packets_in_tunnels: packets whose flow is inside of a tunnel.
        tunnels_not_followed: int64 (256,), packets that stayed with the outside of a tunnel, by ``Reject`` value.
        handshakes: what the trackers did, by the names of :class:`capture.handshake.HandshakeCounters`.
        fragments: what the fragment tables did, by the names of :class:`capture.fragment_table.FragmentCounters`.
        flows_started: flows begun; ``flows_ended`` counts by IPFIX reason name.
        flows_skipped: ended flows left out of the output by ``--min-packets``.
        predictions, unknown: flows answered, and how many of them as unknown.
        early_exit: answers given with ``--early-exit``: ``answers``, how many of them ``early``, the
            ``packets_looked_at`` and the ``packets_available`` to look at.
        flow_memory_peak_bytes: largest size of a flow table.
        interfaces: what was seen on each; empty for captures.
        queue_dropped: left out of the queue before the model: ``early`` looks, ``ready`` flows, ``ended`` records.
        flows_unanswered: ended live flows that the model did not get round to.
    """

    packets_seen: int = 0
    bytes_seen: int = 0
    packets_in_flows: int = 0
    by_reason: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    captures: int = 0
    captures_cut: int = 0
    captures_failed: int = 0
    time_backwards: int = 0
    packets_in_tunnels: int = 0
    tunnels_not_followed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    fragments: dict[str, int] = field(default_factory=dict)
    handshakes: dict[str, int] = field(default_factory=dict)
    flows_started: int = 0
    flows_open: int = 0
    flows_ended: dict[str, int] = field(default_factory=dict)
    flows_skipped: int = 0
    predictions: int = 0
    unknown: int = 0
    early_exit: dict[str, int] = field(default_factory=dict)
    flow_memory_peak_bytes: int = 0
    interfaces: dict[str, LiveCounters] = field(default_factory=dict)
    queue_dropped: dict[str, int] = field(default_factory=dict)
    flows_unanswered: int = 0

    def count_decoded(self, decoded: DecodedBlock) -> None:
        """Add the outcomes of one decoded block."""
        self.by_reason += np.bincount(decoded.reject, minlength=256)
        self.packets_in_tunnels += int(np.count_nonzero((decoded.tunnel_kind > 0) & (decoded.reject == 0)))

    def count_decoder(self, decoder: Decoder) -> None:
        """Add what a decoder did over its whole capture."""
        self.tunnels_not_followed += decoder.n_unfollowed
        for name, n in asdict(decoder.fragments).items():
            self.fragments[name] = self.fragments.get(name, 0) + n

    def count_handshakes(self, tracker: HandshakeTracker) -> None:
        """Add what a tracker did over its whole capture."""
        for name, n in asdict(tracker.counters).items():
            self.handshakes[name] = self.handshakes.get(name, 0) + n

    def count_looked_at(self, used: NDArray[np.uint16], available: NDArray[np.uint16]) -> None:
        """Add answers that may have come early, by the packets looked at and those there were to look at."""
        for name, n in (
            ("answers", len(used)),
            ("early", np.count_nonzero(used < available)),
            ("packets_looked_at", used.sum(dtype=np.int64)),
            ("packets_available", available.sum(dtype=np.int64)),
        ):
            self.early_exit[name] = self.early_exit.get(name, 0) + int(n)

    def add_table(self, counted: FlowCounters) -> None:
        """Add what a flow table has done."""
        self.packets_in_flows += counted.packets
        self.flows_started += counted.flows_started
        self.flows_open += counted.flows_open
        self.time_backwards += counted.packets_time_backwards
        self.flow_memory_peak_bytes = max(self.flow_memory_peak_bytes, counted.memory_bytes)
        for reason, n_flows in counted.flows_ended.items():
            name = reason.name.lower()
            self.flows_ended[name] = self.flows_ended.get(name, 0) + n_flows

    def add(self, other: Counters) -> None:
        """Add the books of another process that shares the interfaces."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if each.name == "interfaces":
                for name, counters in theirs.items():
                    mine[name] = mine[name].plus(counters) if name in mine else counters
            elif isinstance(mine, dict):
                for name, n in theirs.items():
                    mine[name] = mine.get(name, 0) + n
            else:
                setattr(self, each.name, mine + theirs)

    def rejected(self) -> dict[str, int]:
        """Undecodable packets by reason name; reasons that did not occur are left out."""
        return {
            r.name.lower(): int(self.by_reason[r])
            for r in Reject
            if 0 < r < IGNORED_FROM and self.by_reason[r]
        }

    def ignored(self) -> dict[str, int]:
        """Well-formed packets that belong to no flow, by reason name."""
        return {
            r.name.lower(): int(self.by_reason[r]) for r in Reject if r >= IGNORED_FROM and self.by_reason[r]
        }

    def imbalance_packets(self) -> int:
        """Seen minus (in flows + rejected + ignored); anything but 0 is a defect of netcls."""
        return self.packets_seen - self.packets_in_flows - int(self.by_reason[1:].sum())

    def books_balance(self) -> bool:
        """True if every packet seen is accounted for, and every flow that started is open or has ended."""
        return self.imbalance_packets() == 0 and self.flows_started == self.flows_open + sum(
            self.flows_ended.values()
        )

    def as_dict(self) -> dict[str, Any]:
        """The ``netcls`` object of a ``stats`` event."""
        return {
            "captures": {"read": self.captures, "cut": self.captures_cut, "failed": self.captures_failed},
            "packets": {
                "seen": self.packets_seen,
                "bytes": self.bytes_seen,
                "in_flows": self.packets_in_flows,
                "rejected": self.rejected(),
                "ignored": self.ignored(),
                "imbalance": self.imbalance_packets(),
                "time_backwards": self.time_backwards,
                "in_tunnels": self.packets_in_tunnels,
                "tunnels_not_followed": {
                    r.name.lower(): int(self.tunnels_not_followed[r])
                    for r in Reject
                    if self.tunnels_not_followed[r]
                },
                "fragments": {name: n for name, n in self.fragments.items() if n},
            },
            "flows": {
                "started": self.flows_started,
                "open": self.flows_open,
                "ended": dict(sorted(self.flows_ended.items())),
                "skipped": self.flows_skipped,
                "memory_peak_bytes": self.flow_memory_peak_bytes,
            },
            "handshakes": {name: n for name, n in self.handshakes.items() if n},
            "predictions": self.predictions,
            "unknown": self.unknown,
            **self._looked_at(),
        } | self._live()

    def capture(self) -> dict[str, int]:
        """Suricata's ``stats.capture``: what the kernel counted on all interfaces."""
        return {
            "kernel_packets": sum(live.n_kernel_packets for live in self.interfaces.values()),
            "kernel_drops": sum(live.n_kernel_drops for live in self.interfaces.values()),
        }

    def live_lines(self) -> list[str]:
        """The books of a live run in a line for each interface and one for the flows."""
        lines = []
        for name, live in self.interfaces.items():
            drops = (
                f"{live.n_kernel_drops:,} dropped by the kernel"
                if live.counts_drops
                else "drops are not known"
            )
            lines.append(f"{name}: {live.n_packets:,} packets, {drops}")
        left_out = sum(self.queue_dropped.values())
        n_ended = sum(self.flows_ended.values())
        balance = (
            "the books balance"
            if self.books_balance()
            else f"{self.imbalance_packets()} packets are not accounted for"
        )
        lines.append(
            f"{n_ended:,} flows, {self.predictions:,} answered, {self.flows_unanswered:,} not, "
            f"{left_out:,} left out by the queue; {balance}"
        )
        return lines

    def _looked_at(self) -> dict[str, Any]:
        """What early answers saved; a packet looked at costs the model the same wherever it stands."""
        if not self.early_exit:
            return {}
        looked_at, available = self.early_exit["packets_looked_at"], self.early_exit["packets_available"]
        return {
            "early_exit": {
                **self.early_exit,
                "packets_per_answer": looked_at / max(self.early_exit["answers"], 1),
                "compute_saved": 1 - looked_at / max(available, 1),
            }
        }

    def _live(self) -> dict[str, Any]:
        if not self.interfaces:
            return {}
        return {
            "interfaces": {name: asdict(live) for name, live in self.interfaces.items()},
            "queue_dropped": self.queue_dropped,
            "unanswered": self.flows_unanswered,
        }
