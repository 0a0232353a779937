"""Opens what ``sniff`` listens to. Imports no numpy: privileges are dropped between opening and everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from capture.errors import UsageError
from capture.live import interfaces
from capture.live.packet_socket import RingSizes, RingSocket, open_rings

if TYPE_CHECKING:
    from capture.live.base import LiveSource

BACKENDS: Final = ("ring", "scapy")
BLOCK_BYTES: Final = 1 << 20
_FEWEST_BLOCKS: Final = 2


@dataclass(frozen=True, slots=True)
class Listening:
    """What to listen to, and how.

    Attributes:
        names: of interfaces.
        backend: ``ring`` (AF_PACKET, Linux) or ``scapy``.
        bpf: filter expression; empty: everything.
        promisc: frames to other hosts too.
        workers: processes that share the packets.
        ring_mib: memory of each ring, MiB.

    Raises:
        UsageError: from the constructor, for what cannot be.
    """

    names: Sequence[str]
    backend: str = "ring"
    bpf: str = ""
    promisc: bool = False
    workers: int = 1
    ring_mib: int = 32

    def __post_init__(self) -> None:
        if not self.names:
            raise UsageError("no interface given; `ip link` lists them")
        if len(set(self.names)) != len(self.names):
            raise UsageError(f"an interface is named twice in {' '.join(self.names)}; name each once")
        if self.backend not in BACKENDS:
            raise UsageError(f"backend is '{self.backend}'; expected one of {', '.join(BACKENDS)}")
        if self.workers < 1:
            raise UsageError(f"workers is {self.workers}; give 1 or more")
        if self.workers > 1 and self.backend == "scapy":
            raise UsageError(
                "several workers share packets in the kernel, which scapy's backend cannot; use --workers 1"
            )
        if self.ring_mib < _FEWEST_BLOCKS:
            raise UsageError(f"a ring of {self.ring_mib} MiB is too small; give {_FEWEST_BLOCKS} or more")


@dataclass(slots=True)
class Opened:
    """Sockets that are open, before anything reads them.

    Attributes:
        rings: of each worker, one for each interface.
        scapy: sources of scapy's backend.
        warnings: about the interfaces.
    """

    rings: list[list[RingSocket]] = field(default_factory=list)
    scapy: list[LiveSource] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def sources(self) -> list[LiveSource]:
        """Sources of a single worker."""
        if self.scapy:
            return self.scapy
        from capture.live.ring import RingSource

        (rings,) = self.rings
        return [RingSource(ring) for ring in rings]

    def close(self) -> None:
        """Close what nobody has taken over."""
        for sockets in self.rings:
            for ring in sockets:
                ring.close()


def open_interfaces(listening: Listening) -> Opened:
    """Open every interface; the only step that needs CAP_NET_RAW.

    Raises:
        LiveError: if one of them cannot be opened; none is left open then.
    """
    opened = Opened(rings=[[] for _ in range(listening.workers)])
    sizes = RingSizes(BLOCK_BYTES, listening.ring_mib)
    try:
        for name in listening.names:
            if listening.backend == "scapy":
                from capture.live.scapy_source import ScapySource

                opened.scapy.append(ScapySource(name, promisc=listening.promisc, bpf=listening.bpf))
                continue
            rings = open_rings(
                name, sizes=sizes, promisc=listening.promisc, bpf=listening.bpf, n_sockets=listening.workers
            )
            for sockets, ring in zip(opened.rings, rings, strict=True):
                sockets.append(ring)
            if merging := interfaces.merging_offloads(name):
                opened.warnings.append(
                    f"{' and '.join(merging)} of '{name}' merges packets before they are seen: the model sees another "
                    f"network; run `ethtool -K {name} {' '.join(f'{offload} off' for offload in merging)}`"
                )
    except BaseException:
        opened.close()
        for source in opened.scapy:
            source.close()
        raise
    return opened
