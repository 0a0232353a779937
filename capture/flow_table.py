"""The flow table: packets in, flows out.

    table = FlowTable(FlowTableConfig(), KeepSpec(n_packets=5, n_byte_packets=5, header_bytes=80, payload_bytes=240))
    for packets in reader:
        for step in table.push(packets, decode(packets)):
            ...                                   # step.ready: first packets; step.ended: final records
    for step in table.flush():
        ...

The rules (what a flow is, when it ends, what happens when time or memory go wrong) are those of
docs/decisions/0004-flow-rules.md. Work is done by ``capture.kernels.flow_update``; this module owns the memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.block import DecodedBlock, PacketBlock
from capture.errors import UsageError
from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE, EndReason, FlowBatch, FlowStep, KeepSpec
from capture.kernels import flow_index, flow_update
from capture.kernels.flow_order import CLOSING, ENTRY_BYTES, HOLDING, IDLE, N_ORDERS, SPARE_ENTRIES
from capture.kernels.flow_packets import ROW_DTYPE, pack_packets
from capture.kernels.flow_state import (
    FIRST_ROW,
    N_LINKS,
    NEVER_NS,
    NO_SLAB,
    OPEN_FLOW_DTYPE,
    SENTINEL,
    TABLE_DTYPE,
    TUNNEL_DTYPE,
)

_NS_PER_S: Final = 1_000_000_000
_LONGEST_TIMEOUT_S: Final = 31_536_000.0  # a year: sums of timeouts stay far from the end of int64
_FIRST_INDEX_SLOTS: Final = 4096
_FEWEST_FLOWS: Final = 16
_MOST_ENDED_ROWS: Final = 4096
_MOST_READY_ROWS: Final = 1024
# The index has 2 to 4 slots of 8 bytes a flow, and while it is rebuilt, half as much again.
# A flow has up to two entries in each of two orders, and a place in two.
_ROW_BYTES: Final = (
    OPEN_FLOW_DTYPE.itemsize + TUNNEL_DTYPE.itemsize + 4 * N_LINKS + 2 * 4 + 2 * 2 * ENTRY_BYTES
)
_FIXED_BYTES: Final = FIRST_ROW * _ROW_BYTES + N_ORDERS * SPARE_ENTRIES * ENTRY_BYTES
# Places of entries are twice their number, in 32 bits.
_MOST_FLOWS: Final = 2**29
_FLOW_BYTES: Final = _ROW_BYTES + 4 * 8 * 3 // 2
_CACHE_LINE: Final = 64

# In the order in which `pack_packets` takes them.
_PACKET_COLUMNS: Final = ("ts_ns", "offset", "wire_len", "captured_len")
_DECODED_COLUMNS: Final = (
    *(
        "reject",
        "ip_version",
        "protocol",
        "vlan",
        "src_port",
        "dst_port",
        "l3_offset",
        "l4_offset",
        "payload_offset",
    ),
    *("ip_len", "payload_len", "ttl", "tos", "tcp_flags", "tcp_window", "tcp_seq", "tcp_ack", "flags"),
    *("tunnel_kind", "tunnel_depth", "tunnel_id", "tunnel_path"),
)


@dataclass(frozen=True, slots=True)
class FlowTableConfig:
    """When flows end, and how much memory they may have.

    Attributes:
        idle_timeout_s: a flow ends when its last packet is older than this.
        active_timeout_s: a flow is cut when a packet comes this long after its first.
        tcp_linger_s: after RST, or FIN from both sides, how long to wait for late packets.
        ready_timeout_s: a flow that is not ready so long after its first packet is given out early, with the packets
            that it has, and again when it is ready; 0: never.
        memory_limit_bytes: for everything the table holds; beyond it the least recently seen flow ends.
        use_vlan: whether the same five-tuple on two VLANs is two flows.
    """

    idle_timeout_s: float = 120.0
    active_timeout_s: float = 1800.0
    tcp_linger_s: float = 5.0
    ready_timeout_s: float = 0.0
    memory_limit_bytes: int = 256 * 1024 * 1024
    use_vlan: bool = True

    def __post_init__(self) -> None:
        _check_seconds("idle timeout", self.idle_timeout_s, may_be_zero=False)
        _check_seconds("active timeout", self.active_timeout_s, may_be_zero=False)
        _check_seconds("TCP linger time", self.tcp_linger_s, may_be_zero=True)
        _check_seconds("ready timeout", self.ready_timeout_s, may_be_zero=True)


def _check_seconds(what: str, value_s: float, *, may_be_zero: bool) -> None:
    is_positive = value_s > 0 or (may_be_zero and value_s == 0)
    if not (math.isfinite(value_s) and is_positive and value_s <= _LONGEST_TIMEOUT_S):
        least = "0" if may_be_zero else "above 0"
        raise UsageError(f"{what} is {value_s:g} s; give {least} to {_LONGEST_TIMEOUT_S:.0f} s (a year)")


@dataclass(frozen=True, slots=True)
class TableSizes:
    """How many of each kind of row a table has.

    Attributes:
        n_flows: open flows.
        n_slabs: flows whose first packets are held at the same time.
        n_ended_rows: rows of one step's ``ended``; at least ``flow_update.PACKET_ROWS``.
        n_ready_rows: the same for ``ready``.
    """

    n_flows: int
    n_slabs: int
    n_ended_rows: int = _MOST_ENDED_ROWS
    n_ready_rows: int = _MOST_READY_ROWS

    @classmethod
    def within(cls, memory_limit_bytes: int, keep: KeepSpec) -> TableSizes:
        """Split a limit among open flows, slabs and output.

        A sixteenth goes to the output. Of the rest, open flows get what lets each of them hold a slab, but a quarter at
        least: most flows of a long capture have given their slabs back.

        Raises:
            UsageError: if the limit does not hold 16 flows.
        """
        slab_bytes = _slab_bytes(keep)
        share = memory_limit_bytes // 32
        least = flow_update.PACKET_ROWS
        n_ended_rows = min(max(share // FLOW_DTYPE.itemsize, least), _MOST_ENDED_ROWS)
        n_ready_rows = min(max(share // (FLOW_DTYPE.itemsize + slab_bytes), least), _MOST_READY_ROWS)
        output_bytes = n_ended_rows * FLOW_DTYPE.itemsize + n_ready_rows * (FLOW_DTYPE.itemsize + slab_bytes)
        left = memory_limit_bytes - output_bytes - 8 * _FIRST_INDEX_SLOTS - _FIXED_BYTES
        n_flows = max(left // 4 // _FLOW_BYTES, left // (_FLOW_BYTES + slab_bytes))
        n_flows = min(n_flows, _MOST_FLOWS)
        n_slabs = min(n_flows, (left - n_flows * _FLOW_BYTES) // slab_bytes) if keep.n_packets else 0
        if n_flows < _FEWEST_FLOWS or (keep.n_packets and n_slabs < _FEWEST_FLOWS):
            enough = (
                8 * _FIRST_INDEX_SLOTS
                + _FIXED_BYTES
                + 4 * _FEWEST_FLOWS * (_FLOW_BYTES + FLOW_DTYPE.itemsize + slab_bytes)
            )
            raise UsageError(
                f"a flow memory of {memory_limit_bytes} bytes does not hold {_FEWEST_FLOWS} flows;"
                f" give at least {enough} bytes"
            )
        return cls(n_flows, n_slabs, n_ended_rows, n_ready_rows)


def _slab_bytes(keep: KeepSpec) -> int:
    """Bytes of one slab, its place in the chain of free ones, and its holder's entries in the order."""
    if keep.n_packets == 0:
        return 0
    return keep.n_packets * PACKET_DTYPE.itemsize + keep.n_byte_packets * keep.row_bytes + 4 + 2 * ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class FlowCounters:
    """What a table has done so far.

    ``flows_started == flows_open + sum(flows_ended.values())`` at any time between steps.

    Attributes:
        packets: packets that are in flows.
        packets_time_backwards: of these, older than a packet before them.
        flows_started, flows_open, flows_ready: flows; ready ones have been given out with their first packets.
        flows_early: flows that were given out before they were ready.
        flows_ended: by reason, every reason except ``OPEN``. ``LACK_OF_RESOURCES`` counts the evictions.
        slabs_held: open flows that are not ready yet.
        memory_bytes: memory in use or used once; memory is never given back to the system.
    """

    packets: int
    packets_time_backwards: int
    flows_started: int
    flows_open: int
    flows_ready: int
    flows_early: int
    flows_ended: dict[EndReason, int] = field(default_factory=dict)
    slabs_held: int = 0
    memory_bytes: int = 0


class FlowTable:
    """Assembles packets into flows.

    Args:
        config: timeouts and memory.
        keep: what to hold of the beginning of each flow.
        hash_key: 16 bytes for the hash of the index. None: random. It never changes a flow.
        sizes: rows of memory. None: what ``config.memory_limit_bytes`` holds.

    Raises:
        UsageError: if the memory limit is too small.
    """

    def __init__(
        self,
        config: FlowTableConfig,
        keep: KeepSpec,
        *,
        hash_key: bytes | None = None,
        sizes: TableSizes | None = None,
    ) -> None:
        key = os.urandom(16) if hash_key is None else hash_key
        if len(key) != 16:
            raise ValueError(f"hash_key has {len(key)} bytes; give 16")
        self._k0 = np.uint64(int.from_bytes(key[:8], "little"))
        self._k1 = np.uint64(int.from_bytes(key[8:], "little"))
        self._keep = keep
        self._use_vlan = config.use_vlan
        self._sizes = sizes or TableSizes.within(config.memory_limit_bytes, keep)
        self._memory = _new_memory(config, keep, self._sizes)
        self._table = self._memory["table"]
        # Used again for every block: memory of this size would be given back to the system and faulted in anew.
        self._rows = np.empty(0, ROW_DTYPE)

    def push(self, packets: PacketBlock, decoded: DecodedBlock) -> Iterator[FlowStep]:
        """Give every decoded packet of a block to its flow.

        The work happens while the steps are taken: take them all before the next call, and while the block is valid.

        Args:
            packets: the block.
            decoded: its headers. Rows with ``reject != 0`` are passed over.

        Yields:
            What became ready or ended; never an empty step.
        """
        n = len(packets)
        if len(decoded) != n:
            raise ValueError(f"{n} packets but {len(decoded)} decoded rows")
        if n > len(self._rows):
            self._rows = np.empty(n, ROW_DTYPE)
        rows = self._rows[:n]
        pack_packets(
            _columns(packets, _PACKET_COLUMNS),
            _columns(decoded, _DECODED_COLUMNS),
            np.ascontiguousarray(decoded.src).view("<u8"),
            np.ascontiguousarray(decoded.dst).view("<u8"),
            self._use_vlan,
            self._k0,
            self._k1,
            rows,
        )
        table = self._table
        data = np.ascontiguousarray(packets.data)
        table["data_at"], table["data_bytes"] = data.ctypes.data, data.size
        at = 0
        while at < n:
            at = int(flow_update.update_flows(table, rows, at))
            yield from self._take_step()
            if at < n and 2 * (int(table["n_open"][0]) + 1) > int(table["n_slots"][0]):
                self._grow_index()

    def advance(self, now_ns: int) -> Iterator[FlowStep]:
        """Let the packet clock move to ``now_ns`` (since the epoch) although no packet came; it never moves back."""
        return self._until_done(lambda: flow_update.advance_clock(self._table, now_ns))

    def clock_was_set(self, step_ns: int) -> None:
        """The clock that packets are stamped with was moved: what it reads next is not newer or older for that.

        Args:
            step_ns: forwards, or backwards if negative.
        """
        newest_ns = int(self._table["newest_ns"][0])
        if newest_ns > -NEVER_NS:
            self._table["newest_ns"] = min(max(newest_ns + step_ns, -NEVER_NS + 1), NEVER_NS - 1)

    def flush(self, reason: EndReason = EndReason.FORCED) -> Iterator[FlowStep]:
        """End all flows: those TCP has closed by END_DETECTED, the others by ``reason``. The table can be used on."""
        return self._until_done(lambda: flow_update.end_all(self._table, int(reason)))

    def spare(self) -> FlowTable:
        """A small empty table that keeps the same of each flow: to load the kernels with."""
        sizes = TableSizes(_FEWEST_FLOWS, _FEWEST_FLOWS, flow_update.PACKET_ROWS, flow_update.PACKET_ROWS)
        table = FlowTable(FlowTableConfig(), self._keep, sizes=sizes)
        table._grow_index()  # it has a kernel of its own
        return table

    @property
    def most_flows(self) -> int:
        """Flows that can be open at the same time."""
        return self._sizes.n_flows

    @property
    def counters(self) -> FlowCounters:
        """A snapshot."""
        state = self._table[0]
        return FlowCounters(
            packets=int(state["packets"]),
            packets_time_backwards=int(state["time_backwards"]),
            flows_started=int(state["next_serial"]),
            flows_open=int(state["n_open"]),
            flows_ready=int(state["ready"]),
            flows_early=int(state["early"]),
            flows_ended={
                reason: int(state["ended"][reason]) for reason in EndReason if reason is not EndReason.OPEN
            },
            slabs_held=int(state["n_slabs_held"]),
            memory_bytes=self._memory_bytes(),
        )

    def _until_done(self, work: Callable[[], bool]) -> Iterator[FlowStep]:
        while True:
            is_done = work()
            yield from self._take_step()
            if is_done:
                return

    def _take_step(self) -> Iterator[FlowStep]:
        """What the output holds, copied, if anything; the output is empty afterwards."""
        state = self._table[0]
        n_ready, n_ended = int(state["n_ready_rows"]), int(state["n_ended_rows"])
        if n_ready == 0 and n_ended == 0:
            return
        state["n_ready_rows"] = state["n_ended_rows"] = 0
        memory = self._memory
        ready = FlowBatch(
            *(memory[name][:n_ready].copy() for name in ("ready", "ready_packets", "ready_data"))
        )
        nothing = (memory[name][:0].copy() for name in ("ready_packets", "ready_data"))
        yield FlowStep(ready, FlowBatch(memory["ended"][:n_ended].copy(), *nothing))

    def _grow_index(self) -> None:
        slots = np.zeros(self._memory["slots"].size * 2, np.uint64)
        flow_index.rebuild(self._memory["slots"], slots)
        self._memory["slots"] = slots
        self._table["slots_at"], self._table["n_slots"] = slots.ctypes.data, slots.size

    def _memory_bytes(self) -> int:
        table = self._table[0]
        output = sum(self._memory[name].nbytes for name in ("ended", "ready", "ready_packets", "ready_data"))
        slabs = int(table["slabs_used"]) * _slab_bytes(self._keep)
        return (
            output
            + self._memory["slots"].nbytes
            + int(table["rows_used"]) * _ROW_BYTES
            + slabs
            + N_ORDERS * SPARE_ENTRIES * ENTRY_BYTES
        )


def _new_memory(config: FlowTableConfig, keep: KeepSpec, sizes: TableSizes) -> dict[str, NDArray[Any]]:
    """The arrays of an empty table, and ``table``, the record that says where they lie.

    Zeros, which the system backs with pages as they are written: a large limit costs nothing until it is needed.
    """
    n_rows = sizes.n_flows + FIRST_ROW
    n_slots = min(1 << (2 * sizes.n_flows - 1).bit_length(), _FIRST_INDEX_SLOTS)
    data_bytes = keep.n_byte_packets * keep.row_bytes
    memory: dict[str, NDArray[Any]] = {
        "flows": _aligned_zeros(n_rows, OPEN_FLOW_DTYPE),
        "links": np.zeros((n_rows, N_LINKS), np.int32),
        "places": np.zeros(n_rows, np.int32),
        "holding_places": np.zeros(n_rows, np.int32),
        "tunnels": np.zeros(n_rows, TUNNEL_DTYPE),
        "slots": np.zeros(n_slots, np.uint64),
        "slab_packets": np.zeros((sizes.n_slabs, keep.n_packets), PACKET_DTYPE),
        "slab_data": np.zeros(sizes.n_slabs * data_bytes, np.uint8),
        "slab_chain": np.zeros(sizes.n_slabs, np.int32),
        "ended": np.zeros(sizes.n_ended_rows, FLOW_DTYPE),
        "ready": np.zeros(sizes.n_ready_rows, FLOW_DTYPE),
        "ready_packets": np.zeros((sizes.n_ready_rows, keep.n_packets), PACKET_DTYPE),
        "ready_data": np.zeros((sizes.n_ready_rows, keep.n_byte_packets, keep.row_bytes), np.uint8),
    }
    memory["flows"]["started_ns"][SENTINEL] = NEVER_NS
    table = np.zeros(1, TABLE_DTYPE)
    for name, array in memory.items():
        table[f"{name}_at"] = array.ctypes.data
    for order, n in ((IDLE, sizes.n_flows), (CLOSING, sizes.n_flows), (HOLDING, sizes.n_slabs)):
        for what, kind in (("rows", np.int32), ("times", np.int64)):
            array = np.zeros(2 * n + SPARE_ENTRIES, kind)
            memory[f"order_{what}_{order}"] = array
            table[f"order_{what}_at"][0, order] = array.ctypes.data
    table["idle_ns"] = round(config.idle_timeout_s * _NS_PER_S)
    table["active_ns"] = round(config.active_timeout_s * _NS_PER_S)
    table["linger_ns"] = round(config.tcp_linger_s * _NS_PER_S)
    table["early_ns"] = round(config.ready_timeout_s * _NS_PER_S) if keep.n_packets else 0
    for name in ("n_packets", "n_byte_packets", "header_bytes", "payload_bytes"):
        table[name] = getattr(keep, name)
    table["max_flows"], table["max_slabs"] = sizes.n_flows, sizes.n_slabs
    table["max_ended_rows"], table["max_ready_rows"] = sizes.n_ended_rows, sizes.n_ready_rows
    table["n_slots"] = n_slots
    table["newest_ns"] = -NEVER_NS
    table["rows_used"] = FIRST_ROW
    table["free_slab"] = NO_SLAB
    return memory | {"table": table}


def _aligned_zeros(n: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros (n,) that begin at a cache line, so that a row of three lines touches three."""
    raw = np.zeros(n * dtype.itemsize + _CACHE_LINE, np.uint8)
    skip = -raw.ctypes.data % _CACHE_LINE
    return raw[skip : skip + n * dtype.itemsize].view(dtype)


def _columns(block: PacketBlock | DecodedBlock, names: tuple[str, ...]) -> tuple[NDArray[Any], ...]:
    """Columns of a block as contiguous arrays: one layout, so one compiled kernel."""
    return tuple(np.ascontiguousarray(getattr(block, name)) for name in names)
