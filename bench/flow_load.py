"""The flow table under load: a SYN flood, a million open flows, a day in a minute.

    .venv/bin/python -m bench.flow_load flood    # 2,000,000 five-tuples, 256 MiB ceiling, 100 dialogues among them
    .venv/bin/python -m bench.flow_load open     # cost of a packet from 1,000 to 1,000,000 open flows
    .venv/bin/python -m bench.flow_load day      # 24 h of time stamps: does memory grow?

Each prints its figures as JSON; results are in docs/experiments.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.flow_frames import SYN, TCP, frames
from capture.block import PacketBlock
from capture.decode import decode
from capture.flow_batch import FlowStep, KeepSpec
from capture.flow_table import FlowTable, FlowTableConfig
from capture.readers import open_capture

NS = 10**9
MIB = 1 << 20
T0 = 1_760_000_000 * NS
# What the default model wants of a flow.
KEEP = KeepSpec(16, 16, 56, 8)
BLOCK = 1500
DEMO = Path(__file__).parent.parent / "tests" / "data" / "captures" / "demo.pcap.zst"


def rss_mib(field: str = "VmRSS") -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


def push(table: FlowTable, block: PacketBlock) -> Iterator[FlowStep]:
    yield from table.push(block, decode(block))


# ------------------------------------------------------------------------------------------------- SYN flood


def dialogues(n: int, seconds: float) -> list[PacketBlock]:
    """The packets of the ``n`` longest flows of the demonstration capture, one a block, spread over ``seconds``.

    Each keeps its own pace up to that; they begin one after the other in the first half.
    """
    with open_capture(DEMO) as reader:
        packets = [
            PacketBlock(
                *(getattr(block, name)[i : i + 1] for name in ("ts_ns", "captured_len", "wire_len")),
                np.zeros(1, np.int64),
                block.link_type[i : i + 1],
                block.data[int(block.offset[i]) : int(block.offset[i]) + int(block.captured_len[i])].copy(),
            )
            for block in map(_copied, reader)
            for i in range(len(block))
        ]
    by_flow: dict[tuple[Any, ...], list[PacketBlock]] = {}
    for packet in packets:
        heads = decode(packet)
        if heads.reject[0] == 0 and heads.src_port[0]:
            ends = sorted(
                ((bytes(heads.src[0]), int(heads.src_port[0])), (bytes(heads.dst[0]), int(heads.dst_port[0])))
            )
            by_flow.setdefault((*ends, int(heads.protocol[0])), []).append(packet)
    longest = sorted(by_flow.values(), key=len, reverse=True)[:n]
    out = []
    for number, flow in enumerate(longest):
        start_ns = T0 + round(number / n * seconds / 2 * NS)
        length_ns = int(flow[-1].ts_ns[0] - flow[0].ts_ns[0])
        pace = min(1.0, seconds / 3 * NS / max(length_ns, 1))
        out += [
            replace(p, ts_ns=np.array([start_ns + round(int(p.ts_ns[0] - flow[0].ts_ns[0]) * pace)]))
            for p in flow
        ]
    return sorted(out, key=lambda p: int(p.ts_ns[0]))


def _copied(block: PacketBlock) -> PacketBlock:
    names = ("ts_ns", "captured_len", "wire_len", "offset", "link_type", "data")
    return PacketBlock(*(getattr(block, name).copy() for name in names))


class Answers:
    """What the model would be shown of the dialogues' flows, and how they ended."""

    def __init__(self) -> None:
        self.inputs: dict[int, bytes] = {}
        self.packets = 0
        self.evicted = 0

    def take(self, steps: Iterator[FlowStep]) -> None:
        """Note what the steps say of the dialogues."""
        for step in steps:
            # Flood packets are SYNs to 192.0.2.1.
            mine = ~(step.ready.records["server"][:, 12:] == [192, 0, 2, 1]).all(axis=1)
            for row in np.flatnonzero(mine).tolist():
                key = int(step.ready.records["flow_id"][row])
                self.inputs[key] = step.ready.data[row].tobytes()
            mine = ~(step.ended.records["server"][:, 12:] == [192, 0, 2, 1]).all(axis=1)
            self.packets += int(step.ended.records["packets"][mine].sum())
            self.evicted += int((step.ended.records["end_reason"][mine] == 5).sum())


def flood(n: int, seconds: float, ceiling_mib: int) -> dict[str, Any]:
    talk = dialogues(100, seconds)
    plain, flooded = Answers(), Answers()
    table = FlowTable(FlowTableConfig(), KEEP)
    for packet in talk:
        plain.take(push(table, packet))
    plain.take(table.flush())

    table = FlowTable(FlowTableConfig(memory_limit_bytes=ceiling_mib * MIB), KEEP)
    before_mib, peak_mib = rss_mib(), 0.0
    started, at = time.process_time(), 0
    for first in range(0, n, BLOCK):
        numbers = np.arange(first, min(first + BLOCK, n))
        ts_ns = T0 + (numbers * (seconds * NS / n)).astype(np.int64)
        while at < len(talk) and talk[at].ts_ns[0] <= ts_ns[0]:
            flooded.take(push(table, talk[at]))
            at += 1
        flooded.take(push(table, frames(numbers, ts_ns, protocol=TCP, size=60, flags=SYN)))
        if first % (BLOCK * 64) == 0:
            peak_mib = max(peak_mib, rss_mib())
    for packet in talk[at:]:
        flooded.take(push(table, packet))
    cpu_s = time.process_time() - started
    counters = table.counters
    flooded.take(table.flush())
    same = sum(flooded.inputs.get(key) == data for key, data in plain.inputs.items())
    return {
        "five_tuples": n,
        "seconds_of_traffic": seconds,
        "ceiling_mib": ceiling_mib,
        "rss_growth_mib": round(max(peak_mib, rss_mib()) - before_mib, 1),
        "table_mib": round(counters.memory_bytes / MIB, 1),
        "evicted": counters.flows_ended[5],  # type: ignore[index]
        "dialogues": len(plain.inputs),
        "same_model_input": same,
        "dialogues_evicted": flooded.evicted,
        "packets_of_dialogues": [plain.packets, flooded.packets],
        "packets_balance": table.counters.packets == n + len(talk),
        "ns_per_packet": round(cpu_s / n * 1e9),
    }


# ----------------------------------------------------------------------------------- cost by number of open flows


def open_flows(counts: list[int], n_packets: int, rounds: int, burst: int) -> dict[str, Any]:
    """Cost of a packet with so many flows open: decoding and flow update, rounds in turn."""
    rng = np.random.default_rng(0)
    tables = {}
    for n in counts:
        tables[n] = FlowTable(
            FlowTableConfig(idle_timeout_s=3e7, active_timeout_s=3e7, memory_limit_bytes=1024 * MIB),
            KeepSpec(),
        )
        for first in range(0, n, BLOCK):
            numbers = np.arange(first, min(first + BLOCK, n))
            list(push(tables[n], frames(numbers, np.full(len(numbers), T0))))
    costs: dict[int, list[float]] = {n: [] for n in counts}
    update: dict[int, list[float]] = {n: [] for n in counts}
    for _ in range(rounds):
        for n in counts:
            whole_s = table_s = 0.0
            for _ in range(0, n_packets, BLOCK):
                numbers = np.repeat(rng.integers(0, n, BLOCK // burst), burst)
                block = frames(numbers, np.full(len(numbers), T0))
                start_s = time.thread_time()
                decoded = decode(block)
                middle_s = time.thread_time()
                list(tables[n].push(block, decoded))
                end_s = time.thread_time()
                whole_s += end_s - start_s
                table_s += end_s - middle_s
            costs[n].append(whole_s / n_packets * 1e9)
            update[n].append(table_s / n_packets * 1e9)
    middle = {n: statistics.median(costs[n]) for n in counts}
    return {
        "packets_in_a_row": burst,
        "ns_per_packet": {str(n): round(middle[n], 1) for n in counts},
        "of_that_flow_table": {str(n): round(statistics.median(update[n]), 1) for n in counts},
        "ratio": round(middle[counts[-1]] / middle[counts[0]], 2),
    }


# ------------------------------------------------------------------------------------------------------- a day


def day(n_packets: int, ceiling_mib: int) -> dict[str, Any]:
    """Random flows with heavy tails over 24 h of time stamps; memory each simulated hour."""
    rng = np.random.default_rng(0)
    table = FlowTable(FlowTableConfig(memory_limit_bytes=ceiling_mib * MIB), KEEP)
    step_ns = 24 * 3600 * NS // n_packets
    hours, next_hour, n_flows, seen = [], 0, 0, 0
    recent = np.zeros(0, np.int64)
    while seen < n_packets:
        # A third of the packets begin flows, the others go on with one of the last 20,000.
        new = np.arange(n_flows, n_flows + BLOCK // 3)
        n_flows += len(new)
        old = rng.choice(recent, BLOCK - len(new)) if len(recent) else new[:0]
        numbers = rng.permutation(np.concatenate((new, old)))
        ts_ns = T0 + (seen + np.arange(len(numbers))) * step_ns
        for _ in push(table, frames(numbers & 0xFFFFFFFFF, ts_ns)):
            pass
        recent = np.concatenate((recent, new))[-20_000:]
        seen += len(numbers)
        if seen * step_ns >= next_hour * 3600 * NS:
            hours.append(rss_mib())
            next_hour += 1
    late = np.array(hours[2:])
    slope = float(np.polyfit(np.arange(len(late)), late, 1)[0])
    return {
        "packets": seen,
        "flows": n_flows,
        "hours": len(hours),
        "rss_mib": [round(value, 1) for value in hours],
        "slope_mib_per_hour_after_2_h": round(slope, 4),
        "open_flows_at_end": table.counters.flows_open,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["flood", "open", "day"])
    parser.add_argument("--packets", type=int, help="of the flood or the day, or of a round")
    parser.add_argument("--seconds", type=float, default=60, help="of time that the flood takes")
    parser.add_argument("--ceiling-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--burst", type=int, default=1, help="packets of a flow in a row")
    given = parser.parse_args()
    if given.what == "flood":
        result = flood(given.packets or 2_000_000, given.seconds, given.ceiling_mib)
    elif given.what == "open":
        counts = [1_000, 10_000, 100_000, 1_000_000]
        result = open_flows(counts, given.packets or 150_000, given.rounds, given.burst)
    else:
        result = day(given.packets or 8_640_000, given.ceiling_mib)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
