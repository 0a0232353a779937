"""A wire to test on: a network namespace of one's own with a veth pair. Without root the tests skip, and say why."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest

NEAR, FAR = "near0", "far0"  # what is sent on one end arrives at the other
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _IFF_RUNNING = 0x8913, 0x40


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def why_not() -> str:
    """Why there can be no wire here; empty if there can."""
    if os.geteuid() != 0:
        return "needs root for a network namespace"
    if shutil.which("ip") is None:
        return "needs `ip` (iproute2)"
    try:
        with wire():
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespace with a veth pair here: {error}"


@contextmanager
def wire() -> Iterator[None]:
    """Be in a new namespace with a quiet veth pair that is up; children of this thread are in it too."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _unshare(_CLONE_NEWNET)
        try:
            make_pair()
            yield
        finally:
            _enter(before)
    finally:
        os.close(before)


def make_pair() -> None:
    ip("link", "set", "lo", "up")
    ip("link", "add", NEAR, "type", "veth", "peer", "name", FAR)
    for name in (NEAR, FAR):
        # No address, no neighbour discovery: nothing is on the wire but what a test sends.
        ip("link", "set", name, "addrgenmode", "none")
        ip("link", "set", name, "up")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def send(frames: Iterable[bytes], interface: str = NEAR) -> int:
    """Put frames on the wire as they are, once it carries; returns how many."""
    n = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((interface, 0))
        # Until the kernel has seen that the other end is up it drops what is sent, without a word.
        until(lambda: carries(sender, interface))
        for frame in frames:
            try:
                sender.send(frame)
            except OSError as error:
                if error.errno != 105:  # ENOBUFS: the queue is full
                    raise
                time.sleep(0.01)
                sender.send(frame)
            n += 1
    return n


def carries(any_socket: socket.socket, interface: str) -> bool:
    """Whether an interface is up and so is its other end (IFF_RUNNING, netdevice(7))."""
    request = struct.pack("16sh14x", interface.encode(), 0)
    flags: int = struct.unpack("16xh14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[0]
    return bool(flags & _IFF_RUNNING)


def tagged(frame: bytes, vlan: int, tpid: int = 0x8100) -> bytes:
    return frame[:12] + struct.pack(">HH", tpid, vlan) + frame[12:]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that will come; how long is not asserted."""
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s, "it did not come"
        time.sleep(0.02)


_REASON = why_not()
needs_wire = pytest.mark.skipif(bool(_REASON), reason=_REASON)
