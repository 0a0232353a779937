"""The table by which later fragments find the flow of their first one. Rules: docs/decode.md, "Fragments".

``N_SETS`` sets of ``N_WAYS`` datagrams; the keyed hash of (addresses, protocol, identification, tunnel path, VLANs)
says which set, and the oldest of a full set makes room. So memory is fixed, and every step looks at 8 entries.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from capture.kernels.helper import helper
from capture.kernels.siphash import siphash_id

N_SETS: Final = 256
N_WAYS: Final = 8
MAX_PIECES: Final = 128  # of one datagram: 64 KiB in pieces of 512 bytes

# What a packet's flow is called; `unwrap` writes it, a later fragment takes it over.
_IDENTITY: Final = [
    ("src", "<u8", (2,)),
    ("dst", "<u8", (2,)),
    ("tunnel_path", "<u8"),
    ("tunnel_id", "<u4"),
    ("src_port", "<u2"),
    ("dst_port", "<u2"),
    ("vlan", "<u2", (2,)),
    ("protocol", "u1"),
    ("ip_version", "u1"),
    ("tunnel_kind", "u1"),
    ("tunnel_depth", "u1"),
]
# What names a datagram (RFC 791, 3.2; RFC 8200, 4.5), and which of its bytes this fragment has.
FRAGMENT_DTYPE: Final = np.dtype(
    [
        ("from", "<u8", (2,)),
        ("to", "<u8", (2,)),
        ("scope", "<u8"),
        ("ident", "<u8"),  # identification, protocol (IPv4), version
        ("start", "<i8"),
        ("stop", "<i8"),
        ("is_last", "<i8"),
    ]
)
DATAGRAM_DTYPE: Final = np.dtype(
    [
        *_IDENTITY,
        ("from", "<u8", (2,)),
        ("to", "<u8", (2,)),
        ("scope", "<u8"),
        ("ident", "<u8"),
        ("head", "<u8"),  # the first eight bytes
        ("first_ns", "<i8"),
        ("n_bytes", "<i8"),  # seen so far
        ("end", "<i8"),  # of the last fragment; 0: not seen
        ("n_pieces", "<i8"),  # 0: the entry is free
        ("pieces", "<i4", (2 * MAX_PIECES,)),  # start and stop of each
    ]
)
# The table itself, one record.
FRAGMENTS_DTYPE: Final = np.dtype(
    [
        ("k0", "<u8"),
        ("k1", "<u8"),
        ("limit_ns", "<i8"),
        ("datagrams", "<i8"),
        ("joined", "<i8"),
        ("complete", "<i8"),
        ("expired", "<i8"),
        ("evicted", "<i8"),
    ]
)

NOT_THERE: Final = -1
FITS: Final = 0
REPEATED: Final = 1
OVERLAPS: Final = 2
TOO_MANY: Final = 3


@helper
def first_way(table, fragment):  # type: ignore[no-untyped-def]
    """Number of the first entry of the set of a datagram."""
    digest = siphash_id(
        table.k0,
        table.k1,
        fragment["from"][0],
        fragment["from"][1],
        fragment["to"][0],
        fragment["to"][1],
        fragment["scope"],
        fragment["ident"],
        np.uint64(0),
    )
    return np.int64(digest & np.uint64(N_SETS - 1)) * N_WAYS


@helper
def find_datagram(table, entries, fragment, ts_ns):  # type: ignore[no-untyped-def]
    """Entry of the datagram of a fragment, or ``NOT_THERE``; one that is too old is freed on the way."""
    first = first_way(table, fragment)
    for at in range(first, first + N_WAYS):
        entry = entries[at]
        if entry.n_pieces == 0:
            continue
        if entry.ident != fragment["ident"] or entry.scope != fragment["scope"]:
            continue
        is_same = True
        for word in range(2):
            is_same &= entry["from"][word] == fragment["from"][word]
            is_same &= entry["to"][word] == fragment["to"][word]
        if not is_same:
            continue
        if abs(ts_ns - entry.first_ns) > table.limit_ns:
            if entry.end == 0 or entry.n_bytes < entry.end:
                table.expired += 1
            entry.n_pieces = 0
            return NOT_THERE
        return at
    return NOT_THERE


@helper
def new_datagram(table, entries, fragment, ts_ns):  # type: ignore[no-untyped-def]
    """An entry for a datagram that is not there, its identity to be filled in; ends the oldest of a full set."""
    first = first_way(table, fragment)
    best = first
    for at in range(first, first + N_WAYS):
        if entries[at].n_pieces == 0:
            best = at
            break
        if entries[at].first_ns < entries[best].first_ns:
            best = at
    entry = entries[best]
    if entry.n_pieces != 0 and (entry.end == 0 or entry.n_bytes < entry.end):
        if abs(ts_ns - entry.first_ns) > table.limit_ns:
            table.expired += 1
        else:
            table.evicted += 1
    table.datagrams += 1
    for word in range(2):
        entry["from"][word] = fragment["from"][word]
        entry["to"][word] = fragment["to"][word]
    entry.scope = fragment["scope"]
    entry.ident = fragment["ident"]
    entry.first_ns = ts_ns
    entry.n_bytes = 0
    entry.end = 0
    entry.n_pieces = 0
    return best


@helper
def judge_piece(entry, start, stop):  # type: ignore[no-untyped-def]
    """Whether a piece fits into what was seen of its datagram: FITS, REPEATED, OVERLAPS or TOO_MANY."""
    for piece in range(entry.n_pieces):
        begin = entry.pieces[2 * piece]
        end = entry.pieces[2 * piece + 1]
        if begin == start and end == stop:
            return REPEATED
        if start < end and begin < stop:
            return OVERLAPS
    return TOO_MANY if entry.n_pieces == MAX_PIECES else FITS


@helper
def add_piece(table, entry, start, stop, is_last):  # type: ignore[no-untyped-def]
    """Note a piece that fits."""
    entry.pieces[2 * entry.n_pieces] = start
    entry.pieces[2 * entry.n_pieces + 1] = stop
    entry.n_pieces += 1
    entry.n_bytes += stop - start
    if is_last:
        entry.end = stop
    if entry.end != 0 and entry.n_bytes == entry.end:
        table.complete += 1
