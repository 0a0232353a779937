"""What the API asks of the store."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, Final

from netcls.event import address_text
from netcls.store.filter import FlowFilter
from netcls.store.kept import KeptFlow
from netcls.store.store import COARSE_STEP_S, FINE_STEP_S, Store

MAX_PAGE: Final = 1000
_TALKER_FLOWS: Final = 50_000  # the newest of the window; the sum over more would take too long
_MOST_STEPS: Final = 400
_FINE_WINDOW_S: Final = 3600


@dataclass(frozen=True, slots=True)
class FlowPage:
    """Some flows, newest told first.

    Attributes:
        lines: JSON objects, encoded.
        next_cursor: where the next page begins; None: there is none.
    """

    lines: list[bytes]
    next_cursor: int | None


def flow_page(store: Store, asked: FlowFilter, limit: int, cursor: int | None = None) -> FlowPage:
    """The flows that are asked for.

    Args:
        store: open.
        asked: which.
        limit: 1 to `MAX_PAGE`.
        cursor: ``next_cursor`` of the page before; None: from the newest on.

    Raises:
        StoreError: if it takes too long, or the store cannot be read.
    """
    where, values = asked.where()
    if cursor is not None:
        where, values = f"seq < ? AND {where}", [cursor, *values]
    with store.reading() as database:
        rows = database.execute(
            f"SELECT seq, line FROM flows WHERE {where} ORDER BY seq DESC LIMIT ?", [*values, limit + 1]
        ).fetchall()
    lines = [line for _, line in rows[:limit]]
    return FlowPage(lines, rows[limit - 1][0] if len(rows) > limit else None)


def one_flow(store: Store, flow_id: int) -> dict[str, Any] | None:
    """Everything of one flow; None where it is not in the store.

    Returns:
        ``event`` (the newest), ``earlier`` (events before it), ``packets`` (:meth:`KeptFlow.shape`, or None), ``label``
        (the operator's, or None) and ``can_teach`` (whether its packets are kept, so that a model can learn from it).
    """
    with store.reading() as database:
        row = database.execute(
            "SELECT line, earlier, kept FROM flows WHERE flow_id = ?", (flow_id,)
        ).fetchone()
        given = database.execute(
            "SELECT label, note, told_s, line, kept FROM labels WHERE flow_id = ?", (flow_id,)
        ).fetchone()
    if row is None and given is None:
        return None
    line, earlier, packed = row if row is not None else (given[3], b"[]", given[4])
    kept = KeptFlow.unpack(packed) if packed is not None else None
    if kept is None and store.kept is not None:
        kept = store.kept.of(flow_id)
    return {
        "event": json.loads(line),
        "earlier": json.loads(earlier),
        "packets": kept.shape() if kept else None,
        "label": {"label": given[0], "note": given[1], "time": given[2]} if given else None,
        "can_teach": kept is not None,
    }


def labels(store: Store, limit: int = MAX_PAGE) -> list[dict[str, Any]]:
    """The operator's labels, newest first."""
    with store.reading() as database:
        rows = database.execute(
            "SELECT flow_id, label, note, told_s, line, kept IS NOT NULL FROM labels ORDER BY told_s DESC, flow_id "
            "LIMIT ?",
            (limit,),
        ).fetchall()
    return [
        {
            "flow_id": i,
            "label": label,
            "note": note,
            "time": at_s,
            "event": json.loads(line),
            "can_teach": bool(kept),
        }
        for i, label, note, at_s, line, kept in rows
    ]


def summary(store: Store, window_s: int, n_top: int = 10, now_s: float | None = None) -> dict[str, Any]:
    """What went on lately: flows and bytes per label over time, and who moved most bytes.

    Args:
        store: open.
        window_s: how far back, seconds.
        n_top: talkers to name.
        now_s: seconds since the epoch; None: now.

    Returns:
        ``step_s``; ``times`` (begin of each step, seconds since the epoch); ``labels`` with ``flows`` and ``bytes`` at
        each step and in all, most flows first; ``talkers`` (clients and servers by bytes, over at most the
        newest 50,000 flows), ``unknown`` and ``low_confidence`` flows of the window.
    """
    now_s = time.time() if now_s is None else now_s
    step_s = FINE_STEP_S if window_s <= _FINE_WINDOW_S else COARSE_STEP_S
    while window_s / step_s > _MOST_STEPS:
        step_s *= 2
    stored_step_s = FINE_STEP_S if step_s < COARSE_STEP_S else COARSE_STEP_S
    end_s = int(now_s // step_s * step_s)
    begin_s = end_s - (window_s // step_s) * step_s
    times = list(range(begin_s, end_s + step_s, step_s))
    with store.reading() as database:
        rates = database.execute(
            "SELECT begin_s, label, flows, packets, bytes FROM rates WHERE step_s = ? AND begin_s >= ?",
            (stored_step_s, begin_s),
        ).fetchall()
        newest = database.execute("SELECT max(seq) FROM flows").fetchone()[0] or 0
        of_window = (newest - _TALKER_FLOWS, begin_s)
        talkers = {
            side: [
                {"ip": _ip_text(address), "flows": flows, "bytes": size}
                for address, flows, size in database.execute(
                    f"SELECT {column}, count(*), sum(bytes) AS size FROM flows NOT INDEXED WHERE seq > ? AND "
                    f"told_s >= ? GROUP BY {column} ORDER BY size DESC, {column} LIMIT ?",
                    (*of_window, n_top),
                )
            ]
            for side, column in (("clients", "src"), ("servers", "dest"))
        }
        looked_at, unknown, low = database.execute(
            "SELECT count(*), ifnull(sum(unknown), 0), ifnull(sum(probability < 0.5), 0) FROM flows "
            "WHERE seq > ? AND told_s >= ?",
            of_window,
        ).fetchone()
    by_label: dict[str, dict[str, Any]] = {}
    for at_s, label, flows, packets, size in rates:
        place = (at_s - begin_s) // step_s
        if place >= len(times):
            continue
        zeros = [0] * len(times)
        entry = by_label.setdefault(
            label,
            {
                "label": label,
                "flows": zeros,
                "bytes": zeros.copy(),
                "all_flows": 0,
                "all_packets": 0,
                "all_bytes": 0,
            },
        )
        entry["flows"][place] += flows
        entry["bytes"][place] += size
        entry["all_flows"] += flows
        entry["all_packets"] += packets
        entry["all_bytes"] += size
    return {
        "now": now_s,
        "window_s": window_s,
        "step_s": step_s,
        "times": times,
        "labels": sorted(by_label.values(), key=lambda entry: (-entry["all_flows"], entry["label"])),
        "talkers": talkers,
        "flows_looked_at": looked_at,
        "unknown": unknown,
        "low_confidence": low,
    }


def _ip_text(address: bytes) -> str:
    return address_text(address, 4 if address.startswith(b"\0" * 10 + b"\xff\xff") else 6)
