"""Network interfaces by name, and what the kernel says of them. Standard library only."""

from __future__ import annotations

import ctypes
import difflib
import fcntl
import socket
import struct
from typing import Final

from capture.errors import LiveError

# ARPHRD_*, the hardware types of linux/if_arp.h.
ARPHRD_ETHER: Final = 1
ARPHRD_LOOPBACK: Final = 772
ARPHRD_IEEE80211: Final = 801
ARPHRD_IEEE80211_RADIOTAP: Final = 803

_SIOCGIFFLAGS: Final = 0x8913
_SIOCGIFHWADDR: Final = 0x8927
_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GGRO: Final = 0x2B
_ETHTOOL_GFLAGS: Final = 0x25
_ETH_FLAG_LRO: Final = 1 << 15
_IFF_UP: Final = 1
_IFNAMSIZ: Final = 16


def index_of(name: str) -> int | None:
    """The number of an interface, None if there is none of that name."""
    try:
        return socket.if_nametoindex(name)
    except (OSError, ValueError):
        return None


def name_of(index: int) -> str | None:
    """The present name of an interface, None if it is gone."""
    try:
        return socket.if_indextoname(index)
    except (OSError, OverflowError):
        return None


def require_interface(name: str) -> int:
    """The number of an interface.

    Raises:
        LiveError: if there is none of that name.
    """
    index = index_of(name)
    if index is None:
        known = sorted(known_name for _, known_name in socket.if_nameindex())
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise LiveError(f"no interface '{name}'; this machine has {', '.join(known) or 'none'}{hint}")
    return index


def is_up(name: str) -> bool:
    """True if an interface is there and up."""
    answer = _ask(name, _SIOCGIFFLAGS)
    return answer is not None and bool(struct.unpack_from("=H", answer, 16)[0] & _IFF_UP)


def hardware_type(name: str) -> int | None:
    """An interface's ARPHRD number, None if it is gone."""
    answer = _ask(name, _SIOCGIFHWADDR)
    return None if answer is None else int(struct.unpack_from("=H", answer, 16)[0])


def _ask(name: str, request: int) -> bytes | None:
    """An ``ifreq`` filled in by the kernel."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            return fcntl.ioctl(any_socket, request, name.encode()[: _IFNAMSIZ - 1].ljust(40, b"\0"))
        except OSError:
            return None


def merging_offloads(name: str) -> list[str]:
    """Which of ``gro`` and ``lro`` are on: they merge received packets before anybody sees them."""
    if hardware_type(name) == ARPHRD_LOOPBACK:
        return []  # nothing to merge that was ever apart
    found = []
    if _ethtool(name, _ETHTOOL_GGRO):
        found.append("gro")
    if _ethtool(name, _ETHTOOL_GFLAGS) & _ETH_FLAG_LRO:
        found.append("lro")
    return found


def _ethtool(name: str, command: int) -> int:
    """The value that an ethtool command reads; 0 where the driver does not know it."""
    value = ctypes.create_string_buffer(struct.pack("=II", command, 0), 8)
    request = name.encode()[: _IFNAMSIZ - 1].ljust(_IFNAMSIZ, b"\0") + struct.pack(
        "P16x", ctypes.addressof(value)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
        except OSError:
            return 0
    return int(struct.unpack("=II", value.raw)[1])
