"""Memory of the flow table: rows of open flows, slabs, the list of flows that wait. Layout, and the few moves on it.

Nothing here grows while packets come: arrays have their final size from the start, and rows are handed out from
the low end, so the system backs only what was used. Only the index (``flow_index``) is rebuilt larger.

Flows that hold a slab and have not been given out early are a doubly linked ring of row numbers in the order of their
first packets; row ``SENTINEL`` is its head, the newest at ``EARLY_PREV`` of it. The orders by last packet are in
``flow_order``.
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
HOLDS_SLAB: Final = 512
SEQ_SEEN: Final = 1024  # << direction: where SYN_KNOWN is not, `syn_seq` is one below the first number seen

NO_SLAB: Final = -1
SENTINEL: Final = 0
FIRST_ROW: Final = 1
EARLY_PREV: Final = 0
EARLY_NEXT: Final = 1
N_LINKS: Final = 2
NEVER_NS: Final = 1 << 62


# What follows the other fields of FLOW_DTYPE, and the tunnel path. Few flows have it, and a fourth cache line for each
# flow costs all of them: it lies beside the rows, in an array that only tunnelled flows touch.
TUNNEL_DTYPE: Final = np.dtype(
    [("id", "<u4", (2,)), ("kind", "<u4"), ("depth", "<u4"), ("path", "<u8")]
)  # the first three as in FLOW_DTYPE


# Word of a row for each word of a record, but for the tunnel and the last one: see `OPEN_FLOW_DTYPE`.
ROW_WORD_OF: Final = (16, 17, 18, 6, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 19)
# The last one is put together from two words of a row; these bits (flags and quality, which packets change) are hot.
HOT_WORD: Final = 7
COLD_WORD: Final = 20
HOT_BITS: Final = 0x0000FF00FFFF0000

# A row of the table: three cache lines. The first two are what every packet of an open flow needs, the third is for
# the first packets and the end. Fields of FLOW_DTYPE have the same names here, signed where they have 64 bits: numba
# makes uint64 + int64 a float.
OPEN_FLOW_DTYPE: Final = np.dtype(
    [
        ("client", "<u8", (2,)),
        ("server", "<u8", (2,)),
        ("key_rest", "<u8"),
        ("started_ns", "<i8"),  # table clock at the first packet
        ("last_ts_ns", "<i8"),
        ("state", "<u2"),  # from here on, bytes stand as in the word that holds `tcp_flags` in a record
        ("tcp_flags", "u1", (2,)),
        ("spare_0", "u1"),
        ("quality", "u1"),
        ("key_inner_vlan", "<u2"),
        # Second line.
        ("packets", "<i8", (2,)),
        ("frame_bytes", "<i8", (2,)),
        ("ip_bytes", "<i8", (2,)),
        ("payload_bytes", "<i8", (2,)),
        # Third line.
        ("serial", "<i8"),
        ("flow_id", "<i8"),
        ("first_ts_ns", "<i8"),
        ("client_port", "<u2"),
        ("server_port", "<u2"),
        ("vlan", "<u2", (2,)),
        ("protocol", "u1"),
        ("ip_version", "u1"),
        ("spare_1", "u1", (2,)),
        ("end_reason", "u1"),
        ("spare_2", "u1"),
        ("n_kept", "<u2"),
        ("syn_seq", "<u4", (2,)),  # of the last SYN per direction; see SYN_KNOWN, SEQ_SEEN
        ("tag", "<u4"),
        ("slab", "<i4"),  # while HOLDS_SLAB
        ("spare_3", "<u8"),
    ]
)
TUNNEL_WORDS: Final = 2  # of a record, at its end
RECORD_WORDS: Final = FLOW_DTYPE.itemsize // 8
PACKET_BYTES: Final = PACKET_DTYPE.itemsize
OPEN_FLOW_BYTES: Final = OPEN_FLOW_DTYPE.itemsize
OPEN_FLOW_WORDS: Final = OPEN_FLOW_BYTES // 8
HOT_BYTES: Final = 128

FORESEEN_ROWS: Final = 32  # a power of two

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
        ("flows_at", "<i8"),  # OPEN_FLOW_DTYPE (max_flows + 1,)
        ("links_at", "<i8"),  # int32 (max_flows + 1, N_LINKS)
        ("places_at", "<i8"),  # these four: see flow_order
        ("holding_places_at", "<i8"),
        ("order_rows_at", "<i8", (3,)),
        ("order_times_at", "<i8", (3,)),
        ("order_first", "<i8", (3,)),  # entries before it do not count
        ("order_end", "<i8", (3,)),
        ("tunnels_at", "<i8"),  # TUNNEL_DTYPE (max_flows + 1,)
        ("slots_at", "<i8"),  # uint64 (n_slots,), see flow_index
        ("slab_packets_at", "<i8"),  # PACKET_DTYPE (max_slabs * n_packets,)
        ("slab_data_at", "<i8"),  # uint8 (max_slabs * n_byte_packets * row bytes,)
        ("slab_chain_at", "<i8"),  # int32 (max_slabs,)
        ("ended_at", "<i8"),  # int64 (max_ended_rows, RECORD_WORDS), where flows leave
        ("ready_at", "<i8"),  # int64 (max_ready_rows, RECORD_WORDS)
        ("ready_packets_at", "<i8"),  # PACKET_DTYPE (max_ready_rows * n_packets,)
        ("ready_data_at", "<i8"),  # uint8 (max_ready_rows * n_byte_packets * row bytes,)
        ("data_at", "<i8"),  # uint8 (data_bytes,), bytes of the block at hand
        (
            "foreseen",
            "<i8",
            (FORESEEN_ROWS,),
        ),  # row for packet i at i % FORESEEN_ROWS, a guess; see flow_update
        ("clock_ns", "<i8"),  # see `flow_update.tick`
        ("newest_ns", "<i8"),
        ("n_stale", "<i8"),  # packets in a row that were far older than `newest_ns`
        ("next_serial", "<i8"),
        ("n_open", "<i8"),
        ("rows_used", "<i8"),  # rows ever handed out, the sentinel included
        ("free_row", "<i8"),  # first of a chain through EARLY_NEXT; 0: none
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
def pointer(_context, address):  # type: ignore[no-untyped-def]
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
    """OPEN_FLOW_DTYPE (max_flows + 1,)."""
    return carray(pointer(table.flows_at), (table.max_flows + FIRST_ROW,), OPEN_FLOW_DTYPE)


@njit(cache=True, nogil=True)
def words_of(table):  # type: ignore[no-untyped-def]
    """The same memory as int64 (max_flows + 1, OPEN_FLOW_WORDS)."""
    return carray(pointer(table.flows_at), (table.max_flows + FIRST_ROW, OPEN_FLOW_WORDS), np.int64)


@njit(cache=True, nogil=True)
def links_of(table):  # type: ignore[no-untyped-def]
    """int32 (max_flows + 1, N_LINKS)."""
    return carray(pointer(table.links_at), (table.max_flows + FIRST_ROW, N_LINKS), np.int32)


@njit(cache=True, nogil=True)
def tunnels_of(table):  # type: ignore[no-untyped-def]
    """TUNNEL_DTYPE (max_flows + 1,)."""
    return carray(pointer(table.tunnels_at), (table.max_flows + FIRST_ROW,), TUNNEL_DTYPE)


@njit(cache=True, nogil=True)
def tunnel_words_of(table):  # type: ignore[no-untyped-def]
    """The same memory as int64 (max_flows + 1, 3)."""
    return carray(pointer(table.tunnels_at), (table.max_flows + FIRST_ROW, TUNNEL_WORDS + 1), np.int64)


@njit(cache=True, nogil=True)
def slab_chain_of(table):  # type: ignore[no-untyped-def]
    """int32 (max_slabs,)."""
    return carray(pointer(table.slab_chain_at), (table.max_slabs,), np.int32)


@njit(cache=True, nogil=True)
def slots_of(table):  # type: ignore[no-untyped-def]
    """uint64 (n_slots,)."""
    return carray(pointer(table.slots_at), (table.n_slots,), np.uint64)


@njit(cache=True, nogil=True)
def records_at(address, n):  # type: ignore[no-untyped-def]
    """int64 (n, RECORD_WORDS) at an address: FLOW_DTYPE records as words."""
    return carray(pointer(address), (n, RECORD_WORDS), np.int64)


@njit(cache=True, nogil=True)
def bytes_at(address, n):  # type: ignore[no-untyped-def]
    """uint8 (n,) at an address."""
    return carray(pointer(address), (n,), np.uint8)


@njit(cache=True, nogil=True)
def slab_packets_of(table):  # type: ignore[no-untyped-def]
    """PACKET_DTYPE (max_slabs * n_packets,)."""
    return carray(pointer(table.slab_packets_at), (table.max_slabs * table.n_packets,), PACKET_DTYPE)


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
def stop_waiting(table, row):  # type: ignore[no-untyped-def]
    """Take a row out of the ring of those that wait to be given out early."""
    links = links_of(table)
    before = links[row, EARLY_PREV]
    behind = links[row, EARLY_NEXT]
    links[before, EARLY_NEXT] = behind
    links[behind, EARLY_PREV] = before


@njit(cache=True, nogil=True)
def start_waiting(table, row):  # type: ignore[no-untyped-def]
    """Put a row at the newest end of that ring."""
    links = links_of(table)
    newest = links[SENTINEL, EARLY_PREV]
    links[newest, EARLY_NEXT] = row
    links[row, EARLY_PREV] = newest
    links[row, EARLY_NEXT] = SENTINEL
    links[SENTINEL, EARLY_PREV] = row


@njit(cache=True, nogil=True)
def take_row(table):  # type: ignore[no-untyped-def]
    """A row for a new flow. The caller has made sure that there is one."""
    row = table.free_row
    if row != 0:
        table.free_row = np.int64(links_of(table)[row, EARLY_NEXT])
    else:
        row = table.rows_used
        table.rows_used = row + 1
    table.n_open += 1
    return row


@njit(cache=True, nogil=True)
def give_row(table, row):  # type: ignore[no-untyped-def]
    """A row back; the last one given is the first one taken, so memory in use stays compact."""
    links_of(table)[row, EARLY_NEXT] = table.free_row
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
    flow.state = (flow.state & ~GIVEN_EARLY & 0xFFFF) | HOLDS_SLAB
    if table.early_ns > 0:
        start_waiting(table, row)


@njit(cache=True, nogil=True)
def give_slab(table, row):  # type: ignore[no-untyped-def]
    """The slab of the flow in ``row`` back to the pool."""
    flow = flows_of(table)[row]
    slab = np.int64(flow.slab)
    slab_chain_of(table)[slab] = table.free_slab
    table.free_slab = slab
    table.n_slabs_held -= 1
    flow.state &= ~HOLDS_SLAB & 0xFFFF
    if table.early_ns > 0 and not flow.state & GIVEN_EARLY:
        stop_waiting(table, row)
