"""Memory of the flow table: rows of open flows, lists through them, slabs. Layout, and the few moves on it.

Nothing here grows while packets come: arrays have their final size from the start, and rows are handed out from
the low end, so the system backs only what was used. Only the index (``flow_index``) is rebuilt larger.

Lists are doubly linked rings of row numbers with a sentinel row, newest at ``PREV`` of the sentinel:
row ``IDLE`` heads the open flows in the order of their last packets, row ``CLOSING`` those that TCP has closed,
in the second pair of columns row ``IDLE`` heads the flows that hold a slab, in the order of their last packets, and in
the third those of them that have not been given out early, in the order of their first packets.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE

FIN: Final = 1
SYN: Final = 2
RST: Final = 4
ACK: Final = 16

# Bits of an open flow's `state`; all but the first describe the connection and outlive an active timeout.
CLIENT_IS_HIGH: Final = 1
IS_CLOSING: Final = 2  # RST seen, or FIN from both sides
ANSWERED: Final = 4  # packets in both directions
FIN_SEEN: Final = 8  # << direction
SYN_KNOWN: Final = 32  # << direction: `syn_seq` of that direction holds its SYN's sequence number
GIVEN_EARLY: Final = 128  # the ready timeout has passed; this one does not outlive an active timeout
IS_TUNNELLED: Final = 256  # the row of `tunnels` is this flow's

NO_SLAB: Final = -1
FIRST_ROW: Final = 2  # rows 0 and 1 are the sentinels
IDLE: Final = 0
CLOSING: Final = 1
PREV: Final = 0
NEXT: Final = 1
SLAB_PREV: Final = 2
SLAB_NEXT: Final = 3
EARLY_PREV: Final = 4
EARLY_NEXT: Final = 5
N_LINKS: Final = 6
NEVER_NS: Final = 1 << 62


# What follows the other fields of FLOW_DTYPE, and the tunnel path. Few flows have it, and a fourth cache line for each
# flow costs all of them: it lies beside the rows, in an array that only tunnelled flows touch.
TUNNEL_DTYPE: Final = np.dtype(
    [("id", "<u4", (2,)), ("kind", "<u4"), ("depth", "<u4"), ("path", "<u8")]
)  # the first three as in FLOW_DTYPE


def _open_flow_dtype() -> np.dtype[np.void]:
    """FLOW_DTYPE but for its tunnel, with signed 64-bit fields, then what only the table needs.

    Signed, because numba makes uint64 + int64 a float.
    """
    names = [name for name in FLOW_DTYPE.names or () if not name.startswith("tunnel_")]
    fields = {name: FLOW_DTYPE.fields[name] for name in names} if FLOW_DTYPE.fields else {}
    formats: list[object] = []
    for name in names:
        base = fields[name][0].base
        if name in ("client", "server"):
            formats.append(("<u8", (2,)))
        else:
            formats.append(("<i8" if base == np.uint64 else base, fields[name][0].shape))
    private = [
        ("seen_ns", "<i8"),  # table clock at the last packet
        ("started_ns", "<i8"),  # table clock at the first packet
        ("key_rest", "<u8"),
        ("tag", "<u4"),
        ("slab", "<i4"),
        ("syn_seq", ("<u4", (2,))),  # of the last SYN per direction
        ("key_inner_vlan", "<u2"),
        ("state", "<u2"),
    ]
    offsets = [fields[name][1] for name in names]
    at = 8 * ROW_WORDS
    for name, kind in private:
        names.append(name)
        formats.append(kind)
        offsets.append(at)
        at += np.dtype(kind).itemsize
    # Three cache lines.
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": 192})


TUNNEL_WORDS: Final = 2  # of a record, at its end
RECORD_WORDS: Final = FLOW_DTYPE.itemsize // 8
ROW_WORDS: Final = RECORD_WORDS - TUNNEL_WORDS  # of a record, as they stand in the row
OPEN_FLOW_DTYPE: Final = _open_flow_dtype()
PACKET_BYTES: Final = PACKET_DTYPE.itemsize
OPEN_FLOW_BYTES: Final = OPEN_FLOW_DTYPE.itemsize
OPEN_FLOW_WORDS: Final = OPEN_FLOW_BYTES // 8
LINK_BYTES: Final = 4 * N_LINKS

# The one argument of every kernel here: limits, counters, and where the arrays lie (`*_at`: address of the first byte).
# A record travels as one pointer; an array as seven words and a reference count, and helpers that LLVM does not
# inline were handed a hundred words at every call: 500 instead of 40 ns a packet.
TABLE_DTYPE: Final = np.dtype(
    [
        ("idle_ns", "<i8"),
        ("active_ns", "<i8"),
        ("linger_ns", "<i8"),
        ("early_ns", "<i8"),  # ready timeout; 0: none
        ("n_packets", "<i8"),  # these four as in KeepSpec
        ("n_byte_packets", "<i8"),
        ("header_bytes", "<i8"),
        ("payload_bytes", "<i8"),
        ("max_flows", "<i8"),
        ("max_slabs", "<i8"),
        ("max_ended_rows", "<i8"),
        ("max_ready_rows", "<i8"),
        ("n_slots", "<i8"),  # a power of two
        ("data_bytes", "<i8"),
        ("flows_at", "<i8"),  # OPEN_FLOW_DTYPE (max_flows + 2,)
        ("links_at", "<i8"),  # int32 (max_flows + 2, N_LINKS)
        ("tunnels_at", "<i8"),  # TUNNEL_DTYPE (max_flows + 2,)
        ("slots_at", "<i8"),  # uint64 (n_slots,), see flow_index
        ("slab_packets_at", "<i8"),  # PACKET_DTYPE (max_slabs * n_packets,)
        ("slab_data_at", "<i8"),  # uint8 (max_slabs * n_byte_packets * row bytes,)
        ("slab_chain_at", "<i8"),  # int32 (max_slabs,)
        ("ended_at", "<i8"),  # int64 (max_ended_rows, RECORD_WORDS), where flows leave
        ("ready_at", "<i8"),  # int64 (max_ready_rows, RECORD_WORDS)
        ("ready_packets_at", "<i8"),  # PACKET_DTYPE (max_ready_rows * n_packets,)
        ("ready_data_at", "<i8"),  # uint8 (max_ready_rows * n_byte_packets * row bytes,)
        ("data_at", "<i8"),  # uint8 (data_bytes,), bytes of the block at hand
        ("clock_ns", "<i8"),  # see `flow_update.tick`
        ("newest_ns", "<i8"),
        ("n_stale", "<i8"),  # packets in a row that were far older than `newest_ns`
        ("next_serial", "<i8"),
        ("n_open", "<i8"),
        ("rows_used", "<i8"),  # rows ever handed out, sentinels included
        ("free_row", "<i8"),  # first of a chain through NEXT; 0: none
        ("slabs_used", "<i8"),
        ("free_slab", "<i8"),  # first of a chain through `slab_chain`; NO_SLAB: none
        ("n_slabs_held", "<i8"),
        ("packets", "<i8"),
        ("ready", "<i8"),
        ("early", "<i8"),
        ("time_backwards", "<i8"),
        ("ended", "<i8", (8,)),  # by EndReason
        ("n_ended_rows", "<i8"),  # filled rows of the output
        ("n_ready_rows", "<i8"),
    ]
)


@intrinsic
def _pointer(_context, address):  # type: ignore[no-untyped-def]
    """An int64 address as a pointer."""

    def code(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), code


@intrinsic
def prefetch(_context, address):  # type: ignore[no-untyped-def]
    """Have the processor fetch the cache line of an int64 address; any address will do, nothing is read."""

    def code(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        pointer = builder.inttoptr(arguments[0], cgutils.voidptr_t)
        # For writing, to be kept in all levels, data.
        builder.call(function, [pointer, number(1), number(3), number(1)])
        return _context.get_dummy_value()

    return types.void(address), code


@njit(cache=True, nogil=True)
def flows_of(table):  # type: ignore[no-untyped-def]
    """OPEN_FLOW_DTYPE (max_flows + 2,)."""
    return carray(_pointer(table.flows_at), (table.max_flows + FIRST_ROW,), OPEN_FLOW_DTYPE)


@njit(cache=True, nogil=True)
def words_of(table):  # type: ignore[no-untyped-def]
    """The same memory as int64 (max_flows + 2, 24)."""
    return carray(_pointer(table.flows_at), (table.max_flows + FIRST_ROW, OPEN_FLOW_WORDS), np.int64)


@njit(cache=True, nogil=True)
def links_of(table):  # type: ignore[no-untyped-def]
    """int32 (max_flows + 2, N_LINKS)."""
    return carray(_pointer(table.links_at), (table.max_flows + FIRST_ROW, N_LINKS), np.int32)


@njit(cache=True, nogil=True)
def tunnels_of(table):  # type: ignore[no-untyped-def]
    """TUNNEL_DTYPE (max_flows + 2,)."""
    return carray(_pointer(table.tunnels_at), (table.max_flows + FIRST_ROW,), TUNNEL_DTYPE)


@njit(cache=True, nogil=True)
def tunnel_words_of(table):  # type: ignore[no-untyped-def]
    """The same memory as int64 (max_flows + 2, 3)."""
    return carray(_pointer(table.tunnels_at), (table.max_flows + FIRST_ROW, TUNNEL_WORDS + 1), np.int64)


@njit(cache=True, nogil=True)
def slab_chain_of(table):  # type: ignore[no-untyped-def]
    """int32 (max_slabs,)."""
    return carray(_pointer(table.slab_chain_at), (table.max_slabs,), np.int32)


@njit(cache=True, nogil=True)
def slots_of(table):  # type: ignore[no-untyped-def]
    """uint64 (n_slots,)."""
    return carray(_pointer(table.slots_at), (table.n_slots,), np.uint64)


@njit(cache=True, nogil=True)
def records_at(address, n):  # type: ignore[no-untyped-def]
    """int64 (n, RECORD_WORDS) at an address: FLOW_DTYPE records as words."""
    return carray(_pointer(address), (n, RECORD_WORDS), np.int64)


@njit(cache=True, nogil=True)
def bytes_at(address, n):  # type: ignore[no-untyped-def]
    """uint8 (n,) at an address."""
    return carray(_pointer(address), (n,), np.uint8)


@njit(cache=True, nogil=True)
def slab_packets_of(table):  # type: ignore[no-untyped-def]
    """PACKET_DTYPE (max_slabs * n_packets,)."""
    return carray(_pointer(table.slab_packets_at), (table.max_slabs * table.n_packets,), PACKET_DTYPE)


@njit(cache=True, nogil=True)
def slab_data_of(table):  # type: ignore[no-untyped-def]
    """uint8 (max_slabs * n_byte_packets * row bytes,)."""
    size = table.n_byte_packets * (table.header_bytes + table.payload_bytes)
    return bytes_at(table.slab_data_at, table.max_slabs * size)


@njit(cache=True, nogil=True)
def ready_packets_of(table):  # type: ignore[no-untyped-def]
    """PACKET_DTYPE (max_ready_rows * n_packets,), as bytes."""
    return bytes_at(table.ready_packets_at, table.max_ready_rows * table.n_packets * PACKET_BYTES)


@njit(cache=True, nogil=True)
def ready_data_of(table):  # type: ignore[no-untyped-def]
    """uint8 (max_ready_rows * n_byte_packets * row bytes,)."""
    size = table.n_byte_packets * (table.header_bytes + table.payload_bytes)
    return bytes_at(table.ready_data_at, table.max_ready_rows * size)


@njit(cache=True, nogil=True)
def unlink(table, row, column):  # type: ignore[no-untyped-def]
    """Take a row out of its ring; ``column`` is PREV, SLAB_PREV or EARLY_PREV."""
    links = links_of(table)
    before = links[row, column]
    behind = links[row, column + 1]
    links[before, column + 1] = behind
    links[behind, column] = before


@njit(cache=True, nogil=True)
def append(table, row, head, column):  # type: ignore[no-untyped-def]
    """Put a row at the newest end of the ring of ``head``."""
    links = links_of(table)
    newest = links[head, column]
    links[newest, column + 1] = row
    links[row, column] = newest
    links[row, column + 1] = head
    links[head, column] = row


@njit(cache=True, nogil=True)
def take_row(table):  # type: ignore[no-untyped-def]
    """A row for a new flow. The caller has made sure that there is one."""
    row = table.free_row
    if row != 0:
        table.free_row = np.int64(links_of(table)[row, NEXT])
    else:
        row = table.rows_used
        table.rows_used = row + 1
    table.n_open += 1
    return row


@njit(cache=True, nogil=True)
def give_row(table, row):  # type: ignore[no-untyped-def]
    """A row back; the last one given is the first one taken, so memory in use stays compact."""
    links_of(table)[row, NEXT] = table.free_row
    table.free_row = row
    table.n_open -= 1


@njit(cache=True, nogil=True)
def take_slab(table, row):  # type: ignore[no-untyped-def]
    """A slab for the flow in ``row``. The caller has made sure that there is one."""
    slab = table.free_slab
    if slab != NO_SLAB:
        table.free_slab = np.int64(slab_chain_of(table)[slab])
    else:
        slab = table.slabs_used
        table.slabs_used = slab + 1
    table.n_slabs_held += 1
    flow = flows_of(table)[row]
    flow.slab = slab
    flow.state &= ~GIVEN_EARLY & 0xFFFF
    append(table, row, IDLE, SLAB_PREV)
    if table.early_ns > 0:
        append(table, row, IDLE, EARLY_PREV)


@njit(cache=True, nogil=True)
def give_slab(table, row):  # type: ignore[no-untyped-def]
    """The slab of the flow in ``row`` back to the pool."""
    flow = flows_of(table)[row]
    slab = np.int64(flow.slab)
    slab_chain_of(table)[slab] = table.free_slab
    table.free_slab = slab
    table.n_slabs_held -= 1
    flow.slab = NO_SLAB
    unlink(table, row, SLAB_PREV)
    if table.early_ns > 0 and not flow.state & GIVEN_EARLY:
        unlink(table, row, EARLY_PREV)
