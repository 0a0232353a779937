"""One flow of a capture, found by what names it, and other flows beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capture.decode import Decoder
from capture.errors import DataError, UsageError
from capture.flow_batch import EndReason, FlowBatch, FlowStep
from capture.flow_key import parse_address
from capture.flow_table import FlowTable, FlowTableConfig
from capture.readers import open_capture
from capture.representations.base import Representation, TokenBatch
from netcls.datasets.capture_flows import concatenate_tokens, sample_order

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class FlowChoice:
    """What names a flow; all that is given must fit. Nothing given: the capture's only flow.

    Attributes:
        flow_id: as events show it.
        index: place among the capture's flows in the order of their first packets, from 0.
        src_ip, dest_ip: addresses, in either direction.
        src_port, dest_port: ports of ``src_ip`` and ``dest_ip``.
        proto: IP protocol number.

    Raises:
        UsageError: from the constructor, for an address that is none.
    """

    flow_id: int | None = None
    index: int | None = None
    src_ip: str | None = None
    src_port: int | None = None
    dest_ip: str | None = None
    dest_port: int | None = None
    proto: int | None = None

    def __post_init__(self) -> None:
        for name in ("src_ip", "dest_ip"):
            if getattr(self, name) is not None:
                _address(name, getattr(self, name))

    def fits(self, records: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of the flows are meant: ``FLOW_DTYPE`` (F,) to bool (F,)."""
        fits = np.ones(len(records), bool)
        if self.flow_id is not None:
            fits &= records["flow_id"] == self.flow_id
        if self.index is not None:
            fits &= records["serial"] == self.index
        if self.proto is not None:
            fits &= records["protocol"] == self.proto
        ends = [("client", "server"), ("server", "client")]
        return np.asarray(fits & np.logical_or(*(self._ends_fit(records, *pair) for pair in ends)))

    def _ends_fit(self, records: NDArray[Any], source: str, destination: str) -> NDArray[np.bool_]:
        fits = np.ones(len(records), bool)
        for end, name in ((source, "src"), (destination, "dest")):
            address, port = getattr(self, f"{name}_ip"), getattr(self, f"{name}_port")
            if address is not None:
                fits &= (records[end] == _address(f"{name}_ip", address)).all(axis=1)
            if port is not None:
                fits &= records[f"{end}_port"] == port
        return fits

    def __str__(self) -> str:
        given = [(name, getattr(self, name)) for name in self.__dataclass_fields__]
        return ", ".join(f"{name} {value}" for name, value in given if value is not None) or "any flow"


@dataclass(frozen=True, slots=True)
class ChosenFlow:
    """One flow with its model input, and others.

    Attributes:
        flow: the flow as it was when it was ready, one row.
        record: ``FLOW_DTYPE`` (1,), as it was when it ended.
        tokens: its model input, one row.
        others: model input of other flows: those of its kind (IP version and protocol), whose bytes lie in the same
            places, or of any kind where there are none; may be empty.
    """

    flow: FlowBatch
    record: NDArray[Any]
    tokens: TokenBatch
    others: TokenBatch


def choose_flow(
    path: str,
    representation: Representation,
    choice: FlowChoice,
    *,
    n_others: int = 8,
    backgrounds: Sequence[str] = (),
    seed: int = 0,
    flow_config: FlowTableConfig | None = None,
) -> ChosenFlow:
    """Find a flow of a capture.

    Args:
        path: the capture.
        representation: makes the model input.
        choice: which flow.
        n_others: other flows that are wanted, a seeded sample.
        backgrounds: captures that the others come from; none: ``path`` itself.
        seed: of the sample.
        flow_config: of the flow table; None: the defaults.

    Raises:
        CaptureError: a capture cannot be read.
        DataError: no flow fits, or several do; the message names them.
    """
    found, others, n_flows = _Found(choice), _Others(n_others, seed), 0
    for step in _steps(path, representation, flow_config):
        n_flows += len(step.ready)
        rest = found.take(step)
        if len(step.ready) and not backgrounds:
            others.add(representation.tokenize(step.ready), step.ready.records, rest)
    flow, record = found.one(path, n_flows)
    for background in backgrounds:
        for step in _steps(background, representation, flow_config):
            if len(step.ready):
                everything = np.ones(len(step.ready), bool)
                others.add(representation.tokenize(step.ready), step.ready.records, everything)
    tokens = representation.tokenize(flow)
    return ChosenFlow(flow, record, tokens, others.like(flow.records, tokens))


def _steps(path: str, representation: Representation, config: FlowTableConfig | None) -> Iterator[FlowStep]:
    table = FlowTable(config or FlowTableConfig(), representation.keep)
    decoder = Decoder()
    with open_capture(path) as reader:
        for block in reader:
            yield from table.push(block, decoder.decode(block))
    yield from table.flush(EndReason.FORCED)


@dataclass(slots=True)
class _Found:
    """Flows that fit, as many as an error message names."""

    choice: FlowChoice
    n: int = 0
    flows: list[FlowBatch] = field(default_factory=list)
    ended: dict[int, NDArray[Any]] = field(default_factory=dict)

    def take(self, step: FlowStep) -> NDArray[np.bool_]:
        """Keep the flows that fit; returns which of the ready ones do not."""
        fits = self.choice.fits(step.ready.records)
        for row in np.flatnonzero(fits):
            self.n += 1
            if len(self.flows) < _MOST_NAMED:
                part = slice(row, row + 1)
                ready = step.ready  # the flow table may reuse its buffers
                self.flows.append(
                    FlowBatch(ready.records[part].copy(), ready.packets[part].copy(), ready.data[part].copy())
                )
        if len(step.ended) and self.flows:
            wanted = [int(flow.records["serial"][0]) for flow in self.flows]
            for row in np.flatnonzero(np.isin(step.ended.records["serial"], wanted)):
                record = step.ended.records[row : row + 1].copy()
                self.ended[int(record["serial"][0])] = record
        return ~fits

    def one(self, path: str, n_flows: int) -> tuple[FlowBatch, NDArray[Any]]:
        """The only flow that fits."""
        if not self.n:
            raise DataError(
                f"{path}: none of {n_flows} flows is {self.choice}; see `netcls flows` for what is there"
            )
        if self.n > 1:
            named = ", ".join(
                f"{int(flow.records['serial'][0])} (flow_id {int(flow.records['flow_id'][0])})"
                for flow in self.flows
            )
            more = ", ..." if self.n > len(self.flows) else ""
            raise DataError(
                f"{path}: {self.n} flows are {self.choice}, expected one; choose one with --index: {named}{more}"
            )
        flow = self.flows[0]
        serial = int(flow.records["serial"][0])
        record = self.ended.get(serial, flow.records).copy()
        record["n_kept"] = flow.records["n_kept"]
        return flow, record


class _Others:
    """A seeded sample of flows of each kind; bounded by kinds times ``n``."""

    def __init__(self, n: int, seed: int) -> None:
        self._n = n
        self._seed = seed
        self._kept: dict[tuple[int, int], list[tuple[int, TokenBatch]]] = {}

    def add(self, tokens: TokenBatch, records: NDArray[Any], wanted: NDArray[np.bool_]) -> None:
        order = sample_order(records["flow_id"], self._seed)
        for row in np.flatnonzero(wanted):
            kind = (int(records["ip_version"][row]), int(records["protocol"][row]))
            kept = self._kept.setdefault(kind, [])
            place = int(order[row])
            if len(kept) < self._n or place < kept[-1][0]:
                kept.append((place, tokens.take(slice(row, row + 1))))
                kept.sort(key=lambda entry: entry[0])
                del kept[self._n :]

    def like(self, record: NDArray[Any], tokens: TokenBatch) -> TokenBatch:
        """At most ``n`` of the flow's kind; where there are none, of any."""
        kind = (int(record["ip_version"][0]), int(record["protocol"][0]))
        entries = self._kept.get(kind) or [entry for kept in self._kept.values() for entry in kept]
        chosen = [batch for _, batch in sorted(entries, key=lambda entry: entry[0])[: self._n]]
        return concatenate_tokens(chosen) if chosen else tokens.take(slice(0, 0))


def _address(name: str, text: str) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(parse_address(text), np.uint8)
    except ValueError:
        option = f"--{name.replace('_', '-')}"
        raise UsageError(f"{option}: got {text!r}, expected an IPv4 or IPv6 address") from None
