"""What every representation is: flows in, model input out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from capture.flow_batch import FlowBatch, KeepSpec
from capture.representations.places import TokenPlaces


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Model input of F flows, one row a flow in every array.

    Attributes:
        arrays: name -> array (F, ...); names, dtypes and shapes are the representation's.
        packets_used: uint16 (F,), packets of the flow that the input holds.
    """

    arrays: dict[str, NDArray[Any]]
    packets_used: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.packets_used)

    def take(self, rows: NDArray[np.intp] | slice) -> TokenBatch:
        """The given rows, in the given order."""
        return TokenBatch({name: a[rows] for name, a in self.arrays.items()}, self.packets_used[rows])


class Representation(Protocol):
    """Turns the first packets of flows into the input of one model family."""

    @property
    def name(self) -> str:
        """Name in the registry, for example ``netmamba``."""

    @property
    def version(self) -> int:
        """Raised when the same settings give other tokens than before."""

    @property
    def keep(self) -> KeepSpec:
        """What the flow table must keep of each flow."""

    def settings(self) -> dict[str, Any]:
        """Everything that decides what the tokens are; JSON values. Stored in checkpoints and compared on loading."""

    def tokenize(self, flows: FlowBatch) -> TokenBatch:
        """Tokens of *ready* flows. A flow's row depends on that flow alone."""

    def token_places(self, flows: FlowBatch) -> dict[str, TokenPlaces]:
        """Which packet and field each element of :meth:`tokenize`'s arrays comes from; for explanations.

        An array that is left out (a mask, for example) is never changed by an explanation.
        """
