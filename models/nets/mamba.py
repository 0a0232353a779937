"""The Mamba-1 mixer and block, with parameter names and shapes of mamba_ssm's ``Mamba``.

Source: Mamba (arXiv 2312.00752), section 3.4 and figure 3; for the mixer of two directions, Vision Mamba (arXiv
2401.09417), algorithm 1, whose names its second set of weights has.

Dimensions, with the paper's letters: batch B, tokens L, ``d_model`` D, ``d_inner`` E = expand * D, ``d_state`` N,
``dt_rank`` R (rank of dt's projection), ``d_conv`` K taps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.nets.causal_conv import causal_conv_silu
from models.nets.rms_norm import RMSNorm
from models.nets.scan import selective_scan

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4
"""Range of softplus(dt bias) at the start, log-uniform, and its floor (section 3.6)."""


@dataclass(frozen=True, slots=True)
class MixerState:
    """Everything a mixer remembers of the tokens so far; its size does not grow with them.

    Attributes:
        conv: float (B, K-1, E), the last inputs of the convolution, oldest first.
        scan: float32 (B, E, N), the state of the scan.
    """

    conv: Tensor
    scan: Tensor


class _Direction(NamedTuple):
    """The weights of one direction: everything between the two projections."""

    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: nn.Parameter
    D: nn.Parameter


class MambaMixer(nn.Module):
    """Projection, causal convolution, selective scan, gate, projection.

    With two directions the tokens are also read from the last to the first, by a second convolution and scan; the two
    outputs are added before the last projection. Both projections are shared, all else is separate.

    Args:
        d_model: D.
        d_state: N.
        d_conv: K.
        expand: E / D.
        dt_rank: R; ``auto`` is ceil(D / 16).
        bidirectional: two directions.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.d_inner = expand * d_model
        self.d_state = d_state
        self.d_conv = d_conv
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        forwards = self._new_direction()
        self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D = forwards
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        # Without memory (a checkpoint's shapes are being verified) arithmetic would import torch's compiler: 1 s.
        if not self.A_log.is_meta:
            self._init_state(forwards)
        if bidirectional:
            backwards = self._new_direction()
            self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b = backwards
            if not self.A_b_log.is_meta:
                self._init_state(backwards)

    def _new_direction(self) -> _Direction:
        channels = self.d_inner
        return _Direction(
            nn.Conv1d(channels, channels, self.d_conv, groups=channels, padding=self.d_conv - 1),
            nn.Linear(channels, self.dt_rank + 2 * self.d_state, bias=False),
            nn.Linear(self.dt_rank, channels),
            nn.Parameter(torch.empty(channels, self.d_state)),
            nn.Parameter(torch.ones(channels)),
        )

    def _init_state(self, direction: _Direction) -> None:
        """A = -(1 .. N) in each channel, and dt."""
        with torch.no_grad():
            direction.A_log.copy_(torch.arange(1, self.d_state + 1, dtype=torch.float32).log())
        self._init_dt(direction.dt_proj)

    def _init_dt(self, dt_proj: nn.Linear) -> None:
        """softplus(bias) log-uniform in [DT_MIN, DT_MAX]; the weight keeps the variance of its input."""
        nn.init.uniform_(dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        spread = math.log(DT_MAX) - math.log(DT_MIN)
        dt = torch.exp(torch.rand(self.d_inner) * spread + math.log(DT_MIN)).clamp(min=DT_FLOOR)
        with torch.no_grad():
            # The inverse of softplus.
            dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def _forwards(self) -> _Direction:
        return _Direction(self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)

    def _backwards(self) -> _Direction:
        return _Direction(self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)

    def _selection(self, u: Tensor, direction: _Direction) -> tuple[Tensor, Tensor, Tensor]:
        """What makes the scan selective: dt before bias and softplus (..., E), B and C (..., N)."""
        low_rank, B, C = direction.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return functional.linear(low_rank, direction.dt_proj.weight), B, C

    def _scanned(self, x: Tensor, z: Tensor, direction: _Direction) -> Tensor:
        """Convolution, scan and gate from the first token to the last; float (B, L, E) each."""
        u = causal_conv_silu(x, direction.conv1d.weight, _bias(direction.conv1d))
        dt, B, C = self._selection(u, direction)
        return selective_scan(
            u, dt, -torch.exp(direction.A_log), B, C, direction.D, z, direction.dt_proj.bias
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix along the tokens; token t sees tokens 0 .. t, or all of them with two directions.

        Args:
            tokens: float (B, L, D).

        Returns:
            float (B, L, D).
        """
        x, z = self.in_proj(tokens).split(self.d_inner, dim=-1)
        y = self._scanned(x, z, self._forwards())
        if self.bidirectional:
            y = y + self._scanned(x.flip(1), z.flip(1), self._backwards()).flip(1)
        out: Tensor = self.out_proj(y)
        return out

    @property
    def conv_bias(self) -> Tensor:
        """The bias of the convolution, (E,)."""
        return _bias(self.conv1d)

    def initial_state(self, n_flows: int) -> MixerState:
        """The state before the first token of ``n_flows`` flows: zeros.

        Raises:
            ValueError: with two directions, where nothing can be said before the last token is there.
        """
        if self.bidirectional:
            raise ValueError(
                "a bidirectional mixer cannot go token by token; use forward on the whole sequence"
            )
        weight = self.in_proj.weight
        return MixerState(
            conv=weight.new_zeros(n_flows, self.d_conv - 1, self.d_inner),
            scan=weight.new_zeros(n_flows, self.d_inner, self.d_state),
        )

    def step(self, state: MixerState, token: Tensor) -> tuple[MixerState, Tensor]:
        """One token on: the same numbers as :meth:`forward`, one token at a time.

        Args:
            state: of the tokens before.
            token: float (B, D).

        Returns:
            The state after the token, and float (B, D).
        """
        x, z = self.in_proj(token).split(self.d_inner, dim=-1)
        window = torch.cat([state.conv, x[:, None]], dim=1)
        taps = self.conv1d.weight[:, 0].t()
        u = functional.silu((window * taps).sum(1) + self.conv_bias)
        dt, B, C = self._selection(u, self._forwards())
        dt = functional.softplus(dt + self.dt_proj.bias)
        decay = torch.exp(dt[..., None] * -torch.exp(self.A_log))
        h = decay * state.scan + (dt * u)[..., None] * B[:, None, :]
        y = ((h * C[:, None, :]).sum(-1) + self.D * u) * functional.silu(z)
        return MixerState(window[:, 1:], h), self.out_proj(y)


class MambaBlock(nn.Module):
    """x + drop_path(mixer(norm(x))), the residual in the dtype of x: float32, also under autocast.

    Args:
        d_model: D.
        d_state: N.
        d_conv: K.
        expand: E / D.
        drop_path: probability, per flow, that training skips the mixer (stochastic depth, arXiv 1603.09382).
        bidirectional: the mixer has two directions.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        drop_path: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(d_model)
        self.mixer = MambaMixer(d_model, d_state, d_conv, expand, bidirectional=bidirectional)
        self.drop_path = drop_path

    def forward(self, residual: Tensor) -> Tensor:
        """One layer; float32 (B, L, D) to the same."""
        return residual + self._drop(self.mixer(self.norm(residual)))

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return x
        keep = 1.0 - self.drop_path
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(keep).div_(keep)

    def initial_state(self, n_flows: int) -> MixerState:
        """The state before the first token of ``n_flows`` flows."""
        return self.mixer.initial_state(n_flows)

    def step(self, state: MixerState, token: Tensor) -> tuple[MixerState, Tensor]:
        """One token on, without drop path; ``token`` float32 (B, D). See :meth:`MambaMixer.step`."""
        state, mixed = self.mixer.step(state, self.norm(token))
        return state, token + mixed


def _bias(conv: nn.Conv1d) -> Tensor:
    assert conv.bias is not None  # it is made with one
    return conv.bias


def rescale_residual_projections(blocks: Sequence[MambaBlock]) -> None:
    """Divide each ``out_proj`` by sqrt(number of blocks), so that the sum over depth starts with unit variance."""
    with torch.no_grad():
        for block in blocks:
            block.mixer.out_proj.weight /= math.sqrt(len(blocks))
