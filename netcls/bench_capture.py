"""What :mod:`netcls.bench` times of the way from a capture file to model input. No torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from capture.block import DecodedBlock, PacketBlock
from capture.decode import decode
from capture.flow_batch import FlowBatch, KeepSpec
from capture.flow_table import FlowTable, FlowTableConfig
from capture.readers import open_capture
from capture.representations import build
from netcls.bench import BenchOptions, Task, Work
from netcls.bench_traffic import Traffic, write_capture


def tasks(options: BenchOptions, folder: Path) -> list[Task]:
    """The measurements that are asked for; the capture is written to ``folder`` when the first one starts."""
    road = _Road(options, folder)
    plan: list[tuple[str, str, Work]] = [
        ("read", "pcap", road.read),
        ("decode", "headers", road.decode),
        ("flows", "records", lambda: road.assemble(KeepSpec())),
        ("flows", "tokens", lambda: road.assemble(build("netmamba").keep)),
        ("flows", "netfound", lambda: road.assemble(build("netfound").keep)),
        ("tokens", "netmamba", lambda: road.tokenize("netmamba")),
        ("tokens", "netfound", lambda: road.tokenize("netfound")),
        ("end_to_end", "records", road.file_to_records),
        ("end_to_end", "tokens", lambda: road.file_to_tokens("netmamba")),
        ("end_to_end", "netfound", lambda: road.file_to_tokens("netfound")),
    ]
    return [
        Task(stage, name, "packets", _always(work))
        for stage, name, work in plan
        if options.wants(stage, name)
    ]


def _always(work: Work) -> Callable[[], Work]:
    """Nothing has to be made anew before a repeat."""
    return lambda: work


class _Road:
    """Each stage over what the one before it made; every method returns the packets of the capture."""

    def __init__(self, options: BenchOptions, folder: Path) -> None:
        self._traffic = Traffic(options.n_packets, seed=options.seed)
        self._folder = folder
        self._ready: dict[str, list[FlowBatch]] = {}

    @cached_property
    def _path(self) -> str:
        path = self._folder / "traffic.pcap"
        write_capture(path, self._traffic)
        return str(path)

    @cached_property
    def _blocks(self) -> list[PacketBlock]:
        with open_capture(self._path) as reader:
            return [_kept(block) for block in reader]

    @cached_property
    def _decoded(self) -> list[DecodedBlock]:
        return [decode(block) for block in self._blocks]

    def _ready_for(self, representation: str) -> list[FlowBatch]:
        if representation not in self._ready:
            table = FlowTable(FlowTableConfig(), build(representation).keep)
            ready: list[FlowBatch] = []
            for block, decoded in zip(self._blocks, self._decoded, strict=True):
                ready += [step.ready for step in table.push(block, decoded) if len(step.ready)]
            ready += [step.ready for step in table.flush() if len(step.ready)]
            self._ready[representation] = ready
        return self._ready[representation]

    def read(self) -> int:
        with open_capture(self._path) as reader:
            return sum(len(block) for block in reader)

    def decode(self) -> int:
        for block in self._blocks:
            decode(block)
        return self._traffic.n_packets

    def assemble(self, keep: KeepSpec) -> int:
        table = FlowTable(FlowTableConfig(), keep)
        for block, decoded in zip(self._blocks, self._decoded, strict=True):
            for _ in table.push(block, decoded):
                pass
        for _ in table.flush():
            pass
        return table.counters.packets

    def tokenize(self, name: str) -> int:
        representation = build(name)
        for flows in self._ready_for(name):
            representation.tokenize(flows)
        return self._traffic.n_packets

    def file_to_records(self) -> int:
        from netcls.pipeline import Run

        with Run([self._path], classify=False) as run:
            for _ in run:
                pass
        return run.counters.packets_in_flows

    def file_to_tokens(self, representation: str) -> int:
        from netcls.tokens import tokens_of_capture

        for _ in tokens_of_capture(self._path, build(representation), FlowTableConfig()):
            pass
        return self._traffic.n_packets


def _kept(block: PacketBlock) -> PacketBlock:
    """A copy of a block that outlives the reader's next one."""
    end = int((block.offset + block.captured_len).max(initial=0))
    return PacketBlock(
        block.ts_ns.copy(),
        block.captured_len.copy(),
        block.wire_len.copy(),
        block.offset.copy(),
        block.link_type.copy(),
        block.data[:end].copy(),
    )
