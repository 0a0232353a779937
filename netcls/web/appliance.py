"""What the web part needs of the appliance: no more than this, so that tests give it a small one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from netcls.counters import Counters


class ApplianceLike(Protocol):
    """The running daemon, as HTTP sees it. Every call may come from another thread."""

    @property
    def counters(self) -> Counters:
        """The books so far."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The model that answers now; None: flow records only."""

    def status(self) -> dict[str, Any]:
        """JSON values: state, uptime, queues, sinks, what was lost."""

    def reload(self) -> str:
        """Read the configuration and the model again; what changed, in a line.

        Raises:
            NetclsError: if that cannot be; everything goes on as before.
        """
