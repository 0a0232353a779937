"""The tasks of docs/results.md: which captures, labels and split, and what is left out, from a folder of data.

The folder holds ``lab/flows.csv`` (a table of flows with ``client_impl``, ``server_impl``, ``profile``) and ``public/``
(``MANIFEST.csv`` with ``path,label,notes`` and, for some sources, ``flow_labels.csv``). Captures are not copied: a
table of labels is written for each task, and the tables hold addresses, so they stay outside the repository.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Rows = list[dict[str, str]]

FAR_UNKNOWNS = (
    "port_scan",
    "brute_force",
    "denial_of_service",
    "c2_beacon",
    "exfiltration",
    "crypto_mining",
    "covert_tunnel",
    "proxy_tunnel",
    "vpn",
)
NO_REAL_LABEL = ("by_port", "by_ip", "unknown")  # of nDPI: a port or an address again, not what the flow is
LAB = "lab/flows.csv"
PUBLIC = "public/MANIFEST.csv"
LABORATORIES = ("zeek", "suricata_verify", "wireshark", "ics", "ipfixprobe")


@dataclass(frozen=True, slots=True)
class Task:
    """One table of docs/results.md.

    Attributes:
        name: ``T2.operator``; the part before the dot is the task.
        title: of its section.
        needs: file below the data folder without which it is skipped.
        table: writes the table of labels and gives its path; from the data folder and the folder for tables.
        options: fields of ``EvaluateOptions``.
        says: what the split leaves open, for the page.
        is_main: it gets every row; the others are there to be compared with it.
    """

    name: str
    title: str
    needs: str
    table: Callable[[Path, Path], Path]
    options: dict[str, Any] = field(default_factory=dict)
    says: str = ""
    is_main: bool = False


def tasks() -> list[Task]:
    """All of them, the main split of each task first."""
    lab: dict[str, Any] = {"split": "group", "group": ("client_impl", "server_impl")}
    few: dict[str, Any] = {"max_flows_per_capture": 5, "checks": False}
    by_source: dict[str, Any] = {"split": "group", "group": ("source",)}
    random_flows: dict[str, Any] = {"split": "flow", "checks": False}
    return [
        Task(
            "T1.implementations",
            "T1 Activity, lab: unseen programs",
            LAB,
            _lab,
            lab,
            "45 activities; no pair of client and server program that is tested was trained on.",
            is_main=True,
        ),
        Task(
            "T2.capture",
            "T2 Device type: unseen captures",
            PUBLIC,
            _devices,
            {"split": "capture"},
            "One set-up of one device a capture; the same units are on both sides.",
            is_main=True,
        ),
        Task(
            "T3.android",
            "T3 Mobile app: unseen Android version",
            PUBLIC,
            _apps,
            {
                "split": "group",
                "group": ("android",),
                "leave_out": (("android9",),),
                "unknown_labels": SINGLE_APPS,
            },
            "Every flow of a run carries the app's name, advertising and system flows too: a flow has a ceiling, the "
            "vote of a capture is fairer. Apps with a single capture are the unknowns.",
            is_main=True,
        ),
        Task(
            "T4.group",
            "T4 Service category of encrypted flows: unseen capture groups",
            PUBLIC,
            _services,
            {"split": "group", "group": ("group",)},
            "Labels come from names that the models do not see. Too small to rank models.",
            is_main=True,
        ),
        Task(
            "T5.stack",
            "T5 Client stack, PQClass: later dates",
            PUBLIC,
            _stacks,
            {"split": "time"},
            "System, browser and post-quantum key share; system goes with host, network and date.",
            is_main=True,
        ),
        Task(
            "T6.suricata",
            "T6 Protocol, ports hidden: unseen laboratory (suricata_verify)",
            PUBLIC,
            _protocols,
            by_source | {"leave_out": (("suricata_verify",),)},
            "Protocols that at least two sources have; many captures are hand-made or hostile.",
            is_main=True,
        ),
        Task(
            "T7.lab",
            "T7 Unknowns: attacks, mining and tunnels never trained on",
            LAB,
            _lab,
            lab | few | {"unknown_labels": FAR_UNKNOWNS},
            "The unknown classes are in no labelled training; their captures may be in the backbone's corpus.",
            is_main=True,
        ),
        Task(
            "T5.system",
            "T5 Operating system, PQClass: the built-in shortcut",
            PUBLIC,
            _stacks,
            {"split": "time", "label": "system"},
            "Windows files begin with the server's packet or use IPv6: does the check find it?",
        ),
        Task(
            "T5.webrtc",
            "T5 Client stack, WebRTC: new versions",
            PUBLIC,
            _browsers,
            {"split": "time"},
            "Handshakes of one to five packets, old versions train, new ones are tested.",
        ),
        Task(
            "T2.operator",
            "T2 Device type: operator A, trained on B and C",
            PUBLIC,
            _devices,
            {"split": "group", "group": ("operator",), "leave_out": (("A",),), "checks": False},
        ),
        Task(
            "T6.zeek",
            "T6 Protocol, ports hidden: unseen laboratory (zeek)",
            PUBLIC,
            _protocols,
            by_source | {"leave_out": (("zeek",),), "checks": False},
        ),
        Task("T4.flow", "T4 Service category: random flows (optimistic)", PUBLIC, _services, random_flows),
        Task("T2.flow", "T2 Device type: random flows (optimistic)", PUBLIC, _devices, random_flows),
        Task(
            "T3.flow",
            "T3 Mobile app: random flows (optimistic)",
            PUBLIC,
            _apps,
            random_flows | {"unknown_labels": SINGLE_APPS},
        ),
        Task("T1.flow", "T1 Activity, lab: random flows (optimistic)", LAB, _lab, few | {"split": "flow"}),
        Task(
            "T1.profiles",
            "T1 Activity, lab: unseen network profiles",
            LAB,
            _lab,
            few | {"split": "group", "group": ("profile",)},
        ),
        Task(
            "T1.both",
            "T1 Activity, lab: unseen programs on unseen profiles",
            LAB,
            _lab,
            few
            | {"split": "group", "group": ("client_impl", "server_impl", "profile"), "group_rule": "each"},
        ),
    ]


SINGLE_APPS = ("accuweather", "discord", "kbklic", "messenger", "navlak", "torbrowser", "viber")


def _lab(data: Path, _tables: Path) -> Path:
    return data / "lab" / "flows.csv"


def _devices(data: Path, tables: Path) -> Path:
    rows = [
        {"path": row["path"], "label": row["label"], "operator": row["operator"], "unit": row["unit"]}
        for row in _captures(data, ("iot_sentinel",))
    ]
    return _write(tables / "devices.csv", data, rows)


def _apps(data: Path, tables: Path) -> Path:
    rows = [
        {"path": row["path"], "label": row["label"], "android": row.get("emulator", "handset")}
        for row in _captures(data, ("mobile_apps",))
    ]
    return _write(tables / "apps.csv", data, rows)


def _stacks(data: Path, tables: Path) -> Path:
    rows = [
        {"path": row["path"], "label": row["label"], "system": row["os"], "time": _seconds(row["recorded"])}
        for row in _captures(data, ("pqclass",))
    ]
    return _write(tables / "stacks.csv", data, rows)


def _browsers(data: Path, tables: Path) -> Path:
    rows = [
        {"path": row["path"], "label": row["label"], "time": _seconds(row["recorded"])}
        for row in _captures(data, ("webrtc_dtls",))
    ]
    return _write(tables / "browsers.csv", data, rows)


def _protocols(data: Path, tables: Path) -> Path:
    captures = _captures(data, LABORATORIES)
    sources: dict[str, set[str]] = defaultdict(set)
    for row in captures:
        sources[row["label"]].add(row["source"])
    rows = [
        {"path": row["path"], "label": row["label"], "source": row["source"]}
        for row in captures
        if len(sources[row["label"]]) >= 2
    ]
    return _write(tables / "protocols.csv", data, rows)


def _services(data: Path, tables: Path) -> Path:
    """Encrypted flows of nDPI and nfstream whose category was read from a name, of categories with enough groups."""
    group = {row["path"]: row["group"] for row in _captures(data, ("ndpi", "nfstream"))}
    flows = []
    for source in ("ndpi", "nfstream"):
        for row in _flow_labels(data / "public" / source):
            path = f"{source}/{row['path']}"
            is_encrypted = row["master"] in ("TLS", "QUIC", "DTLS")
            if (
                path in group
                and is_encrypted
                and row["guessed"] != "1"
                and row["confidence"] not in NO_REAL_LABEL
            ):
                flows.append((path, row))
    groups: dict[str, set[str]] = defaultdict(set)
    for path, row in flows:
        groups[row["category"]].add(group[path])
    rows = [
        {
            "path": path,
            "src_ip": row["src_ip"],
            "src_port": row["src_port"],
            "dest_ip": row["dst_ip"],
            "dest_port": row["dst_port"],
            "proto": row["protocol"],
            "label": row["category"],
            "first_ts": str(int(row["first_seen_ms"]) / 1000),
            "last_ts": str(int(row["last_seen_ms"]) / 1000),
            "group": group[path],
        }
        for path, row in flows
        if len(groups[row["category"]]) >= 5
    ]
    return _write(tables / "services.csv", data, rows)


def _captures(data: Path, sources: Iterable[str]) -> Rows:
    """Rows of the manifest, with the ``key=value`` pairs of their notes as columns and ``source``."""
    found = []
    with (data / "public" / "MANIFEST.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            source = row["path"].partition("/")[0]
            if source in sources:
                found.append({**row, **_notes(row["notes"]), "source": source})
    return found


def _notes(notes: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in notes.split(";"):
        key, equals, value = part.strip().partition("=")
        if equals:
            pairs[key.strip()] = value.strip()
        elif part.strip().startswith("recorded "):
            pairs["recorded"] = part.strip().removeprefix("recorded ")
        elif part.strip().startswith("emulator "):
            pairs["emulator"] = part.strip().removeprefix("emulator ")
    return pairs


def _flow_labels(folder: Path) -> Rows:
    plain, packed = folder / "flow_labels.csv", folder / "flow_labels.csv.gz"
    if plain.is_file():
        with plain.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    with gzip.open(packed, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _seconds(day: str) -> str:
    """Seconds since the epoch of a date, for a split by time."""
    return str(int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()))


def _write(path: Path, data: Path, rows: Rows) -> Path:
    """A table whose paths are absolute, since it does not lie beside its captures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "path": str((data / "public" / row["path"]).absolute())} for row in rows)
    return path
