"""Opens AF_PACKET sockets with a TPACKET_V3 ring. Standard library only, see the package.

Everything that needs a capability happens in :func:`open_ring`: afterwards they can all be dropped.

Source: Linux, Documentation/networking/packet_mmap.rst; packet(7).
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from typing import Final

from capture.errors import LiveError
from capture.live import interfaces
from capture.live.filters import compile_filter

SOL_PACKET: Final = 263
_PACKET_ADD_MEMBERSHIP: Final = 1
_PACKET_RX_RING: Final = 5
_PACKET_STATISTICS: Final = 6
_PACKET_VERSION: Final = 10
_PACKET_RESERVE: Final = 12
_PACKET_FANOUT: Final = 18
_PACKET_IGNORE_OUTGOING: Final = 23
_PACKET_MR_PROMISC: Final = 1
_TPACKET_V3: Final = 2
_FANOUT_HASH: Final = 0
_FANOUT_UNIQUE_ID: Final = 0x2000
_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27
# `ret #0`, one struct sock_filter: nothing passes.
_NOTHING_PASSES: Final = struct.pack("=HBBI", 0x06, 0, 0, 0)
_ETH_P_ALL: Final = 3

VLAN_TAG_BYTES: Final = 4  # room in front of each frame, so that a tag can be put back in place
_FRAME_BYTES: Final = 2048  # only a unit to count in: V3 packs frames one behind the other

LINK_ETHERNET: Final = 1
LINK_RAW: Final = 101
_LINK_TYPES: Final = {
    interfaces.ARPHRD_ETHER: LINK_ETHERNET,
    interfaces.ARPHRD_LOOPBACK: LINK_ETHERNET,
    interfaces.ARPHRD_IEEE80211: 105,
    interfaces.ARPHRD_IEEE80211_RADIOTAP: 127,
}


@dataclass(frozen=True, slots=True)
class RingSizes:
    """Memory of one ring.

    Attributes:
        block_bytes: the kernel hands over one block at a time; a power of two of whole pages.
        n_blocks: of the ring.
        retire_ms: a block that is not full is handed over after so long.
    """

    block_bytes: int = 1 << 20
    n_blocks: int = 32
    retire_ms: int = 10

    @property
    def ring_bytes(self) -> int:
        """Of all blocks."""
        return self.block_bytes * self.n_blocks


@dataclass(slots=True)
class RingSocket:
    """A bound socket whose ring the kernel fills; ``capture.live.ring`` reads it. A child process may be given it.

    Attributes:
        socket: AF_PACKET.
        name: of the interface, as given.
        index: the interface it is bound to.
        hardware: ARPHRD type of the interface.
        link_type: LINKTYPE number of its packets.
        sizes: of the ring.
        promisc: whether every frame on the wire was asked for.
        program: filter that is attached when the capture begins; empty: everything passes.
        in_fanout: whether it shares the interface with other sockets; it then cannot be bound again.
    """

    socket: socket.socket
    name: str
    index: int
    hardware: int
    link_type: int
    sizes: RingSizes
    promisc: bool
    program: bytes
    in_fanout: bool

    def begin(self) -> None:
        """Let packets in, from now on; until here the ring stays empty, however long it takes to get ready.

        Raises:
            LiveError: if the kernel refuses the filter.
        """
        if self.program:
            _attach(self.socket, self.program)
        else:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)

    def statistics(self) -> tuple[int, int, int]:
        """Packets (drops included), drops, and times the ring was full, since the last call, which resets them."""
        packets, drops, freezes = struct.unpack(
            "=III", self.socket.getsockopt(SOL_PACKET, _PACKET_STATISTICS, 12)
        )
        return packets, drops, freezes

    def pending_error(self) -> int:
        """The errno of what happened to the socket (ENETDOWN), 0 if nothing; reading resets it."""
        return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def bind_again(self) -> None:
        """Bind to the interface that has the name now. Needs no capability.

        Raises:
            LiveError: if it is of another kind than the old one.
        """
        index = interfaces.require_interface(self.name)
        hardware = interfaces.hardware_type(self.name)
        if hardware != self.hardware:
            raise LiveError(
                f"interface '{self.name}' came back as another kind (hardware type {hardware}, was {self.hardware}); "
                f"start netcls again"
            )
        self.socket.bind((self.name, _ETH_P_ALL))
        self.index = index
        if self.promisc:
            _make_promiscuous(self.socket, index)

    def close(self) -> None:
        """Leave the interface."""
        self.socket.close()


def open_rings(
    name: str, *, sizes: RingSizes, promisc: bool = False, bpf: str = "", n_sockets: int = 1
) -> list[RingSocket]:
    """Sockets on an interface; several share its packets by flow (PACKET_FANOUT). Nothing arrives before ``begin``.

    Args:
        name: of the interface.
        sizes: of each ring.
        promisc: ask for frames to other hosts too.
        bpf: filter expression of libpcap; empty: everything.
        n_sockets: one for each worker.

    Raises:
        LiveError: if there is no such interface, the capability or the memory is missing, or the filter is wrong.
    """
    index = interfaces.require_interface(name)
    hardware = interfaces.hardware_type(name)
    if hardware is None:
        raise LiveError(f"interface '{name}' has just gone; look with `ip link`")
    link_type = _LINK_TYPES.get(hardware, LINK_RAW)
    rings: list[RingSocket] = []
    try:
        program = b""
        fanout = 0
        for _ in range(n_sockets):
            opened = _open_socket(name, link_type)
            if bpf and not program:
                program = compile_filter(bpf, name, link_type)
            ring = RingSocket(
                opened, name, index, hardware, link_type, sizes, promisc, program, n_sockets > 1
            )
            rings.append(ring)
            _set_up(ring)
            if n_sockets > 1:
                fanout = _join_fanout(opened, fanout)
    except BaseException:
        for ring in rings:
            ring.close()
        raise
    return rings


def _open_socket(name: str, link_type: int) -> socket.socket:
    if not hasattr(socket, "AF_PACKET"):
        raise LiveError("this system has no AF_PACKET sockets (Linux has); use --backend scapy")
    # Protocol 0: nothing arrives before the socket is bound, so no packet of another interface gets in.
    # Where the link layer is none of those we know, the kernel takes it off (SOCK_DGRAM).
    kind = socket.SOCK_DGRAM if link_type == LINK_RAW else socket.SOCK_RAW
    try:
        return socket.socket(socket.AF_PACKET, kind, 0)
    except PermissionError:
        raise LiveError(
            f"not permitted to capture on '{name}': CAP_NET_RAW is missing; run `sudo netcls sniff {name}` (netcls "
            f"drops every privilege once the socket is bound), or give the capability: in a systemd unit "
            f"AmbientCapabilities=CAP_NET_RAW, in a container --cap-add NET_RAW, or `setcap cap_net_raw+ep` on a "
            f"copy of Python that only netcls uses"
        ) from None


def _set_up(ring: RingSocket) -> None:
    """Ring, a filter that nothing passes, then bind."""
    opened, sizes = ring.socket, ring.sizes
    n_frames = sizes.ring_bytes // _FRAME_BYTES
    request = struct.pack(
        "=7I", sizes.block_bytes, sizes.n_blocks, _FRAME_BYTES, n_frames, sizes.retire_ms, 0, 0
    )
    try:
        opened.setsockopt(SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        opened.setsockopt(SOL_PACKET, _PACKET_RESERVE, VLAN_TAG_BYTES)
        opened.setsockopt(SOL_PACKET, _PACKET_RX_RING, request)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise LiveError(
                f"no memory for a ring of {sizes.ring_bytes >> 20} MiB on '{ring.name}'; give a smaller --ring-mib"
            ) from None
        raise LiveError(
            f"the kernel refuses a packet ring on '{ring.name}' ({error.strerror}); use --backend scapy"
        ) from None
    _attach(opened, _NOTHING_PASSES)
    if ring.hardware == interfaces.ARPHRD_LOOPBACK:
        # Loopback shows each packet leaving and arriving; one of the two is enough.
        opened.setsockopt(SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    try:
        opened.bind((ring.name, _ETH_P_ALL))
    except OSError as error:
        raise LiveError(f"cannot capture on '{ring.name}': {error.strerror}; look with `ip link`") from None
    if ring.promisc:
        _make_promiscuous(opened, ring.index)


def _make_promiscuous(opened: socket.socket, index: int) -> None:
    # The kernel takes it back when the socket is closed, however the process ends.
    opened.setsockopt(SOL_PACKET, _PACKET_ADD_MEMBERSHIP, struct.pack("=iHH8x", index, _PACKET_MR_PROMISC, 0))


def _join_fanout(opened: socket.socket, group: int) -> int:
    """Join a group, or make one where ``group`` is 0; returns its number, never 0."""
    try:
        if group == 0:
            opened.setsockopt(SOL_PACKET, _PACKET_FANOUT, (_FANOUT_HASH | _FANOUT_UNIQUE_ID) << 16)
            return opened.getsockopt(SOL_PACKET, _PACKET_FANOUT) & 0xFFFF | 1 << 16
        opened.setsockopt(SOL_PACKET, _PACKET_FANOUT, group & 0xFFFF | _FANOUT_HASH << 16)
    except OSError as error:
        raise LiveError(
            f"the kernel refuses to share packets among workers ({error.strerror}); use --workers 1"
        ) from None
    return group


def _attach(opened: socket.socket, program: bytes) -> None:
    import ctypes

    code = ctypes.create_string_buffer(program, len(program))
    filter_program = struct.pack("HL", len(program) // 8, ctypes.addressof(code))
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_program)
    except OSError as error:
        raise LiveError(f"the kernel refuses the --bpf filter ({error.strerror}); simplify it") from None
