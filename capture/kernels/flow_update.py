"""One pass over a block: every packet to its flow, flows out as they become ready or end.

The rules, and why they are so, stand in docs/decisions/0004-flow-rules.md; tests/reference/flow_table.py is the same in
plain Python. A kernel returns early when its output is full. What it does before that point leaves a table
on which the same packet can be tried again, so nothing depends on the size of blocks or outputs.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from capture.block import PACKET_FRAGMENT, PACKET_TRUNCATED
from capture.flow_batch import (
    QUALITY_DIRECTION_GUESSED,
    QUALITY_FRAGMENTS,
    QUALITY_MIDSTREAM,
    QUALITY_ONE_WAY,
    QUALITY_TIME_BACKWARDS,
    QUALITY_TRUNCATED,
    EndReason,
)
from capture.flow_key import TCP
from capture.kernels.flow_index import (
    NOT_FOUND,
    find_near,
    foresee_flow,
    foresee_rest,
    foresee_slot,
    insert,
    is_crowded,
    remove,
)
from capture.kernels.flow_order import (
    CLOSING,
    HOLDING,
    IDLE,
    leave,
    make_newest,
    may_be_older,
    oldest,
)
from capture.kernels.flow_packets import ip_version_of, protocol_of
from capture.kernels.flow_state import (
    ACK,
    ANSWERED,
    CLIENT_IS_HIGH,
    COLD_WORD,
    EARLY_NEXT,
    FIN,
    FIN_SEEN,
    FORESEEN_ROWS,
    GIVEN_EARLY,
    HOLDS_SLAB,
    HOT_BITS,
    HOT_WORD,
    IS_CLOSING,
    IS_TUNNELLED,
    NEVER_NS,
    PACKET_BYTES,
    RECORD_WORDS,
    ROW_WORD_OF,
    RST,
    SENTINEL,
    SEQ_SEEN,
    SYN,
    SYN_KNOWN,
    TUNNEL_WORDS,
    bytes_at,
    flows_of,
    give_row,
    give_slab,
    links_of,
    ready_data_of,
    ready_packets_of,
    records_at,
    slab_data_of,
    slab_packets_of,
    stop_waiting,
    take_row,
    take_slab,
    tunnel_words_of,
    tunnels_of,
    words_of,
)
from capture.kernels.siphash import siphash_id
from capture.tunnel import mix

# One packet can end its flow, evict two more, and make its own ready: rows that must be free before it is looked at.
PACKET_ROWS: Final = 4
# So many packets in a row, all older than the clock by more than a timeout, mean that the clock was wrong, not they.
STALE_PACKETS: Final = 1000
# How far a SYN that is captured late may lie before the first sequence number that was seen of its direction.
LATE_SYN_BYTES: Final = 1 << 20
# So many packets before it is needed, memory is asked for.
SLOT_AHEAD: Final = 24
FLOW_AHEAD: Final = 16
REST_AHEAD: Final = 8

_ROW_WORD_OF = np.array(ROW_WORD_OF)
_TUNNEL_AT = RECORD_WORDS - TUNNEL_WORDS

_IDLE = int(EndReason.IDLE)
_ACTIVE = int(EndReason.ACTIVE)
_END_DETECTED = int(EndReason.END_DETECTED)
_LACK_OF_RESOURCES = int(EndReason.LACK_OF_RESOURCES)

# Public on purpose: a flow id must be the same on every run and every host.
_ID_K0 = np.uint64(0x6E6574636C732E66)
_ID_K1 = np.uint64(0x6C6F772D69642E31)
_ID_BITS = np.uint64((1 << 51) - 1)


@njit(cache=True, nogil=True)
def copy_padded(source, source_at, n, target, target_at, size):  # type: ignore[no-untyped-def]
    """``n`` bytes and zeros up to ``size``.

    Loops, because numba's slice assignment is an order of magnitude slower; unsigned, because an index that may be
    negative keeps LLVM from making vectors of them.
    """
    for i in range(n):
        target[np.uint64(target_at + i)] = source[np.uint64(source_at + i)]
    for i in range(n, size):
        target[np.uint64(target_at + i)] = 0


@njit(cache=True, nogil=True)
def write_record(table, row, records, at):  # type: ignore[no-untyped-def]
    """Copy the public part of a flow into the output."""
    words = words_of(table)
    for word in range(_TUNNEL_AT - 1):
        records[at, word] = words[row, _ROW_WORD_OF[word]]
    records[at, _TUNNEL_AT - 1] = (words[row, HOT_WORD] & HOT_BITS) | (words[row, COLD_WORD] & ~HOT_BITS)
    is_tunnelled = flows_of(table)[row].state & IS_TUNNELLED != 0
    tunnels = tunnel_words_of(table)
    for word in range(TUNNEL_WORDS):
        records[at, _TUNNEL_AT + word] = tunnels[row, word] if is_tunnelled else 0


@njit(cache=True, nogil=True)
def tick(table, ts_ns):  # type: ignore[no-untyped-def]
    """Move the table clock to a packet's time; False if the packet is older than one before it.

    ``newest_ns`` is the newest time seen and ``clock_ns`` counts how far it has moved. A step counts for at most what
    ends every flow, so no time, however wrong, overflows; and flows age by ``clock_ns``, which never goes back.
    """
    time_ns = min(max(ts_ns, -NEVER_NS + 1), NEVER_NS - 1)
    if time_ns <= table.newest_ns:
        return time_ns == table.newest_ns
    longest_ns = max(table.idle_ns, table.linger_ns) + 1
    table.clock_ns += min(time_ns - table.newest_ns, longest_ns)
    table.newest_ns = time_ns
    return True


@njit(cache=True, nogil=True)
def recover_clock(table, ts_ns):  # type: ignore[no-untyped-def]
    """Follow the packets if one wrong time (year 2106) has put ``newest_ns`` where they will never come."""
    time_ns = min(max(ts_ns, -NEVER_NS + 1), NEVER_NS - 1)
    if table.newest_ns - time_ns <= max(table.idle_ns, table.linger_ns):
        table.n_stale = 0
        return
    table.n_stale += 1
    if table.n_stale >= STALE_PACKETS:
        table.newest_ns = time_ns
        table.n_stale = 0


@njit(cache=True, nogil=True)
def has_room(table):  # type: ignore[no-untyped-def]
    """True if whatever one packet brings forth fits into the output."""
    return (
        table.n_ended_rows + PACKET_ROWS <= table.max_ended_rows
        and table.n_ready_rows + PACKET_ROWS <= table.max_ready_rows
    )


@njit(cache=True, nogil=True)
def copy_out(table, row):  # type: ignore[no-untyped-def]
    """Copy the record and the kept packets of a flow to the ready rows."""
    at = table.n_ready_rows
    table.n_ready_rows = at + 1
    write_record(table, row, records_at(table.ready_at, table.max_ready_rows), at)
    flow = flows_of(table)[row]
    slab = np.int64(flow.slab)
    n_kept = np.int64(flow.n_kept)
    size = table.n_packets * PACKET_BYTES
    kept = bytes_at(table.slab_packets_at, table.max_slabs * size)
    copy_padded(kept, slab * size, n_kept * PACKET_BYTES, ready_packets_of(table), at * size, size)
    row_bytes = table.header_bytes + table.payload_bytes
    size = table.n_byte_packets * row_bytes
    filled = min(n_kept, table.n_byte_packets) * row_bytes
    copy_padded(slab_data_of(table), slab * size, filled, ready_data_of(table), at * size, size)


@njit(cache=True, nogil=True)
def emit_ready(table, row):  # type: ignore[no-untyped-def]
    """Give a flow out with all that is kept of it, and its slab back to the pool."""
    table.ready += 1
    copy_out(table, row)
    give_slab(table, row)
    leave(table, HOLDING, row)


@njit(cache=True, nogil=True)
def emit_ended(table, row, reason):  # type: ignore[no-untyped-def]
    """Write a flow's last record, after its first packets if they are still here. The row stays as it is."""
    flow = flows_of(table)[row]
    flow.end_reason = reason
    if flow.packets[0] == 0 or flow.packets[1] == 0:
        flow.quality |= QUALITY_ONE_WAY
    if flow.state & HOLDS_SLAB:
        emit_ready(table, row)
    at = table.n_ended_rows
    table.n_ended_rows = at + 1
    table.ended[reason] += 1
    write_record(table, row, records_at(table.ended_at, table.max_ended_rows), at)


@njit(cache=True, nogil=True)
def end_flow(table, row, reason):  # type: ignore[no-untyped-def]
    """End a flow and forget it."""
    emit_ended(table, row, reason)
    remove(table, row)
    leave(table, IDLE, row)
    give_row(table, row)


@njit(cache=True, nogil=True)
def is_overdue(table):  # type: ignore[no-untyped-def]
    """True if some flow has been silent, or has kept us waiting, for too long."""
    return (
        may_be_older(table, IDLE, table.idle_ns)
        or may_be_older(table, CLOSING, table.linger_ns)
        or (
            table.early_ns > 0
            # The sentinel started far in the future: an empty ring is never overdue.
            and table.clock_ns - flows_of(table)[links_of(table)[SENTINEL, EARLY_NEXT]].started_ns
            > table.early_ns
        )
    )


@njit(cache=True, nogil=True)
def expire(table):  # type: ignore[no-untyped-def]
    """End what is overdue, longest overdue first. False if the output is full before all are out."""
    clock_ns = table.clock_ns
    while True:
        idle, idle_seen_ns = oldest(table, IDLE)
        closing, closing_seen_ns = oldest(table, CLOSING)
        # Of an empty order the oldest was "seen" far in the future: it is never overdue.
        idle_overdue_ns = clock_ns - idle_seen_ns - table.idle_ns
        closing_overdue_ns = clock_ns - closing_seen_ns - table.linger_ns
        if idle_overdue_ns <= 0 and closing_overdue_ns <= 0:
            return True
        if not has_room(table):
            return False
        if closing_overdue_ns >= idle_overdue_ns:
            end_flow(table, closing, _END_DETECTED)
        else:
            end_flow(table, idle, _IDLE)


@njit(cache=True, nogil=True)
def give_early(table):  # type: ignore[no-untyped-def]
    """Give out what there is of flows that are not ready in time. False if the output is full before all are out."""
    if table.early_ns == 0:
        return True
    while True:
        row = np.int64(links_of(table)[SENTINEL, EARLY_NEXT])
        flow = flows_of(table)[row]
        if table.clock_ns - flow.started_ns <= table.early_ns:
            return True
        if not has_room(table):
            return False
        copy_out(table, row)
        table.early += 1
        flow.state |= GIVEN_EARLY
        stop_waiting(table, row)


@njit(cache=True, nogil=True)
def oldest_row(table):  # type: ignore[no-untyped-def]
    """The least recently seen flow, a closing one first if equal; NO_ROW if there is none."""
    idle, idle_seen_ns = oldest(table, IDLE)
    closing, closing_seen_ns = oldest(table, CLOSING)
    return closing if closing_seen_ns <= idle_seen_ns else idle


@njit(cache=True, nogil=True)
def is_new_connection(flow, direction, tcp_flags, seq):  # type: ignore[no-untyped-def]
    """True for a SYN that reuses the ports of a connection that has ended or lost its end.

    A SYN repeated with its old sequence number is a retransmission, at any time. One whose number lies right before
    the first that was seen, when no SYN was, is that SYN, captured late. Another number on a flow that nobody has
    answered is another attempt of the same flow.
    """
    if tcp_flags & (SYN | ACK | RST) != SYN:
        return False
    behind = (np.int64(flow.syn_seq[direction]) - np.int64(seq)) & 0xFFFFFFFF
    if flow.state & (SYN_KNOWN << direction):
        if behind == 0:
            return False
    elif flow.state & (SEQ_SEEN << direction) and behind < LATE_SYN_BYTES:
        return False
    return flow.state & (IS_CLOSING | ANSWERED) != 0


@njit(cache=True, nogil=True)
def begin(table, row, packet):  # type: ignore[no-untyped-def]
    """Zero the counters of a flow whose identity is set, number it, and give it a slab."""
    flow = flows_of(table)[row]
    flow.serial = table.next_serial
    table.next_serial += 1
    low, high = packet.low, packet.high
    k1 = _ID_K1
    if packet.path != 0:
        k1 = mix(mix(_ID_K1, packet.path), np.uint64(packet.tunnel_id))
    flow_id = siphash_id(
        _ID_K0,
        k1,
        low[0],
        low[1],
        high[0],
        high[1],
        packet.rest,
        np.uint64(packet.ts_ns),
        np.uint64(packet.inner_vlan),
    )
    flow.flow_id = np.int64(max(flow_id & _ID_BITS, np.uint64(1)))
    flow.first_ts_ns = flow.last_ts_ns = packet.ts_ns
    flow.started_ns = table.clock_ns
    flow.vlan[0] = packet.vlan[0]
    flow.vlan[1] = packet.vlan[1]
    for direction in range(2):
        flow.packets[direction] = 0
        flow.frame_bytes[direction] = 0
        flow.ip_bytes[direction] = 0
        flow.payload_bytes[direction] = 0
        flow.tcp_flags[direction] = 0
    flow.end_reason = 0
    flow.n_kept = 0
    if table.n_packets > 0:
        take_slab(table, row)
        make_newest(table, HOLDING, row)


@njit(cache=True, nogil=True)
def make_slab_room(table):  # type: ignore[no-untyped-def]
    """End the least recently seen flow that still holds a slab, if there is no slab left."""
    if table.n_packets > 0 and table.n_slabs_held == table.max_slabs:
        row, _ = oldest(table, HOLDING)
        end_flow(table, row, _LACK_OF_RESOURCES)


@njit(cache=True, nogil=True)
def open_flow(table, packet):  # type: ignore[no-untyped-def]
    """A new flow for a packet; returns its row. Ends others where memory is short."""
    if table.n_open == table.max_flows:
        end_flow(table, oldest_row(table), _LACK_OF_RESOURCES)
    make_slab_room(table)
    row = take_row(table)
    flow = flows_of(table)[row]
    tcp_flags = np.int64(packet.tcp_flags)
    # A SYN-ACK is an answer: who gets it is the client.
    is_turned = tcp_flags & (SYN | ACK | RST) == SYN | ACK
    client_is_high = np.int64(packet.swapped) ^ np.int64(is_turned)
    for word in range(2):
        flow.client[word] = packet.high[word] if client_is_high else packet.low[word]
        flow.server[word] = packet.low[word] if client_is_high else packet.high[word]
    flow.client_port = packet.dst_port if is_turned else packet.src_port
    flow.server_port = packet.src_port if is_turned else packet.dst_port
    flow.protocol = protocol_of(packet)
    flow.ip_version = ip_version_of(packet)
    flow.quality = 0
    if flow.protocol == TCP and tcp_flags & SYN == 0:
        flow.quality = QUALITY_MIDSTREAM | QUALITY_DIRECTION_GUESSED
    flow.key_rest = packet.rest
    flow.key_inner_vlan = packet.inner_vlan
    flow.tag = packet.tag
    flow.state = client_is_high
    if packet.path != 0:
        flow.state = client_is_high | IS_TUNNELLED
        tunnel = tunnels_of(table)[row]
        tunnel.path = packet.path
        tunnel.kind = packet.tunnel_kind
        tunnel.depth = packet.tunnel_depth
        tunnel.id[0] = 0
        tunnel.id[1] = 0
    begin(table, row, packet)
    insert(table, row)
    make_newest(table, IDLE, row)
    return row


@njit(cache=True, nogil=True)
def restart_flow(table, row, packet):  # type: ignore[no-untyped-def]
    """Active timeout: the record ends, its successor goes on in the same row with what is known of the connection."""
    emit_ended(table, row, _ACTIVE)
    make_slab_room(table)
    flows_of(table)[row].quality &= QUALITY_MIDSTREAM | QUALITY_DIRECTION_GUESSED
    begin(table, row, packet)


@njit(cache=True, nogil=True)
def follow_tcp(flow, direction, tcp_flags, seq, ack):  # type: ignore[no-untyped-def]
    """What a TCP packet says about the connection."""
    state = np.int64(flow.state)
    flow.tcp_flags[direction] |= np.uint8(tcp_flags)
    if tcp_flags & (SYN | RST) == SYN:
        flow.syn_seq[direction] = seq
        state |= SYN_KNOWN << direction
        if tcp_flags & ACK and not state & (SYN_KNOWN << (1 - direction)):
            # It acknowledges the SYN that the capture lacks, or has yet to show.
            flow.syn_seq[1 - direction] = np.uint32((np.int64(ack) - 1) & 0xFFFFFFFF)
            state |= SYN_KNOWN << (1 - direction)
    elif tcp_flags & SYN == 0 and not state & ((SYN_KNOWN | SEQ_SEEN) << direction):
        flow.syn_seq[direction] = np.uint32((np.int64(seq) - 1) & 0xFFFFFFFF)
        state |= SEQ_SEEN << direction
    if tcp_flags & FIN:
        state |= FIN_SEEN << direction
    if tcp_flags & RST or state & (3 * FIN_SEEN) == 3 * FIN_SEEN:
        state |= IS_CLOSING
    flow.state = state


@njit(cache=True, nogil=True)
def count_packet(flow, packet, direction):  # type: ignore[no-untyped-def]
    """Add a packet to the counters, times and quality of its flow."""
    ts_ns = packet.ts_ns
    if ts_ns < flow.last_ts_ns:
        flow.quality |= QUALITY_TIME_BACKWARDS
    else:
        flow.last_ts_ns = ts_ns
    flow.packets[direction] += 1
    flow.frame_bytes[direction] += np.int64(packet.wire_len)
    flow.ip_bytes[direction] += np.int64(packet.ip_len)
    flow.payload_bytes[direction] += np.int64(packet.payload_len)
    if packet.flags & PACKET_TRUNCATED:
        flow.quality |= QUALITY_TRUNCATED
    if packet.flags & PACKET_FRAGMENT:
        flow.quality |= QUALITY_FRAGMENTS
    if flow.packets[1 - direction] > 0:
        flow.state |= ANSWERED


@njit(cache=True, nogil=True)
def keep_packet(table, packet, slab, k, direction):  # type: ignore[no-untyped-def]
    """Write a packet into its flow's slab as the ``k``-th of the flow, its bytes too if k < M."""
    l3 = np.int64(packet.l3_offset)
    payload_at = np.int64(packet.payload_offset)
    kept = slab_packets_of(table)[slab * table.n_packets + k]
    kept.ts_ns = packet.ts_ns
    kept.wire_len = packet.wire_len
    kept.ip_len = packet.ip_len
    kept.payload_len = packet.payload_len
    kept.tcp_seq = packet.tcp_seq
    kept.tcp_ack = packet.tcp_ack
    kept.tcp_window = packet.tcp_window
    kept.header_len = min(payload_at - l3, 0xFFFF)
    kept.l4_offset = min(np.int64(packet.l4_offset) - l3, 0xFFFF)
    kept.direction = direction
    kept.tcp_flags = packet.tcp_flags
    kept.ttl = packet.ttl
    kept.tos = packet.tos
    if k >= table.n_byte_packets:
        return
    # Behind the IP packet there may be Ethernet padding; it is not the flow's.
    end = min(np.int64(packet.captured_len), l3 + np.int64(packet.ip_len))
    n_header = max(min(payload_at - l3, end - l3, table.header_bytes), 0)
    n_payload = max(min(end - payload_at, np.int64(packet.payload_len), table.payload_bytes), 0)
    at = (slab * table.n_byte_packets + k) * (table.header_bytes + table.payload_bytes)
    data = bytes_at(table.data_at, table.data_bytes)
    rows = slab_data_of(table)
    copy_padded(data, packet.offset + l3, n_header, rows, at, table.header_bytes)
    at += table.header_bytes
    copy_padded(data, packet.offset + payload_at, n_payload, rows, at, table.payload_bytes)


@njit(cache=True, nogil=True)
def touch(table, row):  # type: ignore[no-untyped-def]
    """A flow has just been seen."""
    state = flows_of(table)[row].state
    make_newest(table, CLOSING if state & IS_CLOSING else IDLE, row)
    if state & HOLDS_SLAB:
        make_newest(table, HOLDING, row)


@njit(cache=True, nogil=True)
def join(table, packet, row, direction):  # type: ignore[no-untyped-def]
    """The packet becomes part of the flow in ``row``."""
    flow = flows_of(table)[row]
    count_packet(flow, packet, direction)
    if packet.path != 0 and tunnels_of(table)[row].id[direction] == 0:
        tunnels_of(table)[row].id[direction] = packet.tunnel_id
    tcp_flags = np.int64(packet.tcp_flags)
    if tcp_flags != 0:
        follow_tcp(flow, direction, tcp_flags, packet.tcp_seq, packet.tcp_ack)
    touch(table, row)
    if flow.state & HOLDS_SLAB:
        k = np.int64(flow.n_kept)
        keep_packet(table, packet, np.int64(flow.slab), k, direction)
        flow.n_kept = k + 1
        if k + 1 == table.n_packets:
            emit_ready(table, row)


@njit(cache=True, nogil=True)
def foresee(table, rows, i):  # type: ignore[no-untyped-def]
    """Have fetched what the packets behind the ``i``-th will touch, in the order in which one leads to the other.

    With many open flows every packet misses the cache four times; this way the misses overlap with other packets' work.

    Returns:
        The row in which the ``i``-th packet's flow was when this was called for the packet FLOW_AHEAD before it, or 0.
    """
    if i + SLOT_AHEAD < rows.size and rows[i + SLOT_AHEAD].is_decoded:
        foresee_slot(table, rows[i + SLOT_AHEAD])
    if i + FLOW_AHEAD < rows.size:
        row = np.int64(0)
        if rows[i + FLOW_AHEAD].is_decoded:
            row = foresee_flow(table, rows[i + FLOW_AHEAD])
        table.foreseen[(i + FLOW_AHEAD) & (FORESEEN_ROWS - 1)] = row
    foresee_rest(table, table.foreseen[(i + REST_AHEAD) & (FORESEEN_ROWS - 1)])
    return table.foreseen[i & (FORESEEN_ROWS - 1)]


@njit(cache=True, nogil=True)
def update_flows(tables, rows, start):  # type: ignore[no-untyped-def]
    """Work through the packets from ``start`` on.

    Returns:
        The packet to go on with, the block's length if all are done. It stops before a packet when the output may not
        hold what the packet brings forth, or when the index wants to be larger (``is_crowded``).
    """
    table = tables[0]
    for i in range(start, rows.size):
        packet = rows[i]
        foreseen = foresee(table, rows, i)
        if not packet.is_decoded:
            continue
        if not has_room(table) or (is_crowded(table) and table.n_open < table.max_flows):
            return i
        ts_ns = packet.ts_ns
        is_on_time = tick(table, ts_ns)
        if is_overdue(table) and not (expire(table) and give_early(table)):
            return i
        table.packets += 1
        if not is_on_time:
            table.time_backwards += 1
        recover_clock(table, ts_ns)
        row = find_near(table, packet, foreseen)
        direction = np.int64(0)
        if row != NOT_FOUND:
            flow = flows_of(table)[row]
            direction = np.int64(packet.swapped) ^ (np.int64(flow.state) & CLIENT_IS_HIGH)
            if is_new_connection(flow, direction, np.int64(packet.tcp_flags), packet.tcp_seq):
                end_flow(table, row, _END_DETECTED)
                row = np.int64(NOT_FOUND)
            elif table.clock_ns - flow.started_ns > table.active_ns:
                restart_flow(table, row, packet)
        if row == NOT_FOUND:
            row = open_flow(table, packet)
            direction = np.int64(packet.swapped) ^ (np.int64(flows_of(table)[row].state) & CLIENT_IS_HIGH)
        join(table, packet, row, direction)
    return rows.size


@njit(cache=True, nogil=True)
def advance_clock(tables, now_ns):  # type: ignore[no-untyped-def]
    """Let time pass without a packet. False if the output is full before all that is overdue is out."""
    table = tables[0]
    tick(table, now_ns)
    if not (expire(table) and give_early(table)):
        return False
    recover_clock(table, now_ns)
    return True


@njit(cache=True, nogil=True)
def end_all(tables, reason):  # type: ignore[no-untyped-def]
    """End every flow, least recently seen first: closing ones by END_DETECTED. False if the output is full before."""
    table = tables[0]
    while table.n_open > 0:
        if not has_room(table):
            return False
        row = oldest_row(table)
        is_closing = flows_of(table)[row].state & IS_CLOSING
        end_flow(table, row, _END_DETECTED if is_closing else reason)
    return True
