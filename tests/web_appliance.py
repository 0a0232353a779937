"""A small appliance and its events, for tests of store, API and page."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec

from capture.errors import NetclsError
from netcls.counters import Counters
from netcls.event import Event, FlowPart, LabelProbability, NetclsPart, encode_line, timestamp_text
from netcls.sinks.base import Told

START_NS = 1_795_515_302_123_456_000


def event(
    flow_id: int,
    label: str = "web",
    probability: float = 0.9,
    *,
    src_ip: str = "10.0.0.2",
    dest_ip: str = "10.0.0.9",
    unknown: bool = False,
    final: bool = True,
    n_bytes: int = 1000,
    packets: int = 9,
    sni: str | None = None,
    **more: Any,
) -> Event:
    ours: dict[str, Any] = {"sni": sni} if sni is not None else {}
    return Event(
        timestamp=timestamp_text(START_NS + flow_id * 1_000_000),
        flow_id=flow_id,
        event_type="netcls",
        in_iface=more.pop("in_iface", "eth0"),
        src_ip=src_ip,
        src_port=40_000 + flow_id % 1000,
        dest_ip=dest_ip,
        dest_port=more.pop("dest_port", 443),
        proto=more.pop("proto", "TCP"),
        ip_v=6 if ":" in src_ip else 4,
        community_id="1:LVFcLGgiant8VSOwvi6BkCZv22Q=",
        flow=FlowPart(
            start=timestamp_text(START_NS),
            age=1,
            pkts_toserver=packets,
            pkts_toclient=2,
            bytes_toserver=n_bytes,
            bytes_toclient=0,
        ),
        netcls=NetclsPart(
            label="unknown" if unknown else label,
            nearest=label if unknown else msgspec.UNSET,
            probability=probability,
            runner_up=LabelProbability("video", 0.04),
            unknown=unknown,
            unknown_score=0.1,
            phase="end" if final else "ready",
            final=final,
            packets_used=8,
            latency_us=2140,
            model="small",
            checkpoint="3f9c1a7be204",
            representation="packets-1",
            **ours,
            **more,
        ),
    )


def told(events: list[Event], first: int = 1) -> list[Told]:
    return [Told(number, each, encode_line(each)) for number, each in enumerate(events, first)]


@dataclass
class SmallAppliance:
    """As little as the web part needs."""

    counters: Counters = field(default_factory=Counters)
    checkpoint: Any = None
    state: str = "running"
    reload_error: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    def status(self) -> dict[str, Any]:
        return {"state": self.state, "uptime_s": 12.5, **self.more}

    def reload(self) -> str:
        if self.reload_error:
            raise NetclsError(self.reload_error)
        return "model small, as before"


def as_json(line: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(line)
    return value
