"""The state of the appliance as JSON values, for page, metrics, control socket and ``stats`` events."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netcls.daemon.appliance import Appliance


def status_of(appliance: Appliance) -> dict[str, Any]:
    """Everything an operator may ask; keys stay, others may come."""
    books, config = appliance.counters, appliance.config
    answers = appliance.run.answerer or appliance.answerers["main"]
    return {
        "state": appliance.state,
        "uptime_s": round(appliance.uptime_s, 3),
        "pid": os.getpid(),
        "url": appliance.url,
        "source": {"kind": "interfaces", "names": list(config.iface)}
        if config.is_live
        else {"kind": "spool", "names": [config.spool]} | appliance.run.spool_status(),
        "model": {
            "name": answers.name.name,
            "checkpoint": answers.name.checkpoint,
            "representation": answers.name.representation,
            "labels": len(answers.name.labels),
            "is_small": answers is appliance.answerers.get("small"),
        },
        "capture": books.capture()
        | {"interfaces": {name: asdict(counted) for name, counted in books.interfaces.items()}},
        "packets_seen": books.packets_seen,
        "flows_open": books.flows_open,
        "flows_started": books.flows_started,
        "flows_ended": dict(sorted(books.flows_ended.items())),
        "flow_memory_bytes": books.flow_memory_peak_bytes,
        "flow_memory_limit_bytes": config.memory_limit_mib << 20,
        "predictions": dict(appliance.tallies.by_label),
        "unknown": books.unknown,
        "unanswered": books.flows_unanswered,
        "events": dict(appliance.tallies.events),
        "queues": _queues(appliance),
        "sinks": _sinks(appliance),
        "overload_step": int(appliance.policy.step),
        "overload": {"step": int(appliance.policy.step), "name": appliance.policy.step.text},
        "latency_us": appliance.tallies.recent_latency_us(),
        "histograms": appliance.tallies.histograms(),
        "books_imbalance_packets": books.imbalance_packets(),
        "config_reload_success": appliance.config_reload_success,
        "last_reload_error": appliance.last_reload_error,
        "stages": appliance.board.as_dict(),
    }


def stats_of(appliance: Appliance) -> dict[str, Any]:
    """The ``stats`` object of a ``stats`` event; ``capture`` has Suricata's names."""
    books = appliance.counters
    return {
        "uptime": int(appliance.uptime_s),
        "capture": books.capture(),
        "netcls": books.as_dict()
        | {
            "queues": _queues(appliance),
            "sinks": _sinks(appliance),
            "overload": {"step": int(appliance.policy.step), "name": appliance.policy.step.text},
            "latency_us": appliance.tallies.recent_latency_us(),
        },
    }


def _queues(appliance: Appliance) -> dict[str, Any]:
    """Depth, limit and what was dropped, of each queue."""
    queues: dict[str, Any] = {}
    if (steps := appliance.run.queue) is not None:
        queues["ready"] = {"depth": steps.depth, "limit": steps.limit, "dropped": steps.dropped_ready}
        queues["ended"] = {
            "depth": steps.ended_depth,
            "limit": steps.ended_limit,
            "dropped": steps.dropped_ended,
        }
        queues["early"] = {"depth": 0, "limit": steps.limit // 2, "dropped": steps.dropped_early}
    for runner in appliance.runners:
        queues[f"sink.{runner.name}"] = {
            "depth": runner.depth,
            "limit": runner.limit,
            "dropped": runner.counters.dropped,
        }
    return queues


def _sinks(appliance: Appliance) -> dict[str, Any]:
    return {
        runner.name: asdict(runner.counters)
        | {
            "undelivered": runner.n_undelivered,
            "up": bool(runner.is_up),
            "depth": runner.depth,
            "limit": runner.limit,
            "when_full": runner.when_full,
            "last_error": runner.last_error,
        }
        for runner in appliance.runners
    }
