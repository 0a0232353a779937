"""scapy's sniffer as a source, for systems without AF_PACKET: some thousand packets a second, and no count of drops.

scapy (GPL) is an optional extra: ``pip install 'netcls[portable]'``. It is imported when a source is opened.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Any, Final

import numpy as np

from capture.block import PacketBlock
from capture.errors import LiveError
from capture.live.base import LiveSource
from capture.live.packet_socket import LINK_ETHERNET, LINK_RAW

_MOST_WAITING: Final = 65_536  # packets; beyond them the newest are dropped, and counted
_NS_PER_S: Final = 1_000_000_000
# Class of the outermost layer -> LINKTYPE.
_LINK_TYPES: Final = {"Ether": LINK_ETHERNET, "Dot3": LINK_ETHERNET, "IP": LINK_RAW, "IPv6": LINK_RAW}
_OTHER_LINK_TYPES: Final = {
    "Loopback": 0,
    "CookedLinux": 113,
    "CookedLinuxV2": 276,
    "RadioTap": 127,
    "Dot11": 105,
}


class ScapySource(LiveSource):
    """Packets that scapy's ``AsyncSniffer`` takes from an interface.

    Args:
        name: of the interface.
        promisc: ask for frames to other hosts too.
        bpf: filter expression; empty: everything.

    Raises:
        LiveError: if scapy is missing, or it cannot open the interface.
    """

    def __init__(self, name: str, *, promisc: bool = False, bpf: str = "") -> None:
        try:
            # The layers tell scapy what the frames of an interface are; all of them would take a second.
            import scapy.layers.inet
            import scapy.layers.inet6
            import scapy.layers.l2  # noqa: F401
            from scapy.config import conf
            from scapy.sendrecv import AsyncSniffer
        except ImportError:
            raise LiveError("--backend scapy needs scapy; run `pip install 'netcls[portable]'`") from None
        super().__init__(name, LINK_ETHERNET)
        self.counters.counts_drops = False
        self._waiting: deque[tuple[int, int, int, bytes]] = deque()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK) if hasattr(os, "pipe2") else os.pipe()
        self._lock = threading.Lock()
        try:
            opened = conf.L2listen(iface=name, filter=bpf or None, promisc=promisc)
        except Exception as error:
            self._close_pipe()
            raise LiveError(
                f"scapy cannot capture on '{name}': {error}; run netcls with sudo, or look with `ip link`"
            ) from None
        self._opened: Any = opened
        self._sniffer: Any = AsyncSniffer(opened_socket=opened, prn=self._take, store=False)
        self._sniffer.start()

    def _take(self, packet: Any) -> None:
        """In scapy's thread: one packet."""
        layer = type(packet).__name__
        link_type = _LINK_TYPES.get(layer, _OTHER_LINK_TYPES.get(layer, 0xFFFF))
        raw = bytes(packet.original)
        entry = (int(packet.time * _NS_PER_S), packet.wirelen or len(raw), link_type, raw)
        with self._lock:
            self.counters.n_kernel_packets += 1
            if len(self._waiting) >= _MOST_WAITING:
                self.counters.n_kernel_drops += 1
                return
            self._waiting.append(entry)
            if len(self._waiting) == 1:
                os.write(self._wake_write, b"\0")

    def fileno(self) -> int:
        """Of a pipe that scapy's thread writes to."""
        return self._wake_read

    def next_block(self) -> PacketBlock | None:
        """All packets that have come, copied."""
        with self._lock:
            if not self._waiting:
                return None
            os.read(self._wake_read, 16)
            entries, self._waiting = list(self._waiting), deque()
        lengths = np.array([len(raw) for *_, raw in entries], np.int64)
        self.counters.n_packets += len(entries)
        self.counters.n_bytes += int(lengths.sum())
        return PacketBlock(
            ts_ns=np.array([entry[0] for entry in entries], np.int64),
            captured_len=lengths.astype(np.uint32),
            wire_len=np.array([entry[1] for entry in entries], np.uint32),
            offset=np.cumsum(lengths) - lengths,
            link_type=np.array([entry[2] for entry in entries], np.uint16),
            data=np.frombuffer(b"".join(raw for *_, raw in entries), np.uint8),
        )

    def count(self) -> None:
        """Counted as they come; what the system dropped before, nobody tells us."""

    def _look(self) -> str:
        error = getattr(self._sniffer, "exception", None)
        if error is not None or not self._sniffer.running:
            raise LiveError(
                f"scapy stopped capturing on '{self.name}': {error or 'the interface has gone'}; start netcls again"
            )
        return ""

    def close(self) -> None:
        """Stop scapy's thread."""
        opened, self._opened = self._opened, None
        if opened is None:
            return
        if self._sniffer.running:
            self._sniffer.stop(join=True)
        opened.close()
        self._close_pipe()

    def _close_pipe(self) -> None:
        os.close(self._wake_read)
        os.close(self._wake_write)
