"""What ``netcls serve`` was told, in one value. Imports no numpy: it is checked before privileges are dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

# What a reload takes over; everything else needs a restart, and the reload says so.
RELOADABLE: Final = frozenset(
    {
        "model",
        "small_model",
        "output",
        "top",
        "stats_interval_s",
        "drain_s",
        "stall_timeout_s",
        "max_latency_ms",
    }
)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Options of the command, by their names there.

    Attributes:
        iface: names of interfaces; empty where a spool is read.
        spool: folder that captures are put into; None where interfaces are captured.
        spool_settle_s: so long a file has not grown before it is read.
        model, small_model: names or folders of checkpoints; the small one answers under overload, None: there is none.
        emit, top, min_packets, ready_timeout_s, max_latency_ms, queue_flows: see :class:`netcls.live.LiveOptions`.
        bpf, promisc, backend, ring_mib: see :class:`netcls.live_open.Listening`.
        idle_timeout_s, active_timeout_s, tcp_linger_s, memory_limit_mib: of the flow table.
        decap, check_checksums, sni, threads, device, precision: see :class:`netcls.pipeline.RunOptions`.
        output: URIs of sinks.
        queue_events: of each sink, unless its URI says otherwise.
        when_full: the same; None: drop_oldest for interfaces, block for a spool.
        listen: ``HOST:PORT`` of page and API, or ``none``.
        token: clients of the API must show it; None: none, on loopback only.
        token_file: it stands in there.
        host_name: by which clients may call the server beside its addresses.
        store: file of the history; None: in memory.
        store_max_mib, store_max_age_s: of the history.
        control: path of the control socket; ``auto``, or ``none``.
        user: to become once the interfaces are open; None: who called sudo, or nobody else.
        stats_interval_s: between two ``stats`` events.
        drain_s: so long a stop may take.
        stall_timeout_s: a stage that does not move for so long ends the process.
        quiet, verbose: of the log.
    """

    iface: tuple[str, ...] = ()
    spool: str | None = None
    spool_settle_s: float = 2.0
    model: str = "default"
    small_model: str | None = None
    emit: str = "both"
    top: int = 0
    min_packets: int = 0
    ready_timeout_s: float = 1.0
    max_latency_ms: float = 20.0
    queue_flows: int = 16_384
    bpf: str = ""
    promisc: bool = False
    backend: str = "ring"
    ring_mib: int = 32
    idle_timeout_s: float = 120.0
    active_timeout_s: float = 1800.0
    tcp_linger_s: float = 5.0
    memory_limit_mib: int = 256
    decap: str = "inner"
    check_checksums: bool = False
    sni: bool = True
    threads: int | None = None
    device: str = "auto"
    precision: str = "auto"
    output: tuple[str, ...] = ()
    queue_events: int = 10_000
    when_full: str | None = None
    listen: str = "127.0.0.1:8710"
    token: str | None = None
    token_file: str | None = None
    host_name: tuple[str, ...] = ()
    store: str | None = None
    store_max_mib: int = 1024
    store_max_age_s: float = 30 * 86_400.0
    control: str = "auto"
    user: str | None = None
    stats_interval_s: float = 10.0
    drain_s: float = 10.0
    stall_timeout_s: float = 10.0
    quiet: bool = False
    verbose: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> ServeConfig:
        """From the options of the command."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in options.items() if name in names})

    @property
    def is_live(self) -> bool:
        """Whether packets come from interfaces."""
        return self.spool is None

    @property
    def policy(self) -> str:
        """Of sinks whose URI does not say: on a wire nothing waits for a sink, and of files nothing should be lost."""
        return self.when_full or ("drop_oldest" if self.is_live else "block")

    def changed(self, other: ServeConfig) -> list[str]:
        """Names of options that differ."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]
