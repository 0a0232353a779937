"""Prometheus metrics, read from the books when they are asked for; nothing is counted twice for them.

The names are stable. A number that a run does not have is left out, never shown as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from capture.errors import UsageError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from netcls.web.appliance import ApplianceLike

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_NO_EXTRA: Final = "metrics need the package prometheus-client; pip install 'netcls[serve]'"

# What the appliance's status may hold -> name, kind, help, and the label that its keys are.
_GAUGES: Final = {
    "flows_open": ("flows_open", "Flows that have not ended."),
    "flow_memory_bytes": ("flow_memory_bytes", "Memory of the flow tables."),
    "flow_memory_limit_bytes": ("flow_memory_limit_bytes", "Ceiling of that memory."),
    "config_reload_success": (
        "config_reload_success",
        "Whether the last reload of the configuration succeeded.",
    ),
    "uptime_s": ("uptime_seconds", "Time since the start."),
    "overload_step": ("overload_step", "Step of the overload policy; 0 is none."),
}
_HISTOGRAMS: Final = {
    "latency_s": (
        "prediction_latency_seconds",
        "From the packet that made a flow ready to its answer.",
        "stage",
    ),
    "probability": ("prediction_probability", "Calibrated probability of the answers.", ""),
    "batch_size": ("model_batch_size", "Flows of one pass of the model.", ""),
}
_OUTCOMES: Final = ("sent", "dropped", "retried", "failed", "undelivered")


def registry_of(appliance: ApplianceLike, more: Callable[[], Iterable[Metric]] = tuple) -> CollectorRegistry:
    """A registry whose one collector reads the appliance.

    Args:
        appliance: running.
        more: further metrics, for example of the web server itself.

    Raises:
        UsageError: where prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry
    except ImportError:
        raise UsageError(_NO_EXTRA) from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(appliance, more))
    return registry


def exposition(registry: CollectorRegistry) -> bytes:
    """The text that Prometheus reads."""
    from prometheus_client.exposition import generate_latest

    return bytes(generate_latest(registry))


class _Collector:
    """Reads counters and status at each scrape."""

    def __init__(self, appliance: ApplianceLike, more: Callable[[], Iterable[Metric]]) -> None:
        self._appliance, self._more = appliance, more

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: which metrics there are depends on the run."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        status = self._appliance.status()
        yield from self._books()
        yield from _status_metrics(status)
        yield self._build_info()
        yield from self._more()

    def _books(self) -> Iterable[Metric]:
        books = self._appliance.counters
        yield _counter("flows_started", "Flows begun.", books.flows_started)
        yield _labelled("decode_rejects", "Packets that could not be decoded.", "reason", books.rejected())
        yield _labelled("packets_ignored", "Packets that belong to no flow.", "reason", books.ignored())
        yield _labelled("flows_ended", "Flows ended, by IPFIX reason.", "reason", books.flows_ended)
        yield _counter("unknown", "Flows answered as unknown.", books.unknown)
        yield _gauge(
            "books_imbalance_packets", "Packets not accounted for; always 0.", books.imbalance_packets()
        )
        live = books.interfaces
        if live:
            yield _labelled(
                "capture_packets", "Packets read.", "iface", {name: of.n_packets for name, of in live.items()}
            )
            yield _labelled(
                "capture_kernel_drops",
                "Packets that the kernel dropped.",
                "iface",
                {name: of.n_kernel_drops for name, of in live.items() if of.counts_drops},
            )
            n_bytes = {name: of.n_bytes for name, of in live.items() if hasattr(of, "n_bytes")}
            if n_bytes:
                yield _labelled("capture_bytes", "Bytes read.", "iface", n_bytes)
        if books.queue_dropped:
            yield _labelled("model_queue_dropped", "Left out before the model.", "what", books.queue_dropped)

    def _build_info(self) -> Metric:
        from prometheus_client.core import GaugeMetricFamily

        import netcls

        checkpoint = self._appliance.checkpoint
        info = GaugeMetricFamily(
            "netcls_build_info", "What runs; always 1.", labels=["version", "model", "checkpoint"]
        )
        names = ("", "") if checkpoint is None else (checkpoint.name, checkpoint.digest)
        info.add_metric([netcls.__version__, *names], 1)
        return info


def _status_metrics(status: Mapping[str, Any]) -> Iterable[Metric]:
    for key, (name, text) in _GAUGES.items():
        value = status.get(key)
        if isinstance(value, int | float):
            yield _gauge(name, text, float(value))
    predictions = status.get("predictions")
    if isinstance(predictions, Mapping):
        yield _labelled("predictions", "Flows answered.", "label", predictions)
    yield from _queue_metrics(status.get("queues"))
    yield from _sink_metrics(status.get("sinks"))
    histograms = status.get("histograms")
    if isinstance(histograms, Mapping):
        for key, (name, text, label) in _HISTOGRAMS.items():
            if isinstance(histograms.get(key), Mapping):
                yield _histogram(name, text, label, histograms[key])


def _queue_metrics(queues: Any) -> Iterable[Metric]:
    if not isinstance(queues, Mapping) or not queues:
        return
    for key, text in (
        ("depth", "Waiting."),
        ("limit", "Room."),
        ("dropped", "Left out because it was full."),
    ):
        known = {name: queue[key] for name, queue in queues.items() if isinstance(queue.get(key), int)}
        if known and key == "dropped":
            yield _labelled("queue_dropped", text, "queue", known)
        elif known:
            yield _labelled_gauge(f"queue_{key}", text, "queue", known)


def _sink_metrics(sinks: Any) -> Iterable[Metric]:
    from prometheus_client.core import CounterMetricFamily

    if not isinstance(sinks, Mapping) or not sinks:
        return
    events = CounterMetricFamily(
        "netcls_sink_events", "Events by what became of them.", labels=["sink", "outcome"]
    )
    for name, sink in sinks.items():
        for outcome in _OUTCOMES:
            if isinstance(sink.get(outcome), int):
                events.add_metric([name, outcome], sink[outcome])
    yield events
    up = {name: int(sink["up"]) for name, sink in sinks.items() if isinstance(sink.get("up"), bool)}
    if up:
        yield _labelled_gauge("sink_up", "Whether the sink takes events.", "sink", up)


def _gauge(name: str, text: str, value: float) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"netcls_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(f"netcls_{name}", text, value=value)


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"netcls_{name}", text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def _labelled_gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"netcls_{name}", text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def _histogram(name: str, text: str, label: str, told: Mapping[str, Any]) -> Metric:
    """``told`` is ``{"bounds", "counts", "sum"}``, counts not cumulative with one more than bounds; or those by key."""
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(f"netcls_{name}", text, labels=[label] if label else [])
    parts = {"": told} if "bounds" in told else told
    for key, part in sorted(parts.items()):
        n, buckets = 0, []
        for bound, count in zip([*map(str, part["bounds"]), "+Inf"], part["counts"], strict=True):
            n += count
            buckets.append((bound, float(n)))
        family.add_metric([key] if label else [], buckets, part["sum"])
    return family
