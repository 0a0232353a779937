"""Filter expressions (``tcp port 443``) to programs of the kernel's packet filter, by libpcap or tcpdump.

libpcap is asked through a handle on the interface, because only then it knows that the kernel keeps VLAN tags
beside the packet: compiled without one, ``vlan 10`` matches nothing live. Standard library only.

Source: pcap_compile(3PCAP); Linux, Documentation/networking/filter.rst.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import shutil
import struct
import subprocess
from typing import Any, Final

from capture.errors import LiveError

_LINK_ETHERNET: Final = 1
_LINK_RAW: Final = 101
_DLT_OF_LINK: Final = {_LINK_RAW: 12}  # where the two number spaces differ
_DLT_NAMES: Final = {1: "EN10MB", 12: "RAW", 105: "IEEE802_11", 127: "IEEE802_11_RADIO"}
_SNAPLEN: Final = 262_144
_ERROR_BYTES: Final = 256
_ANY_NETMASK: Final = 0xFFFFFFFF
_TCPDUMP_SECONDS: Final = 10


class _Program(ctypes.Structure):
    _fields_ = (("n", ctypes.c_uint), ("code", ctypes.c_void_p))


def compile_filter(expression: str, interface: str, link_type: int) -> bytes:
    """Compile an expression for the packets of an interface.

    Args:
        expression: as for tcpdump; see pcap-filter(7).
        interface: where it will be used.
        link_type: LINKTYPE number of its packets.

    Returns:
        The program, 8 bytes an instruction (``struct sock_filter``), native byte order.

    Raises:
        LiveError: if the expression is wrong, or neither libpcap nor tcpdump is there.
    """
    dlt = _DLT_OF_LINK.get(link_type, link_type)
    library = _libpcap()
    if library is not None:
        return _by_libpcap(library, expression, interface, dlt)
    tcpdump = shutil.which("tcpdump")
    if tcpdump is not None:
        return _by_tcpdump(tcpdump, expression, interface, dlt)
    raise LiveError(
        "--bpf needs libpcap (libpcap.so.0.8 or .so.1) or tcpdump, and neither is installed; "
        "run `apt-get install libpcap0.8`, or leave --bpf out"
    )


def _libpcap() -> Any:
    for name in ("libpcap.so.0.8", "libpcap.so.1", ctypes.util.find_library("pcap")):
        try:
            library = ctypes.CDLL(name) if name else None
        except OSError:
            continue
        if library is not None:
            break
    else:
        return None
    for function in ("pcap_create", "pcap_open_dead", "pcap_geterr"):
        getattr(library, function).restype = ctypes.c_char_p if function == "pcap_geterr" else ctypes.c_void_p
    library.pcap_create.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
    library.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
    library.pcap_compile.argtypes = (
        *(ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32),
    )
    library.pcap_freecode.argtypes = (ctypes.POINTER(_Program),)
    for function in ("pcap_activate", "pcap_close", "pcap_geterr"):
        getattr(library, function).argtypes = (ctypes.c_void_p,)
    library.pcap_set_snaplen.argtypes = (ctypes.c_void_p, ctypes.c_int)
    return library


def _by_libpcap(library: Any, expression: str, interface: str, dlt: int) -> bytes:
    handle = _live_handle(library, interface) if dlt == _LINK_ETHERNET else None
    if handle is None:
        handle = library.pcap_open_dead(dlt, _SNAPLEN)
    program = _Program()
    try:
        if library.pcap_compile(handle, ctypes.byref(program), expression.encode(), 1, _ANY_NETMASK) != 0:
            raise _wrong(expression, library.pcap_geterr(handle).decode("utf-8", "replace"))
        code = ctypes.string_at(program.code, program.n * 8)
        library.pcap_freecode(ctypes.byref(program))
    finally:
        library.pcap_close(handle)
    return code


def _live_handle(library: Any, interface: str) -> int | None:
    handle: int | None = library.pcap_create(interface.encode(), ctypes.create_string_buffer(_ERROR_BYTES))
    if handle is None:
        return None
    library.pcap_set_snaplen(handle, _SNAPLEN)
    # Positive values are warnings.
    if library.pcap_activate(handle) < 0:
        library.pcap_close(handle)
        return None
    return handle


def _by_tcpdump(tcpdump: str, expression: str, interface: str, dlt: int) -> bytes:
    name = _DLT_NAMES.get(dlt, str(dlt))
    tries = [["-i", interface]] if dlt == _LINK_ETHERNET else []
    done = None
    for where in [*tries, ["-y", name]]:
        command = [tcpdump, "-ddd", "-s", str(_SNAPLEN), *where, "--", expression]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_TCPDUMP_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LiveError(f"tcpdump cannot compile the --bpf filter: {error}; install libpcap") from None
        if done.returncode == 0:
            lines = done.stdout.split("\n")
            instructions = [tuple(map(int, line.split())) for line in lines[1 : 1 + int(lines[0])]]
            return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    assert done is not None
    raise _wrong(expression, done.stderr.strip().rpartition("\n")[2].removeprefix("tcpdump: "))


def _wrong(expression: str, why: str) -> LiveError:
    return LiveError(f"--bpf '{expression}': {why}; see `man pcap-filter`")
