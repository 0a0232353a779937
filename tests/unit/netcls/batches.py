"""Event batches made by hand, for everything that stands behind the pipeline."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capture.flow_batch import FLOW_DTYPE, EndReason
from netcls.event_batch import Answers, EventBatch, ModelName

MODEL = ModelName("lab-small", "3f9c1a7be204", "netmamba-1", ("web", "video", "=cmd()", "evil\x1b[31m\n"))
START_NS = 1_795_515_302_123_456_789  # 2026-11-24T10:15:02.123456789 UTC


def record(**fields: Any) -> NDArray[Any]:
    """One flow record, (1,): a TCP flow over IPv4 of 20 packets; ``fields`` change it."""
    row = np.zeros(1, FLOW_DTYPE)
    fields = {
        "flow_id": 1187423905567123,
        "first_ts_ns": START_NS,
        "last_ts_ns": START_NS + 3_999_999_999,
        "packets": (9, 11),
        "frame_bytes": (1200, 8211),
        "ip_bytes": (1074, 8057),
        "client": address("10.0.0.2"),
        "server": address("10.0.0.9"),
        "client_port": 40212,
        "server_port": 8443,
        "protocol": 6,
        "ip_version": 4,
        "end_reason": EndReason.END_DETECTED,
    } | fields
    for name, value in fields.items():
        row[name] = value
    return row


def address(text: str) -> NDArray[np.uint8]:
    """An address as records hold it; IPv4 as ::ffff:a.b.c.d."""
    ip = ipaddress.ip_address(text)
    packed = ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed
    return np.frombuffer(packed, np.uint8)


def answers(n: int, n_top: int = 0, **columns: Any) -> Answers:
    """Answers of n flows: the first label with 0.94, the second with 0.04; ``columns`` change them."""
    values: dict[str, Any] = {
        "label_index": np.zeros(n, np.int32),
        "probability": np.full(n, 0.94312, np.float32),
        "runner_up_index": np.ones(n, np.int32),
        "runner_up_probability": np.full(n, 0.04121, np.float32),
        "unknown": np.zeros(n, np.bool_),
        "unknown_score": np.full(n, 0.08, np.float32),
        "packets_used": np.full(n, 5, np.uint16),
        "answer_ts_ns": np.full(n, START_NS + 1_000_000, np.int64),
        "top_index": np.tile(np.arange(n_top, dtype=np.int32), (n, 1)),
        "top_probability": np.tile(np.linspace(0.9, 0.1, n_top, dtype=np.float32), (n, 1)),
    }
    return Answers(model=MODEL, **values | columns)


def classified(*records: NDArray[Any], source: str = "a.pcap", n_top: int = 0, **columns: Any) -> EventBatch:
    """The flows with answers."""
    rows = np.concatenate(records) if records else record()
    return EventBatch(source, rows, answers(len(rows), n_top, **columns))


def unclassified(*records: NDArray[Any], source: str = "a.pcap") -> EventBatch:
    """The flows without a model."""
    return EventBatch(source, np.concatenate(records) if records else record())
