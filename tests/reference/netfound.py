"""netFound in float64, one burst and one flow at a time, from the paper and the facts of the published code.

Weights are a state dict with the names of :mod:`models.nets.netfound`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from capture.representations import netfound_layout as layout

State = Mapping[str, Tensor]


def dense(state: State, name: str, x: Tensor) -> Tensor:
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"]
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def turn(x: Tensor, table: Tensor) -> Tensor:
    """Rotate pairs (0, 1), (2, 3), ...: (L, d) by the rows of a table of sines, then cosines."""
    half = x.shape[1] // 2
    out = torch.empty_like(x)
    for place in range(len(x)):
        for pair in range(half):
            sine, cosine = table[place, pair], table[place, half + pair]
            a, b = x[place, 2 * pair], x[place, 2 * pair + 1]
            out[place, 2 * pair] = a * cosine - b * sine
            out[place, 2 * pair + 1] = b * cosine + a * sine
    return out


def layer(state: State, name: str, x: Tensor, table: Tensor, n_heads: int) -> Tensor:
    """One encoder layer over one sequence, (L, h)."""
    q, k, v = (dense(state, f"{name}.{part}", x) for part in ("query", "key", "value"))
    width = x.shape[1] // n_heads
    heads = []
    for head in range(n_heads):
        columns = slice(head * width, (head + 1) * width)
        scores = turn(q[:, columns], table) @ turn(k[:, columns], table).T / width**0.5
        heads.append(scores.softmax(-1) @ v[:, columns])
    x = norm(state, f"{name}.attention_norm", x + dense(state, f"{name}.out", torch.cat(heads, dim=1)), 1e-12)
    inner = dense(state, f"{name}.mlp_in", norm(state, f"{name}.mlp_norm", x, 1e-5))
    half = inner.shape[1] // 2
    return x + dense(state, f"{name}.mlp_out", gelu_tanh(inner[:, :half]) * inner[:, half:])


def token_rows(state: State, ids: Tensor) -> Tensor:
    if "embeddings.word.weight" in state:
        return state["embeddings.word.weight"][ids]
    rows = []
    for token in ids.tolist():
        if 1 <= token <= 65536:
            high, low = divmod(token - 1, 256)
        else:
            high, low = 256 + token - layout.CLS, 256
        rows.append(state["embeddings.word.high.weight"][high] + state["embeddings.word.low.weight"][low])
    return torch.stack(rows)


def read_metadata(metadata: Tensor, log_metadata: bool) -> Tensor:
    direction, n_bytes, packets, iat = metadata
    if not log_metadata:
        return torch.stack([direction, n_bytes / 1000, packets, iat])
    return torch.stack([direction, torch.log1p(n_bytes) / 7, torch.log1p(packets), torch.log1p(iat) / 7])


def embed(state: State, ids: Tensor, metadata: Tensor, protocol: int, log_metadata: bool) -> Tensor:
    """One burst: int (L,) to (L, h)."""
    numbers = dense(state, "embeddings.meta_in", read_metadata(metadata, log_metadata))
    meta = dense(state, "embeddings.meta_out", gelu(numbers))
    of_protocol = state["embeddings.protocol.weight"][protocol]
    joined = torch.stack([torch.cat([token, meta, of_protocol]) for token in token_rows(state, ids)])
    return norm(state, "embeddings.norm", dense(state, "embeddings.compress", joined), 1e-12)


def encode(state: State, config: Any, flow: Mapping[str, Tensor]) -> list[Tensor]:
    """One flow: its bursts after all layers, each (tokens, h)."""
    there = [burst for burst in range(config.n_bursts) if flow["ids"][burst].any()]
    bursts = []
    for burst in there:
        ids = flow["ids"][burst]
        metadata = torch.stack([flow[name][burst].double() for name in layout.METADATA])
        bursts.append(
            embed(state, ids[ids != 0].long(), metadata, int(flow["protocol"]), config.log_metadata)
        )
    for depth in range(config.n_layers):
        of_burst, of_flow = (f"layers.{depth}.{part}_encoder" for part in ("burst", "flow"))
        bursts = [
            layer(state, of_burst, x, state["burst_positions"][: len(x)], config.n_heads) for x in bursts
        ]
        class_tokens = torch.stack([x[0] for x in bursts])
        answered = layer(state, of_flow, class_tokens, state["flow_positions"][: len(bursts)], config.n_heads)
        bursts = [torch.cat([answered[i : i + 1], x[1:]]) for i, x in enumerate(bursts)]
    return bursts


def pool(state: State, class_tokens: Tensor) -> Tensor:
    scores = torch.tanh(dense(state, "pooling.score", dense(state, "pooling.projection", class_tokens)))
    return (scores[:, 0].softmax(0)[:, None] * class_tokens).sum(0)


def logits(state: State, config: Any, flow: Mapping[str, Tensor]) -> Tensor:
    """What the classifier answers for one flow: (C,)."""
    pooled = pool(state, torch.stack([burst[0] for burst in encode(state, config, flow)]))
    if config.head_hidden:
        pooled = dense(state, "hidden_out", gelu(dense(state, "hidden_in", pooled)))
    return dense(state, "head", pooled)


def value_loss(state: State, x: Tensor, token: int) -> Tensor:
    """Nats of one masked token."""
    x = norm(state, "token_head.norm", gelu_tanh(dense(state, "token_head.dense", x)), 1e-12)
    bias = state["token_head.bias"]
    if "embeddings.word.weight" in state:
        return -(state["embeddings.word.weight"] @ x + bias).log_softmax(0)[token]
    high, low = divmod(token - 1, 256)
    rows_high, rows_low = (state[f"embeddings.word.{part}.weight"] for part in ("high", "low"))
    first = (rows_high[:256] @ x + bias[:256]).log_softmax(0)[high]
    second = (rows_low[:256] @ (x + rows_high[high]) + bias[256:]).log_softmax(0)[low]
    return -(first + second)


def losses(state: State, config: Any, hidden: Any) -> dict[str, float]:
    """Each objective's loss on a batch that is hidden already, flow by flow."""
    of_tokens, of_swaps, of_metadata, of_directions = [], [], [], []
    for row in range(len(hidden.swapped)):
        flow = {name: getattr(hidden.tokens, name)[row] for name in layout.ARRAYS}
        bursts = encode(state, config, flow)
        for burst, x in enumerate(bursts):
            for place, target in enumerate(hidden.targets[row, burst, : len(x)].tolist()):
                if target:
                    of_tokens.append(value_loss(state, x[place], target))
            if hidden.metadata_hidden[row, burst]:
                truth = hidden.metadata[row, burst].double()
                direction, n_bytes, packets, iat = read_metadata(truth, config.log_metadata)
                wanted = torch.stack([iat if config.log_metadata else iat / 1000, n_bytes, packets])
                of_metadata += list((dense(state, "metadata_head", x[0]) - wanted).abs())
                answer = dense(state, "direction_head", x[0]).log_softmax(0)
                of_directions.append(-answer[1 if direction > 0 else 0])
        answer = dense(state, "swap_head", pool(state, torch.stack([x[0] for x in bursts]))).log_softmax(0)
        of_swaps.append(-answer[int(hidden.swapped[row])])
    parts = {
        "mlm_loss": of_tokens,
        "swap_loss": of_swaps,
        "metadata_loss": of_metadata,
        "direction_loss": of_directions,
    }
    return {name: float(torch.stack(values).mean()) for name, values in parts.items()}
