"""Which flow was seen longest ago: three logs of (row, time), appended to at every packet.

``IDLE`` holds the open flows in the order of their last packets, ``CLOSING`` those that TCP has closed, ``HOLDING``
those that hold a slab. An entry counts only while it is the last one of its row, which the row's *place* says. So a
packet writes at the end of a log, which is in the cache, and one word among the places. The linked list that stood here
had it write three lines anywhere in memory (docs/decisions/0022-order-by-log.md).

Entries that no longer count are passed over at the front, and swept out when a log is twice as long as it need be: less
than three visits for each entry ever written. The order is exact; nothing is approximated.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import carray, njit

from capture.kernels.flow_state import FIRST_ROW, NEVER_NS, pointer, prefetch

IDLE: Final = 0
CLOSING: Final = 1
HOLDING: Final = 2
N_ORDERS: Final = 3

NO_ROW: Final = 0  # the sentinel's
NOWHERE: Final = 0
# Entries that a log may have beyond two for each flow: tables of few flows are not swept all the time.
SPARE_ENTRIES: Final = 1024
ENTRY_BYTES: Final = 12
_SWEEP_AHEAD: Final = 32


@njit(cache=True, nogil=True)
def _most_entries(table, order):  # type: ignore[no-untyped-def]
    """A log of more is swept. At least half of it is then free, since a row counts once."""
    n = table.n_slabs_held if order == HOLDING else table.n_open
    return 2 * n + SPARE_ENTRIES


@njit(cache=True, nogil=True)
def rows_of(table, order):  # type: ignore[no-untyped-def]
    """int32 (entries,): rows in the order of their last packets."""
    n = 2 * (table.max_slabs if order == HOLDING else table.max_flows) + SPARE_ENTRIES
    return carray(pointer(table.order_rows_at[order]), (n,), np.int32)


@njit(cache=True, nogil=True)
def times_of(table, order):  # type: ignore[no-untyped-def]
    """int64 (entries,): the table's clock at those packets."""
    n = 2 * (table.max_slabs if order == HOLDING else table.max_flows) + SPARE_ENTRIES
    return carray(pointer(table.order_times_at[order]), (n,), np.int64)


@njit(cache=True, nogil=True)
def places_of(table, order):  # type: ignore[no-untyped-def]
    """int32 (max_flows + 1,): `_mark` of the entry that counts, NOWHERE if none does.

    IDLE and CLOSING share one array, since a flow is in one of them.
    """
    at = table.holding_places_at if order == HOLDING else table.places_at
    return carray(pointer(at), (table.max_flows + FIRST_ROW,), np.int32)


@njit(cache=True, nogil=True)
def _mark(order, entry):  # type: ignore[no-untyped-def]
    """What ``place`` holds for an entry: it tells the two logs that share an array apart."""
    return 2 * (entry + 1) + (order & 1)


@njit(cache=True, nogil=True)
def _sweep(table, order):  # type: ignore[no-untyped-def]
    """Move the entries that count to the front of the log, in their order."""
    rows, times, places = rows_of(table, order), times_of(table, order), places_of(table, order)
    places_at = table.holding_places_at if order == HOLDING else table.places_at
    to = 0
    end = table.order_end[order]
    for entry in range(table.order_first[order], end):
        if entry + _SWEEP_AHEAD < end:
            prefetch(places_at + 4 * np.int64(rows[entry + _SWEEP_AHEAD]))
        row = rows[entry]
        place = places[row]
        counts = place == _mark(order, entry)
        # Written either way: whether an entry counts is a coin's throw, which no processor foresees.
        rows[to] = row
        times[to] = times[entry]
        places[row] = _mark(order, to) if counts else place
        to += np.int64(counts)
    table.order_first[order] = 0
    table.order_end[order] = to


@njit(cache=True, nogil=True)
def make_newest(table, order, row):  # type: ignore[no-untyped-def]
    """The flow in ``row`` has a packet now. It leaves IDLE for CLOSING, and the other way round."""
    places = places_of(table, order)
    end = table.order_end[order]
    # Packets come in bursts: often it is the newest already.
    if end > 0 and places[row] == _mark(order, end - 1):
        times_of(table, order)[end - 1] = table.clock_ns
        return
    if end >= _most_entries(table, order):
        _sweep(table, order)
        end = table.order_end[order]
    rows_of(table, order)[end] = row
    times_of(table, order)[end] = table.clock_ns
    places[row] = _mark(order, end)
    table.order_end[order] = end + 1


@njit(cache=True, nogil=True)
def leave(table, order, row):  # type: ignore[no-untyped-def]
    """The flow in ``row`` is no longer in the order; IDLE stands for CLOSING, too."""
    places_of(table, order)[row] = NOWHERE


@njit(cache=True, nogil=True)
def is_open(table, row):  # type: ignore[no-untyped-def]
    """True if there is a flow in ``row``."""
    return places_of(table, IDLE)[row] != NOWHERE


@njit(cache=True, nogil=True)
def may_be_older(table, order, age_ns):  # type: ignore[no-untyped-def]
    """False if no flow was last seen more than ``age_ns`` ago. One comparison: what does not count is older still."""
    first = table.order_first[order]
    return first < table.order_end[order] and table.clock_ns - times_of(table, order)[first] > age_ns


@njit(cache=True, nogil=True)
def oldest(table, order):  # type: ignore[no-untyped-def]
    """(row, clock when it was last seen) of the least recently seen flow; (NO_ROW, NEVER_NS) if there is none."""
    rows, places = rows_of(table, order), places_of(table, order)
    first, end = table.order_first[order], table.order_end[order]
    while first < end and places[rows[first]] != _mark(order, first):
        first += 1
    table.order_first[order] = first
    if first == end:
        table.order_first[order] = table.order_end[order] = 0
        return np.int64(NO_ROW), np.int64(NEVER_NS)
    return np.int64(rows[first]), times_of(table, order)[first]
