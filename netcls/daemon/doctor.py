"""What ``netcls doctor`` looks at."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from capture.errors import LiveError, NetclsError
from capture.live import interfaces as network

_LEAST_PYTHON: Final = (3, 11)
_LEAST_DISK_BYTES: Final = 200 << 20
_LEAST_RMEM: Final = 212_992
_EXTRAS: Final = {
    "serve": "uvicorn",
    "arrow": "pyarrow",
    "kafka": "confluent_kafka",
    "quic": "cryptography",
    "portable": "scapy",
    "lz4": "lz4",
    "train": "lightgbm",
}
_CPU_FLAGS: Final = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_vnni", "asimd")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what.
        state: ``ok``, ``warning`` or ``error``.
        found: what there is.
        remedy: what to do; empty where nothing is.
    """

    check: str
    state: str
    found: str
    remedy: str = ""


def examine(interfaces: Sequence[str] = ()) -> list[Finding]:
    """Look at everything; nothing raises."""
    looks: list[Callable[[], Iterator[Finding]]] = [
        _versions,
        _cpu,
        _numba_cache,
        _capture_rights,
        _kernel_buffers,
        _model,
        _extras,
        _disk,
    ]
    found = [finding for look in looks for finding in look()]
    for name in interfaces:
        found += _interface(name)
    return found


def _versions() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    state = "ok" if sys.version_info >= _LEAST_PYTHON else "error"
    yield Finding("python", state, version, "" if state == "ok" else "install Python 3.11 or newer")
    for package in ("netcls", "torch", "numba", "numpy"):
        try:
            yield Finding(package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "error", "not installed", "pip install netcls")


def _cpu() -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("threads", "ok", f"{usable} usable of {os.cpu_count()} cores")
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        yield Finding("cpu", "warning", "unknown; this is not Linux")
        return
    words = next((line.split() for line in text.splitlines() if line.startswith(("flags", "Features"))), [])
    has = [flag for flag in _CPU_FLAGS if flag in words]
    slow = not {"avx2", "asimd"} & set(has)
    yield Finding(
        "cpu",
        "warning" if slow else "ok",
        ", ".join(has) or "no vector unit known here",
        "expect it to be slow" if slow else "",
    )


def _numba_cache() -> Iterator[Finding]:
    import capture.kernels

    folder = os.environ.get("NUMBA_CACHE_DIR") or str(Path(capture.kernels.__file__).parent / "__pycache__")
    path = Path(folder)
    n = sum(1 for _ in path.rglob("*.nbc")) if path.is_dir() else 0
    if n:
        yield Finding("numba cache", "ok", f"{n} compiled kernels in {folder}")
    elif os.access(path if path.is_dir() else path.parent, os.W_OK):
        yield Finding("numba cache", "warning", f"empty: {folder}", "the first run compiles for a minute")
    else:
        yield Finding(
            "numba cache",
            "warning",
            f"cannot be written: {folder}",
            "set NUMBA_CACHE_DIR to a folder of mode 0700",
        )


def _capture_rights() -> Iterator[Finding]:
    if not hasattr(socket, "AF_PACKET"):
        yield Finding("ring", "warning", "no AF_PACKET sockets here", "use --backend scapy, or Linux")
        return
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError:
        yield Finding(
            "ring",
            "warning",
            "CAP_NET_RAW is missing",
            "to capture: sudo, AmbientCapabilities=CAP_NET_RAW in the unit, or --cap-add NET_RAW; files need none",
        )
        return
    except OSError as error:
        yield Finding("ring", "warning", f"no AF_PACKET socket: {error.strerror}", "use --backend scapy")
        return
    yield Finding("ring", "ok", "AF_PACKET sockets can be opened")
    from capture.live.packet_socket import RingSizes, open_rings

    try:
        for ring in open_rings("lo", sizes=RingSizes(1 << 20, 32)):
            ring.close()
    except LiveError as error:
        yield Finding("ring of 32 MiB", "warning", str(error))
        return
    yield Finding("ring of 32 MiB", "ok", "can be made on lo")


def _kernel_buffers() -> Iterator[Finding]:
    try:
        rmem = int(Path("/proc/sys/net/core/rmem_max").read_text())
    except (OSError, ValueError):
        return
    low = rmem < _LEAST_RMEM
    yield Finding(
        "net.core.rmem_max",
        "warning" if low else "ok",
        f"{rmem} bytes",
        f"sysctl net.core.rmem_max={_LEAST_RMEM}" if low else "",
    )


def _model() -> Iterator[Finding]:
    from models.checkpoint import resolve_name
    from models.checkpoint_files import read_files

    try:
        files = read_files(resolve_name("default"))
    except NetclsError as error:
        yield Finding("default model", "error", str(error), "install netcls again")
        return
    yield Finding(
        "default model", "ok", f"{files.path.resolve().name}, {len(files.labels)} labels, {files.digest}"
    )


def _extras() -> Iterator[Finding]:
    for extra, module in _EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        yield Finding(
            f"extra {extra}",
            "ok" if there else "warning",
            "installed" if there else "not installed",
            "" if there else f"where it is wanted: pip install 'netcls[{extra}]'",
        )


def _disk() -> Iterator[Finding]:
    for name in dict.fromkeys((str(Path.cwd()), tempfile.gettempdir())):
        free = shutil.disk_usage(name).free
        low = free < _LEAST_DISK_BYTES
        yield Finding(
            f"disk {name}",
            "warning" if low else "ok",
            f"{free >> 20} MiB free",
            "free some space" if low else "",
        )


def _interface(name: str) -> Iterator[Finding]:
    check = f"interface {name}"
    try:
        network.require_interface(name)
    except LiveError as error:
        yield Finding(check, "error", str(error))
        return
    up = network.is_up(name)
    yield Finding(
        check, "ok" if up else "warning", "up" if up else "down", "" if up else f"ip link set {name} up"
    )
    if merging := network.merging_offloads(name):
        off = " ".join(f"{offload} off" for offload in merging)
        yield Finding(
            f"{check} offloads",
            "warning",
            f"{' and '.join(merging)} on: packets are merged before they are seen",
            f"ethtool -K {name} {off}",
        )
    else:
        yield Finding(f"{check} offloads", "ok", "gro and lro are off")
