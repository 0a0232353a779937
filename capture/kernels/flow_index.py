"""From key to row: open addressing with linear probing and backward-shift deletion.

A slot is ``tag << 32 | row``; 0 is empty (row 0 is a sentinel, never a flow). The tag is 32 bits of the keyed hash:
its low bits say where the slot belongs, all of it tells most strangers apart without touching their rows.
There are always at least twice as many slots as flows, so a probe meets an empty one soon.

Source: Knuth, The Art of Computer Programming 3, section 6.4, algorithms L and R.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from capture.kernels.flow_order import is_open
from capture.kernels.flow_state import (
    CLIENT_IS_HIGH,
    HOLDS_SLAB,
    HOT_BYTES,
    IS_TUNNELLED,
    OPEN_FLOW_BYTES,
    flows_of,
    prefetch,
    slots_of,
    tunnels_of,
)
from capture.tunnel import is_directional, mix

NOT_FOUND: Final = -1
MAX_TWINS: Final = (
    8  # flows of one key and one pair of tunnel endpoints that are told apart by their ids alone
)
_ROW = 0xFFFFFFFF
_FORESEEN_SLOTS: Final = 4
_CACHE_LINE: Final = 64


@njit(cache=True, nogil=True)
def is_crowded(table):  # type: ignore[no-untyped-def]
    """True if one more flow would fill more than half of the slots."""
    return 2 * (table.n_open + 1) > table.n_slots


@njit(cache=True, nogil=True)
def _has_key(flow, packet):  # type: ignore[no-untyped-def]
    """True if the flow is the packet's, but for tunnels."""
    if flow.key_rest != packet.rest or flow.key_inner_vlan != packet.inner_vlan:
        return False
    if flow.state & CLIENT_IS_HIGH:
        low, high = flow.server, flow.client
    else:
        low, high = flow.client, flow.server
    return (
        low[1] == packet.low[1]
        and high[1] == packet.high[1]
        and low[0] == packet.low[0]
        and high[0] == packet.high[0]
    )


@njit(cache=True, nogil=True)
def find(table, packet):  # type: ignore[no-untyped-def]
    """Row of the flow of a packet (a ROW_DTYPE record), or NOT_FOUND."""
    if packet.path != 0:
        return _find_tunnelled(table, packet)
    slots = slots_of(table)
    mask = slots.size - 1
    tag = np.int64(packet.tag)
    at = tag & mask
    while True:
        slot = slots[at]
        if slot == 0:
            return np.int64(NOT_FOUND)
        if np.int64(slot >> np.uint64(32)) == tag:
            row = np.int64(slot) & _ROW
            flow = flows_of(table)[row]
            if _has_key(flow, packet) and flow.state & IS_TUNNELLED == 0:
                return row
        at = (at + 1) & mask


@njit(cache=True, nogil=True)
def find_near(table, packet, row):  # type: ignore[no-untyped-def]
    """As `find`, where ``row`` is what was foreseen for the packet: a row in which its flow may be, or 0."""
    if row != 0 and packet.path == 0 and is_open(table, row):
        flow = flows_of(table)[row]
        if _has_key(flow, packet) and flow.state & IS_TUNNELLED == 0:
            return row
    return find(table, packet)


@njit(cache=True, nogil=True)
def _find_tunnelled(table, packet):  # type: ignore[no-untyped-def]
    """As `find`, for a packet in a tunnel.

    Where each direction has an id of its own, tunnels with the same inner flow share a tag until their ids tell them
    apart. So that nobody makes a long chain of them, only ``MAX_TWINS`` do; further ones hash their id, too (their
    other direction, which has another id, is then a flow of its own). May change ``packet.tag`` to where it belongs.
    """
    if not is_directional(packet.tunnel_kind):
        row, _ = _find_twin(table, packet, False)
        return row
    row, n_twins = _find_twin(table, packet, True)
    if row != NOT_FOUND:
        return row
    shared_tag = packet.tag
    packet.tag = np.uint32(mix(np.uint64(shared_tag), np.uint64(packet.tunnel_id)))
    row, _ = _find_twin(table, packet, True)
    if row == NOT_FOUND and n_twins < MAX_TWINS:
        packet.tag = shared_tag
    return row


@njit(cache=True, nogil=True)
def _find_twin(table, packet, by_id):  # type: ignore[no-untyped-def]
    """(row or NOT_FOUND, flows met that differ in nothing but their ids).

    With ``by_id``: the flow whose id in the packet's direction is the packet's, else the oldest without one there.
    """
    slots = slots_of(table)
    mask = slots.size - 1
    tag = np.int64(packet.tag)
    at = tag & mask
    found = np.int64(NOT_FOUND)
    n_twins = 0
    while slots[at] != 0:
        slot = slots[at]
        at = (at + 1) & mask
        if np.int64(slot >> np.uint64(32)) != tag:
            continue
        row = np.int64(slot) & _ROW
        flow = flows_of(table)[row]
        if not _has_key(flow, packet) or flow.state & IS_TUNNELLED == 0:
            continue
        tunnel = tunnels_of(table)[row]
        if tunnel.path != packet.path:
            continue
        if not by_id:
            return row, 0
        direction = np.int64(packet.swapped) ^ (np.int64(flow.state) & CLIENT_IS_HIGH)
        if tunnel.id[direction] == packet.tunnel_id:
            return row, n_twins
        n_twins += 1
        if tunnel.id[direction] == 0 and (found == NOT_FOUND or flow.serial < flows_of(table)[found].serial):
            found = row
    return found, n_twins


@njit(cache=True, nogil=True)
def foresee_slot(table, packet):  # type: ignore[no-untyped-def]
    """Have the slot of a coming packet fetched."""
    prefetch(table.slots_at + 8 * (np.int64(packet.tag) & (table.n_slots - 1)))


@njit(cache=True, nogil=True)
def foreseen_row(table, packet):  # type: ignore[no-untyped-def]
    """The row in which the flow of a coming packet probably is, 0 if it is not near its slot."""
    slots = slots_of(table)
    mask = slots.size - 1
    tag = np.int64(packet.tag)
    for step in range(_FORESEEN_SLOTS):
        slot = slots[(tag + step) & mask]
        if slot == 0:
            return np.int64(0)
        if np.int64(slot >> np.uint64(32)) == tag:
            return np.int64(slot) & _ROW
    return np.int64(0)


@njit(cache=True, nogil=True)
def foresee_flow(table, packet):  # type: ignore[no-untyped-def]
    """Have the hot lines of a coming packet's flow fetched, and its place in the order; returns the row, or 0."""
    row = foreseen_row(table, packet)
    at = table.flows_at + row * OPEN_FLOW_BYTES
    for line in range(0, HOT_BYTES, _CACHE_LINE):
        prefetch(at + line)
    prefetch(table.places_at + 4 * row)
    return row


@njit(cache=True, nogil=True)
def foresee_rest(table, row):  # type: ignore[no-untyped-def]
    """Have the rest of a flow fetched where a coming packet needs it; the hot lines are there by now."""
    if flows_of(table)[row].state & HOLDS_SLAB:
        prefetch(table.flows_at + row * OPEN_FLOW_BYTES + HOT_BYTES)
        prefetch(table.holding_places_at + 4 * row)


@njit(cache=True, nogil=True)
def _place(slots, tag, row):  # type: ignore[no-untyped-def]
    mask = slots.size - 1
    at = tag & mask
    while slots[at] != 0:
        at = (at + 1) & mask
    slots[at] = np.uint64((tag << 32) | row)


@njit(cache=True, nogil=True)
def insert(table, row):  # type: ignore[no-untyped-def]
    """Make the flow in ``row`` findable; its key is not in the index."""
    _place(slots_of(table), np.int64(flows_of(table)[row].tag), row)


@njit(cache=True, nogil=True)
def remove(table, row):  # type: ignore[no-untyped-def]
    """Take the flow in ``row`` out, and move up those that probed past it."""
    slots = slots_of(table)
    mask = slots.size - 1
    hole = np.int64(flows_of(table)[row].tag) & mask
    while np.int64(slots[hole]) & _ROW != row:
        hole = (hole + 1) & mask
    at = hole
    while True:
        at = (at + 1) & mask
        slot = slots[at]
        if slot == 0:
            break
        home = np.int64(slot >> np.uint64(32)) & mask
        # It may move into the hole only if its home does not lie behind the hole.
        if (at - home) & mask >= (at - hole) & mask:
            slots[hole] = slot
            hole = at
    slots[hole] = 0


@njit(cache=True, nogil=True)
def rebuild(old, new):  # type: ignore[no-untyped-def]
    """Enter every flow of the slots ``old`` into ``new``, a zeroed array of another power of two."""
    for at in range(old.size):
        slot = old[at]
        if slot != 0:
            _place(new, np.int64(slot >> np.uint64(32)), np.int64(slot) & _ROW)
