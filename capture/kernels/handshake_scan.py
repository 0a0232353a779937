"""Which packets of a block may hold a part of a ClientHello: a look at the first bytes of each payload."""

from __future__ import annotations

import numpy as np
from numba import njit

from capture.kernels.decode import _u8, _u32

_TCP = 6
_UDP = 17


@njit(cache=True, nogil=True)
def find_hellos(packets, decoded, waiting, rows):  # type: ignore[no-untyped-def]
    """Write the numbers of the packets to look at to the front of ``rows`` and return how many (at most its length).

    Args:
        packets: (data, offset, captured_len) of a PacketBlock that lies inside ``data``.
        decoded: (reject, protocol, src_port, payload_offset, payload_len) of its DecodedBlock.
        waiting: uint8 (65536,), not 0: some dialogue waits for more bytes from this source port.
        rows: int64 (m,).
    """
    data, offset, captured_len = packets
    reject, protocol, src_port, payload_offset, payload_len = decoded
    n = 0
    for i in range(reject.size):
        if reject[i] != 0 or payload_len[i] == 0:
            continue
        at = np.int64(offset[i]) + np.int64(payload_offset[i])
        held = min(
            np.int64(captured_len[i]) - np.int64(payload_offset[i]),
            np.int64(payload_len[i]),
        )
        if held < 7:
            wanted = held > 0 and protocol[i] == _TCP and waiting[src_port[i]] != 0
        elif protocol[i] == _TCP:
            # A record of kind 22, version 3.x, that begins with message 1.
            wanted = waiting[src_port[i]] != 0
            wanted |= _u8(data, at) == 22 and _u8(data, at + 1) == 3 and _u8(data, at + 5) == 1
        elif protocol[i] == _UDP:
            # A long header (the fixed bit may be greased, RFC 9287), and of version 1 or 2 an Initial.
            wanted = False
            first = _u8(data, at)
            if first & 0x80:
                version = _u32(data, at + 1)
                kind = first >> 4 & 3
                is_first_kind = version == 1 or 0xFF000017 <= version <= 0xFF000022  # and drafts 23 to 34
                wanted = (is_first_kind and kind == 0) or (version == 0x6B3343CF and kind == 1)
        else:
            wanted = False
        if wanted:
            if n == rows.size:
                break
            rows[n] = i
            n += 1
    return n
