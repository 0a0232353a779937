"""Which flows are asked for: one description, used on the store (SQL) and on live events (Python).

Several values of one field mean OR, different fields AND, and ``not.`` before a field none of its values.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from capture.errors import UsageError, did_you_mean
from netcls.event import Event

MAX_VALUES: Final = 64  # of all fields together
MAX_VALUE_CHARS: Final = 256
_LISTS: Final = ("label", "ip", "src_ip", "dest_ip", "port", "proto", "text")
_NUMBERS: Final = ("min_probability", "max_probability", "since", "until")
_FLAGS: Final = ("unknown", "final")
FIELDS: Final = (*_LISTS, *(f"not.{name}" for name in _LISTS), *_NUMBERS, *_FLAGS)

Addresses = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """What is asked of a flow; empty: nothing.

    Attributes:
        wanted: field -> values, one of which must hold. ``ip`` is either address, an address or a network.
        unwanted: field -> values, none of which may hold.
        min_probability, max_probability: of the answer; flows without one hold neither.
        since, until: when it was told last, seconds since the epoch; until is outside.
        unknown, final: as in the event.
    """

    wanted: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    unwanted: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    min_probability: float | None = None
    max_probability: float | None = None
    since: float | None = None
    until: float | None = None
    unknown: bool | None = None
    final: bool | None = None

    @classmethod
    def of_query(cls, pairs: Iterable[tuple[str, str]]) -> FlowFilter:
        """From the parameters of a URL.

        Raises:
            UsageError: for a name or a value that cannot be.
        """
        wanted: dict[str, list[Any]] = {}
        unwanted: dict[str, list[Any]] = {}
        single: dict[str, Any] = {}
        for n_values, (name, value) in enumerate(pairs, 1):
            if n_values > MAX_VALUES:
                raise UsageError(f"got more than {MAX_VALUES} filters; expected fewer")
            if len(value) > MAX_VALUE_CHARS:
                raise UsageError(f"{name} has {len(value)} characters; expected at most {MAX_VALUE_CHARS}")
            kind = name.removeprefix("not.")
            if kind in _LISTS:
                (unwanted if name != kind else wanted).setdefault(kind, []).append(_listed(kind, value))
            elif name in _NUMBERS or name in _FLAGS:
                if name in single:
                    raise UsageError(f"{name} is given twice; expected once")
                single[name] = _number(name, value) if name in _NUMBERS else _flag(name, value)
            else:
                raise UsageError(f"there is no filter {name[:64]!r}{did_you_mean(name[:64], FIELDS)}")
        return cls(
            {name: tuple(values) for name, values in wanted.items()},
            {name: tuple(values) for name, values in unwanted.items()},
            **single,
        )

    def where(self) -> tuple[str, list[Any]]:
        """A condition of SQL over the table ``flows``, and its values."""
        parts: list[str] = []
        values: list[Any] = []
        for wanted, name, asked in self._terms():
            one_of, of_it = _condition(name, asked)
            parts.append(f"({one_of})" if wanted else f"NOT ({one_of})")
            values += of_it
        for column, sign, limit in (
            ("probability", ">=", self.min_probability),
            ("probability", "<=", self.max_probability),
            ("told_s", ">=", self.since),
            ("told_s", "<", self.until),
            ("unknown", "=", self.unknown),
            ("final", "=", self.final),
        ):
            if limit is not None:
                parts.append(f"{column} {sign} ?")
                values.append(int(limit) if isinstance(limit, bool) else limit)
        return " AND ".join(parts) or "1", values

    def holds(self, event: Event, told_s: float) -> bool:
        """Whether a live event is asked for; the twin of :meth:`where`."""
        for wanted, name, asked in self._terms():
            if any(_is(event, name, value) for value in asked) != wanted:
                return False
        ours = event.netcls
        probability = ours.probability if isinstance(ours.probability, float | int) else None
        unknown = ours.unknown if isinstance(ours.unknown, bool) else None
        return (
            (
                self.min_probability is None
                or (probability is not None and probability >= self.min_probability)
            )
            and (
                self.max_probability is None
                or (probability is not None and probability <= self.max_probability)
            )
            and (self.since is None or told_s >= self.since)
            and (self.until is None or told_s < self.until)
            and (self.unknown is None or unknown is self.unknown)
            and (self.final is None or is_final(event) is self.final)
        )

    def _terms(self) -> Iterable[tuple[bool, str, tuple[Any, ...]]]:
        for wanted, fields in ((True, self.wanted), (False, self.unwanted)):
            for name, asked in fields.items():
                yield wanted, name, asked


def label_of(event: Event) -> str:
    """What an event says its flow is, in one text; empty where no model answered."""
    ours = event.netcls
    if isinstance(ours.label, str):
        return ours.label
    if isinstance(ours.labels, list):
        return ";".join(each.label for each in ours.labels)
    return "" if not hasattr(ours.number, "name") else str(ours.number.name)


def text_of(event: Event) -> str:
    """What a search looks through, in lower case."""
    ours = event.netcls
    said = (event.src_ip, event.dest_ip, event.proto, event.community_id, label_of(event), str(event.flow_id))
    more = (ours.nearest, ours.sni, event.in_iface, event.pcap_filename)
    return " ".join([*said, *(value for value in more if isinstance(value, str))]).lower()


def is_final(event: Event) -> bool:
    """Whether no further event of its flow follows; a plain flow record never has one."""
    return event.netcls.final is not False


def packed(address: str) -> bytes:
    """16 bytes, IPv4 as in ``::ffff:0:0/96``, so that one order holds all addresses."""
    value = ipaddress.ip_address(address)
    return value.packed if value.version == 6 else b"\0" * 10 + b"\xff\xff" + value.packed


def _condition(name: str, asked: tuple[Any, ...]) -> tuple[str, list[Any]]:
    if name in ("label", "proto"):
        return f"{name} IN ({', '.join('?' * len(asked))})", list(asked)
    if name == "text":
        return " OR ".join(["instr(text, ?)"] * len(asked)), list(asked)
    if name == "port":
        marks = ", ".join("?" * len(asked))
        # IFNULL: what is NULL is neither in a list nor outside of it.
        return f"IFNULL(src_port, -1) IN ({marks}) OR IFNULL(dest_port, -1) IN ({marks})", [*asked, *asked]
    columns = {"ip": ("src", "dest"), "src_ip": ("src",), "dest_ip": ("dest",)}[name]
    parts, values = [], []
    for low, high in asked:
        for column in columns:
            parts.append(f"{column} BETWEEN ? AND ?")
            values += [low, high]
    return " OR ".join(parts), values


def _is(event: Event, name: str, value: Any) -> bool:
    if name == "label":
        return bool(label_of(event) == value)
    if name == "proto":
        return bool(event.proto == value)
    if name == "text":
        return value in text_of(event)
    if name == "port":
        return value in (event.src_port, event.dest_port)
    sides = {"ip": (event.src_ip, event.dest_ip), "src_ip": (event.src_ip,), "dest_ip": (event.dest_ip,)}[
        name
    ]
    low, high = value
    return any(low <= packed(side) <= high for side in sides)


def _listed(name: str, value: str) -> Any:
    if name == "text":
        return value.lower()
    if name == "port":
        if not (value.isascii() and value.isdigit() and int(value) <= 65535):
            raise UsageError(f"port is {value!r}; expected 0 to 65535")
        return int(value)
    if name in ("ip", "src_ip", "dest_ip"):
        try:
            network = ipaddress.ip_network(value.strip(), strict=False)
        except ValueError:
            raise UsageError(
                f"{name} is {value!r}; expected an address, or a network such as 10.0.0.0/8"
            ) from None
        return packed(str(network[0])), packed(str(network[-1]))
    return value


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    most = 1.0 if name.endswith("probability") else 1e11
    if not 0 <= number <= most:
        raise UsageError(f"{name} is {value!r}; expected a number from 0 to {most:g}")
    return number


def _flag(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise UsageError(f"{name} is {value!r}; expected true or false")
    return value == "true"
