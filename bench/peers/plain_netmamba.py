"""NetMamba in plain PyTorch: how the published model runs on a CPU, where its CUDA kernels do not.

The selective scan goes step by step, as in mamba_ssm's own reference function: exp(dt A) for all steps at once, then a
Python loop over the 401 tokens. Parameter names are the published ones, so netcls and this network take the same
weights and must give the same logits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``u``, ``dt`` (flows, channels, tokens); ``a`` (channels, states); ``b``, ``c`` (flows, states, tokens)."""
    decay = torch.exp(torch.einsum("fet,en->fetn", dt, a))
    driven = torch.einsum("fet,fnt,fet->fetn", dt, b, u)
    state = u.new_zeros(u.shape[0], u.shape[1], a.shape[1])
    read = []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + driven[:, :, t]
        read.append(torch.einsum("fen,fn->fe", state, c[:, :, t]))
    return torch.stack(read, dim=2)


class Mixer(nn.Module):
    """A Mamba-1 mixer."""

    def __init__(self, width: int, n_states: int = 16, taps: int = 4) -> None:
        super().__init__()
        channels, self.rank, self.n_states = 2 * width, -(-width // 16), n_states
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, taps, groups=channels, padding=taps - 1)
        self.x_proj = nn.Linear(channels, self.rank + 2 * n_states, bias=False)
        self.dt_proj = nn.Linear(self.rank, channels)
        self.A_log = nn.Parameter(torch.empty(channels, n_states))
        self.D = nn.Parameter(torch.empty(channels))
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(flows, tokens, width), the same out."""
        u, gate = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)
        u = functional.silu(self.conv1d(u)[..., : x.shape[1]])
        dt, b, c = self.x_proj(u.transpose(1, 2)).split([self.rank, self.n_states, self.n_states], dim=-1)
        dt = functional.softplus(self.dt_proj(dt)).transpose(1, 2)
        y = scan(u, dt, -torch.exp(self.A_log), b.transpose(1, 2), c.transpose(1, 2)) + u * self.D[:, None]
        return self.out_proj((y * functional.silu(gate)).transpose(1, 2))


class Block(nn.Module):
    """Norm and mixer, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.mixer = Mixer(width)

    def forward(self, x: Tensor) -> Tensor:
        """(flows, tokens, width), the same out."""
        return x + self.mixer(self.norm(x))


class PlainNetMamba(nn.Module):
    """The classifier of arXiv 2405.11449 at the paper's sizes."""

    def __init__(self, n_labels: int, width: int = 256, n_layers: int = 4, n_strides: int = 400) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv1d(1, width, 4, 4)})
        self.pos_embed = nn.Parameter(torch.empty(1, n_strides + 1, width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(n_layers))
        self.norm_f = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, n_labels)

    def forward(self, flow_bytes: Tensor) -> Tensor:
        """uint8 (flows, 1600) to logits (flows, labels)."""
        scaled = (flow_bytes.float() / 255 - 0.5) / 0.5
        x = self.patch_embed["proj"](scaled[:, None]).transpose(1, 2)
        x = torch.cat([x, self.cls_token.expand(len(x), -1, -1)], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm_f(x[:, -1]))


def load(state: dict[str, Tensor]) -> PlainNetMamba:
    """The network with these weights, ready to answer."""
    model = PlainNetMamba(len(state["head.bias"]))
    model.load_state_dict(state)
    return model.eval()
