"""The event: what netcls says of one flow, as Suricata's EVE would say it.

Outer names are EVE's, so that whatever reads EVE reads this; what is ours stands inside ``netcls``.
``src_*`` is the client (who sent first). A field that does not apply is absent, never null.
Fields may be added; to rename, retype or drop one, raise :data:`SCHEMA_VERSION`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from capture.flow_batch import (
    QUALITY_DIRECTION_GUESSED,
    QUALITY_FRAGMENTS,
    QUALITY_MIDSTREAM,
    QUALITY_ONE_WAY,
    QUALITY_TIME_BACKWARDS,
    QUALITY_TRUNCATED,
    EndReason,
)
from capture.tunnel import TunnelKind
from models.tasks import LEAST_CHANCE, Task
from netcls.event_batch import READY_BY_END, READY_BY_PACKETS, READY_BY_TIMEOUT, Answers, EventBatch

SCHEMA_VERSION: Final = 1

_NS_PER_S: Final = 1_000_000_000
_PROBABILITY_DIGITS: Final = 4
_UNKNOWN_LABEL: Final = "unknown"

_ICMP: Final = 1
_ICMPV6: Final = 58
_PROTO_NAMES: Final = {_ICMP: "ICMP", 6: "TCP", 17: "UDP", _ICMPV6: "IPv6-ICMP", 132: "SCTP"}
_PROTOS_WITH_PORTS: Final = frozenset({6, 17, 132})

# EVE knows three reasons, IPFIX five. "shutdown" is what a stopping daemon says instead.
_EVE_REASON: Final = {
    EndReason.IDLE: "timeout",
    EndReason.ACTIVE: "timeout",
    EndReason.END_DETECTED: "timeout",
    EndReason.FORCED: "forced",
    EndReason.LACK_OF_RESOURCES: "forced",
}
_READY_BY: Final = {READY_BY_PACKETS: "packets", READY_BY_TIMEOUT: "timeout", READY_BY_END: "end"}
_QUALITY_NAMES: Final = (
    (QUALITY_MIDSTREAM, "midstream"),
    (QUALITY_TRUNCATED, "truncated"),
    (QUALITY_ONE_WAY, "one_way"),
    (QUALITY_FRAGMENTS, "fragments"),
    (QUALITY_DIRECTION_GUESSED, "direction_guessed"),
    (QUALITY_TIME_BACKWARDS, "time_backwards"),
)


class LabelProbability(msgspec.Struct, frozen=True, gc=False):
    """A label and its calibrated probability (0 to 1, 4 decimals)."""

    label: str
    probability: float


class NumberPart(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The answer of a regression: the median, and the interval that holds it in 80 of 100 cases."""

    name: str
    unit: str
    estimate: float
    low: float
    high: float


class FlowPart(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """EVE's ``flow`` object. ``age`` in s; bytes are whole frames on the wire, ``ip_bytes`` IP total lengths."""

    start: str
    end: str | UnsetType = UNSET
    age: int
    pkts_toserver: int
    pkts_toclient: int
    bytes_toserver: int
    bytes_toclient: int
    ip_bytes_toserver: int | UnsetType = UNSET
    ip_bytes_toclient: int | UnsetType = UNSET
    reason: str | UnsetType = UNSET


class TunnelPart(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What enclosed the flow's packets; addresses and ports are those of the inner ones.

    ``id`` is VNI, TEID, key or session of the client's packets, ``id_toclient`` of the server's where it is another.
    """

    kind: str
    id: int | UnsetType = UNSET
    id_toclient: int | UnsetType = UNSET
    depth: int


class NetclsPart(msgspec.Struct, frozen=True, kw_only=True):
    """What is ours. Without a model only ``v``, ``end_reason`` and ``quality`` are there."""

    v: int = SCHEMA_VERSION
    label: str | UnsetType = UNSET
    probability: float | UnsetType = UNSET
    nearest: str | UnsetType = UNSET  # the best known label, where `label` is "unknown"
    runner_up: LabelProbability | UnsetType = UNSET
    unknown: bool | UnsetType = UNSET
    unknown_score: float | UnsetType = UNSET
    top: list[LabelProbability] | UnsetType = UNSET
    labels: list[LabelProbability] | UnsetType = (
        UNSET  # of a multi-label model: all that hold, likeliest first
    )
    number: NumberPart | UnsetType = UNSET  # of a regression, instead of a label
    phase: str | UnsetType = UNSET
    ready_by: str | UnsetType = UNSET  # live only
    final: bool | UnsetType = UNSET
    changed: bool | UnsetType = UNSET  # true where it corrects an earlier event of the flow, which said `was`
    was: str | UnsetType = UNSET
    packets_used: int | UnsetType = UNSET
    latency_us: int | UnsetType = UNSET  # live only
    sni: str | UnsetType = UNSET  # these two from the client's hello, never model input
    alpn: list[str] | UnsetType = UNSET
    model: str | UnsetType = UNSET
    checkpoint: str | UnsetType = UNSET
    representation: str | UnsetType = UNSET
    end_reason: str | UnsetType = UNSET
    quality: list[str] | UnsetType = UNSET


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One flow. ``event_type`` is ``netcls`` where a model answered, else ``flow``."""

    timestamp: str
    flow_id: int
    event_type: str
    in_iface: str | UnsetType = UNSET
    pcap_filename: str | UnsetType = UNSET
    src_ip: str
    src_port: int | UnsetType = UNSET
    dest_ip: str
    dest_port: int | UnsetType = UNSET
    proto: str
    icmp_type: int | UnsetType = UNSET
    icmp_code: int | UnsetType = UNSET
    ip_v: int
    vlan: list[int] | UnsetType = UNSET
    tunnel: TunnelPart | UnsetType = UNSET
    community_id: str
    flow: FlowPart
    netcls: NetclsPart


class StatsEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The counters. ``pcap_filename`` or ``in_iface`` only where all of them are of one."""

    timestamp: str
    event_type: str = "stats"
    in_iface: str | UnsetType = UNSET
    pcap_filename: str | UnsetType = UNSET
    stats: dict[str, Any]


class EngineEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to netcls itself: start, stop, reload, the state of a sink, overload.

    ``engine`` has ``action`` and ``message``, and what belongs to that action.
    """

    timestamp: str
    event_type: str = "engine"
    engine: dict[str, Any]


_ENCODER: Final = msgspec.json.Encoder()


def encode_line(event: Event | StatsEvent | EngineEvent) -> bytes:
    """One JSON object and a newline, UTF-8."""
    return _ENCODER.encode(event) + b"\n"


def encode_lines(batch: EventBatch) -> bytes:
    """The lines of all flows of a batch."""
    return bytes(_ENCODER.encode_lines(events_of(batch)))


def as_dict(event: Event | StatsEvent | EngineEvent) -> dict[str, Any]:
    """The event as the plain dict that its JSON line would be read back as."""
    plain: dict[str, Any] = msgspec.to_builtins(event)
    return plain


def timestamp_text(ts_ns: int) -> str:
    """Suricata's pattern, UTC, microseconds (cut, not rounded): ``2026-11-24T10:15:02.123456+0000``.

    Args:
        ts_ns: nanoseconds since the Unix epoch.
    """
    second, ns = divmod(ts_ns, _NS_PER_S)
    return f"{_second_text(second)}.{ns // 1000:06d}+0000"


@lru_cache(maxsize=4096)
def _second_text(second: int) -> str:
    # Formatting the calendar costs 1 us; flows of a capture share their seconds.
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def stats_event(
    stats: dict[str, Any], newest_ts_ns: int, sources: set[str], *, is_live: bool = False
) -> StatsEvent:
    """The last event of a run.

    Args:
        stats: ``Counters.as_dict()``.
        newest_ts_ns: the packet clock, nanoseconds since the epoch; 0 if no packet was seen.
        sources: names of the captures that were read, or of the interfaces.
        is_live: whether they are interfaces.
    """
    source = _valid_text(next(iter(sources))) if len(sources) == 1 else UNSET
    return StatsEvent(
        timestamp=timestamp_text(newest_ts_ns),
        in_iface=source if is_live else UNSET,
        pcap_filename=UNSET if is_live else source,
        stats=stats,
    )


def events_of(batch: EventBatch) -> Iterator[Event]:
    """The events of a batch, in its order, one a flow."""
    from capture.community_id import community_ids

    records = batch.records
    if not len(records):
        return
    answers = batch.answers
    event_type = "flow" if answers is None else "netcls"
    event_ts_ns = records["last_ts_ns"] if answers is None else answers.answer_ts_ns
    source = _valid_text(batch.source)
    columns = zip(
        event_ts_ns.tolist(),
        records["flow_id"].tolist(),
        records["protocol"].tolist(),
        records["ip_version"].tolist(),
        records["client"],
        records["server"],
        records["client_port"].tolist(),
        records["server_port"].tolist(),
        records["vlan"].tolist(),
        _tunnels(records),
        community_ids(records),
        _flow_parts(records, is_shutdown=batch.is_shutdown),
        _notes(batch) if answers is None else _in_the_task_s_form(_answered(answers, batch), answers),
        strict=True,
    )
    for (
        ts_ns,
        flow_id,
        protocol,
        ip_v,
        client,
        server,
        port_0,
        port_1,
        vlan,
        tunnel,
        key,
        flow,
        ours,
    ) in columns:
        has_ports = protocol in _PROTOS_WITH_PORTS
        is_icmp = protocol in (_ICMP, _ICMPV6)
        yield Event(
            timestamp=timestamp_text(ts_ns),
            flow_id=flow_id,
            event_type=event_type,
            in_iface=source if batch.is_live else UNSET,
            pcap_filename=UNSET if batch.is_live else source,
            src_ip=address_text(client.tobytes(), ip_v),
            src_port=port_0 if has_ports else UNSET,
            dest_ip=address_text(server.tobytes(), ip_v),
            dest_port=port_1 if has_ports else UNSET,
            proto=_PROTO_NAMES.get(protocol) or str(protocol),
            icmp_type=port_0 if is_icmp else UNSET,
            icmp_code=port_1 if is_icmp else UNSET,
            ip_v=ip_v,
            vlan=[tag for tag in vlan if tag] if any(vlan) else UNSET,
            tunnel=tunnel,
            community_id=key,
            flow=flow,
            netcls=ours,
        )


def _tunnels(records: Any) -> Iterator[TunnelPart | UnsetType]:
    columns = (records[name].tolist() for name in ("tunnel_kind", "tunnel_id", "tunnel_depth"))
    for kind, (to_server, to_client), depth in zip(*columns, strict=True):
        if not kind:
            yield UNSET
            continue
        yield TunnelPart(
            kind=TunnelKind(kind).text,
            id=to_server or UNSET,
            id_toclient=to_client if to_client not in (0, to_server) else UNSET,
            depth=depth,
        )


def _flow_parts(records: Any, *, is_shutdown: bool = False) -> Iterator[FlowPart]:
    columns = zip(
        records["first_ts_ns"].tolist(),
        records["last_ts_ns"].tolist(),
        records["packets"].tolist(),
        records["frame_bytes"].tolist(),
        records["ip_bytes"].tolist(),
        records["end_reason"].tolist(),
        strict=True,
    )
    for first_ts_ns, last_ts_ns, packets, frame_bytes, ip_bytes, end_reason in columns:
        is_open = end_reason == EndReason.OPEN
        yield FlowPart(
            start=timestamp_text(first_ts_ns),
            end=UNSET if is_open else timestamp_text(last_ts_ns),
            age=max(last_ts_ns - first_ts_ns, 0) // _NS_PER_S,
            pkts_toserver=packets[0],
            pkts_toclient=packets[1],
            bytes_toserver=frame_bytes[0],
            bytes_toclient=frame_bytes[1],
            ip_bytes_toserver=ip_bytes[0],
            ip_bytes_toclient=ip_bytes[1],
            reason=UNSET
            if is_open
            else "shutdown"
            if is_shutdown and end_reason == EndReason.FORCED
            else _EVE_REASON[end_reason],
        )


def _notes(batch: EventBatch) -> Iterator[NetclsPart]:
    records = batch.records
    columns = zip(_hellos(batch), records["end_reason"].tolist(), records["quality"].tolist(), strict=True)
    for (sni, alpn), end_reason, quality in columns:
        yield NetclsPart(
            sni=sni, alpn=alpn, end_reason=_end_reason_text(end_reason), quality=_quality_names(quality)
        )


def _hellos(batch: EventBatch) -> Iterator[tuple[str | UnsetType, list[str] | UnsetType]]:
    """Server name and offered protocols of each flow."""
    for hello in batch.handshakes or [None] * len(batch):
        if hello is None:
            yield UNSET, UNSET
        else:
            yield hello.sni or UNSET, list(hello.alpn) or UNSET


def _answered(answers: Answers, batch: EventBatch) -> Iterator[NetclsPart]:
    model, records = answers.model, batch.records
    labels = model.labels
    columns = zip(
        answers.label_index.tolist(),
        answers.probability.tolist(),
        answers.runner_up_index.tolist(),
        answers.runner_up_probability.tolist(),
        answers.unknown.tolist(),
        answers.unknown_score.tolist(),
        answers.packets_used.tolist(),
        answers.top_index.tolist(),
        answers.top_probability.tolist(),
        records["end_reason"].tolist(),
        records["quality"].tolist(),
        _live_parts(answers),
        _hellos(batch),
        strict=True,
    )
    for (
        best,
        probability,
        second,
        second_probability,
        unknown,
        score,
        used,
        top,
        top_probability,
        end,
        quality,
        (ready_by, latency_us, was),
        (sni, alpn),
    ) in columns:
        yield NetclsPart(
            label=_UNKNOWN_LABEL if unknown else labels[best],
            probability=round(probability, _PROBABILITY_DIGITS),
            nearest=labels[best] if unknown else UNSET,
            runner_up=_labelled(labels[second], second_probability) if second >= 0 else UNSET,
            unknown=unknown,
            unknown_score=round(score, _PROBABILITY_DIGITS),
            top=[_labelled(labels[i], p) for i, p in zip(top, top_probability, strict=True)] or UNSET,
            phase=batch.phase,
            ready_by=ready_by,
            final=batch.final,
            changed=UNSET if was is UNSET else True,
            was=was,
            packets_used=used,
            latency_us=latency_us,
            sni=sni,
            alpn=alpn,
            model=model.name,
            checkpoint=model.checkpoint,
            representation=model.representation,
            end_reason=_end_reason_text(end),
            quality=_quality_names(quality),
        )


_LivePart = tuple[str | UnsetType, int | UnsetType, str | UnsetType]


def _live_parts(answers: Answers) -> Iterator[_LivePart]:
    """How the flow became ready, how long the answer took, and the label that is taken back."""
    if answers.ready_by is None or answers.latency_us is None or answers.was_index is None:
        yield from ((UNSET, UNSET, UNSET) for _ in range(len(answers.label_index)))
        return
    shown = (*answers.model.labels, _UNKNOWN_LABEL)
    for ready_by, latency_us, was in zip(
        answers.ready_by.tolist(), answers.latency_us.tolist(), answers.was_index.tolist(), strict=True
    ):
        yield _READY_BY[ready_by], latency_us, shown[was] if was >= 0 else UNSET


def _in_the_task_s_form(parts: Iterator[NetclsPart], answers: Answers) -> Iterator[NetclsPart]:
    """A number, or all the labels that hold, in place of the one label."""
    if answers.values is None:
        yield from parts
        return
    task, labels = answers.model.task, answers.model.labels
    one_label = ("label", "probability", "nearest", "runner_up", "unknown", "unknown_score", "top")
    without: dict[str, Any] = dict.fromkeys(one_label, UNSET)
    for part, values in zip(parts, answers.values.tolist(), strict=True):
        if task.kind == "regression":
            yield msgspec.structs.replace(part, number=_number(task, values), **without)
        else:
            yield msgspec.structs.replace(part, labels=_holding(labels, values), **without)


def _number(task: Task, quantiles: list[float]) -> NumberPart:
    low, estimate, high = (float(f"{value:.4g}") for value in quantiles)
    return NumberPart(name=task.target, unit=task.unit, estimate=estimate, low=low, high=high)


def _holding(labels: tuple[str, ...], chances: list[float]) -> list[LabelProbability]:
    """The labels that are likelier than not, likeliest first; may be empty."""
    order = sorted(range(len(labels)), key=lambda index: -chances[index])
    return [_labelled(labels[index], chances[index]) for index in order if chances[index] >= LEAST_CHANCE]


def _labelled(label: str, probability: float) -> LabelProbability:
    return LabelProbability(label, round(probability, _PROBABILITY_DIGITS))


def _end_reason_text(end_reason: int) -> str | UnsetType:
    return UNSET if end_reason == EndReason.OPEN else EndReason(end_reason).name.lower()


def _quality_names(bits: int) -> list[str] | UnsetType:
    return [name for bit, name in _QUALITY_NAMES if bits & bit] if bits else UNSET


@lru_cache(maxsize=65536)
def address_text(address: bytes, ip_version: int) -> str:
    """An address as events say it, of 16 bytes in network order (IPv4 in the last four)."""
    if ip_version == 4:
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return socket.inet_ntop(socket.AF_INET6, address)


def _valid_text(name: str) -> str:
    # A file name that is not UTF-8 reaches Python with lone surrogates, which no encoder takes.
    return name.encode("utf-8", "backslashreplace").decode()
