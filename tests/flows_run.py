"""Run packets through a flow table and gather what comes out, for the tests of the table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from capture.flow_batch import FLOW_DTYPE, EndReason, FlowStep, KeepSpec
from capture.flow_table import FlowTable, FlowTableConfig, TableSizes
from tests.flows_builder import Packet, blocks_of

NO_KEEP = KeepSpec()
HASH_KEY = bytes(range(16))


@dataclass
class Outcome:
    """Everything that came out, in order; `*_step` say in which step."""

    ready: Any = field(default_factory=lambda: np.zeros(0, FLOW_DTYPE))
    packets: Any = None
    data: Any = None
    is_early: Any = field(default_factory=lambda: np.zeros(0, bool))
    ended: Any = field(default_factory=lambda: np.zeros(0, FLOW_DTYPE))
    ready_step: list[int] = field(default_factory=list)
    ended_step: list[int] = field(default_factory=list)

    @property
    def reasons(self) -> list[EndReason]:
        return [EndReason(reason) for reason in self.ended["end_reason"].tolist()]


def plain(records: Any) -> list[dict[str, Any]]:
    """Records (an array, or a list of single ones) as dicts, so that a difference can be read."""
    return [
        {name: np.asarray(record[name]).tolist() for name in FLOW_DTYPE.names or ()} for record in records
    ]


def gather(steps: Iterable[FlowStep], keep: KeepSpec = NO_KEEP) -> Outcome:
    outcome = Outcome()
    taken = list(steps)
    for number, step in enumerate(taken):
        assert len(step.ready) or len(step.ended), "an empty step"
        assert step.ready.packets.shape == (len(step.ready), keep.n_packets)
        assert step.ready.data.shape == (len(step.ready), keep.n_byte_packets, keep.row_bytes)
        outcome.ready_step += [number] * len(step.ready)
        outcome.ended_step += [number] * len(step.ended)
    if taken:
        outcome.ready = np.concatenate([step.ready.records for step in taken])
        outcome.packets = np.concatenate([step.ready.packets for step in taken])
        outcome.is_early = np.concatenate([step.is_early() for step in taken])
        outcome.data = np.concatenate([step.ready.data for step in taken])
        outcome.ended = np.concatenate([step.ended.records for step in taken])
    return outcome


def steps_of(table: FlowTable, packets: Sequence[Packet], block_size: int = 1 << 30) -> Iterable[FlowStep]:
    for start in range(0, len(packets), block_size):
        yield from table.push(*blocks_of(packets[start : start + block_size]))


def run(
    packets: Sequence[Packet],
    config: FlowTableConfig | None = None,
    keep: KeepSpec = NO_KEEP,
    sizes: TableSizes | None = None,
    block_size: int = 1 << 30,
) -> Outcome:
    """All flows of the packets, the last ones by `flush`."""
    table = FlowTable(config or FlowTableConfig(), keep, hash_key=HASH_KEY, sizes=sizes)
    steps = list(steps_of(table, packets, block_size))
    return gather([*steps, *table.flush()], keep)
