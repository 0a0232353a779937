"""NetMamba against plain PyTorch, part by part, in turn in one process: one thread, CPU seconds, ratios.

python bench/netmamba_speed.py [--rounds 5] [--only scan forward workers train] [--json FILE]

    scan      the selective scan, forward and forward + backward, against a torch loop over time; 401 and 64 tokens
    forward   the classifier at the paper's sizes, batch 16, fp32 and bf16, against an eager loop and against the form
              of mamba_ssm's reference function; its share of the rate of a large matrix product
    workers   64 flows with two workers against one: CPU seconds for each flow, and the wall clock
    train     the step of the masked autoencoder, batch 16, forward, backward and AdamW, against the torch loop and bf16

"Eager" is the same module with the scan as a loop over time and `nn.Conv1d`, each step's decay made when it is needed.
Prints Markdown with the bars of issue "NetMamba, exactly, and fast on a plain CPU".
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from capture.representations import TokenBatch
from models.learning.schedules import parameter_groups
from models.nets.netmamba import NetMambaClassifier, NetMambaConfig, NetMambaPretrainer
from models.nets.scan import selective_scan
from models.precision import cpu_multiplies_bf16
from models.predictor import Predictor
from netcls.bench_models import random_checkpoint

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import plain_netmamba

Work = Callable[[], object]
GFLOP_PER_FLOW = 1.16
"""Of the matrix products of one forward pass, with the last layer's for the class token only."""


def plain_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What `causal_conv_silu` computes, as a Mamba in plain PyTorch does."""
    wide = functional.conv1d(x.transpose(1, 2), weight, bias, padding=weight.shape[2] - 1, groups=len(weight))
    return functional.silu(wide[..., : x.shape[1]]).transpose(1, 2)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """The modules compute with torch alone."""
    loop = partial(selective_scan, backend="reference")
    with (
        mock.patch("models.nets.mamba.selective_scan", loop),
        mock.patch("models.nets.mamba.causal_conv_silu", plain_conv_silu),
        mock.patch("models.nets.netmamba_inference.covers", return_value=False),
    ):
        yield


def in_turn(works: dict[str, tuple[Work, int]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of one call, per round; each work is called so many times a round, after one call that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work, _ in works.values():
        work()
    for _ in range(rounds):
        for name, (work, calls) in works.items():
            began = time.process_time()
            for _ in range(calls):
                work()
            seconds[name].append((time.process_time() - began) / calls)
    return seconds


def ratio(seconds: dict[str, list[float]], ours: str, theirs: str) -> str:
    """Median of the rounds, least and most."""
    each = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f}..{max(each):.2f})"


def scan_rows(rounds: int) -> list[list[str]]:
    rows = []
    for n_tokens, bars in ((401, ("6", "15")), (64, ("5", "5"))):
        shape = (4, n_tokens, 512)
        generator = torch.Generator().manual_seed(0)
        wide = [torch.randn(shape, generator=generator) for _ in range(3)]
        small = [torch.randn(4, n_tokens, 16, generator=generator) for _ in range(2)]
        A = -torch.arange(1.0, 17).repeat(512, 1)
        u, dt, B, C, D, z, bias = wide[0], wide[1], *small, torch.ones(512), wide[2], torch.full((512,), -3.0)
        leaves = [x.clone().requires_grad_() for x in (u, dt, A, B, C, D, z, bias)]
        gradient = torch.randn(shape, generator=generator)

        def forward(backend: Any, x: tuple[Tensor, ...]) -> None:
            with torch.inference_mode():
                selective_scan(*x, backend=backend)

        def both(backend: Any, x: list[Tensor], gradient: Tensor) -> None:
            for leaf in x:
                leaf.grad = None
            selective_scan(*x, backend=backend).backward(gradient)

        inputs = (u, dt, A, B, C, D, z, bias)
        seconds = in_turn(
            {
                "ours": (partial(forward, "cpu", inputs), 8),
                "loop": (partial(forward, "reference", inputs), 1),
                "ours, both": (partial(both, "cpu", leaves, gradient), 3),
                "loop, both": (partial(both, "reference", leaves, gradient), 1),
            },
            rounds,
        )
        rows.append(
            [f"scan forward, {n_tokens} tokens, torch loop / ours", ratio(seconds, "ours", "loop"), bars[0]]
        )
        rows.append(
            [
                f"scan forward + backward, {n_tokens} tokens",
                ratio(seconds, "ours, both", "loop, both"),
                bars[1],
            ]
        )
    return rows


def forward_rows(rounds: int) -> list[list[str]]:
    n_flows = 16
    checkpoint = random_checkpoint()
    model = NetMambaClassifier(NetMambaConfig(), len(checkpoint.labels)).eval()
    model.load_state_dict(checkpoint.state)
    narrow = NetMambaClassifier(NetMambaConfig(), len(checkpoint.labels)).eval()
    narrow.load_state_dict(checkpoint.state)
    narrow.inference_precision = "bf16"
    plain = plain_netmamba.load(checkpoint.state)
    flows = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n_flows, 1600), dtype=np.uint8))
    a, b, c = torch.randn(401, 256), torch.randn(256, 1024), torch.empty(401, 1024)

    def answer(network: torch.nn.Module) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = network(flows)
            return logits

    def answer_eagerly() -> Tensor:
        with eager():
            return answer(model)

    for other in (answer_eagerly(), answer(plain)):
        if (other - answer(model)).abs().max() > 1e-4:
            sys.exit("the networks disagree; nothing was timed")
    works: dict[str, tuple[Work, int]] = {
        "fp32": (partial(answer, model), 2),
        "eager": (answer_eagerly, 1),
        "reference form": (partial(answer, plain), 1),
        "product": (partial(torch.mm, a, b, out=c), 200),
    }
    if cpu_multiplies_bf16():
        works["bf16"] = (partial(answer, narrow), 2)
    seconds = in_turn(works, rounds)
    rows = [
        ["classifier fp32, eager loop / ours", ratio(seconds, "fp32", "eager"), "3"],
        ["classifier fp32, reference form / ours", ratio(seconds, "fp32", "reference form"), "9"],
    ]
    if "bf16" in works:
        rows.append(["classifier bf16, eager loop / ours", ratio(seconds, "bf16", "eager"), "5"])
    product_gflop = 2 * 401 * 256 * 1024 / 1e9
    shares = [
        (n_flows * GFLOP_PER_FLOW / ours) / (product_gflop / product)
        for ours, product in zip(seconds["fp32"], seconds["product"], strict=True)
    ]
    rows.append(
        [
            "classifier fp32, share of the rate of a 401 x 256 x 1024 product",
            f"{statistics.median(shares):.2f} ({min(shares):.2f}..{max(shares):.2f})",
            "0.65",
        ]
    )
    rates = ", ".join(
        f"{name} {n_flows / statistics.median(seconds[name]):.1f}" for name in works if name != "product"
    )
    rate = product_gflop / statistics.median(seconds["product"])
    rows.append(["flows per CPU s; GFLOP/s of the product", f"{rates}; {rate:.0f}", ""])
    return rows


def workers_rows(rounds: int) -> list[list[str]]:
    checkpoint = random_checkpoint()
    flow_bytes = np.random.default_rng(0).integers(0, 256, (64, 1600), dtype=np.uint8)
    tokens = TokenBatch({"bytes": flow_bytes}, np.full(64, 5, np.uint16))
    wall, cpu = [], []
    with (
        Predictor(checkpoint, threads=1, device="cpu", precision="fp32") as one,
        Predictor(checkpoint, threads=2, device="cpu", precision="fp32") as two,
    ):
        one.logits(tokens), two.logits(tokens)
        for _ in range(rounds):
            costs = []
            for predictor in (one, two):
                began = time.perf_counter(), time.process_time()
                predictor.logits(tokens)
                costs.append((time.perf_counter() - began[0], time.process_time() - began[1]))
            wall.append(costs[0][0] / costs[1][0])
            cpu.append(2 * costs[0][1] / costs[1][1])
    load = os.getloadavg()[0]
    return [
        [
            "two workers / one, by CPU s for each flow (what two free cores would give)",
            f"{statistics.median(cpu):.2f} ({min(cpu):.2f}..{max(cpu):.2f})",
            "1.7",
        ],
        [
            f"two workers / one, by the wall clock, load average {load:.1f}",
            f"{statistics.median(wall):.2f} ({min(wall):.2f}..{max(wall):.2f})",
            "1.7 on free cores",
        ],
    ]


def train_rows(rounds: int) -> list[list[str]]:
    flows = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 1600), dtype=np.uint8))

    def step(dtype: torch.dtype | None, plain: bool) -> Work:
        torch.manual_seed(0)
        model = NetMambaPretrainer(NetMambaConfig()).train()
        optimiser = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-4)
        generator = torch.Generator().manual_seed(0)

        def work() -> None:
            with eager() if plain else contextlib.nullcontext():
                with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                    loss, _, _ = model(flows, generator=generator)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()

        return work

    works = {"ours": (step(None, False), 2), "loop": (step(None, True), 1)}
    if cpu_multiplies_bf16():
        works["bf16"] = (step(torch.bfloat16, False), 2)
    seconds = in_turn(works, rounds)
    rows = [["autoencoder step, batch 16, torch loop / ours", ratio(seconds, "ours", "loop"), "5"]]
    if "bf16" in works:
        rows.append(["autoencoder step, fp32 / bf16", ratio(seconds, "bf16", "ours"), "1.3"])
    rates = ", ".join(f"{name} {16 / statistics.median(seconds[name]):.1f}" for name in works)
    rows.append(["flows per CPU s", rates, ""])
    return rows


SECTIONS = {"scan": scan_rows, "forward": forward_rows, "workers": workers_rows, "train": train_rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in given.only for row in SECTIONS[name](given.rounds)]
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")
    print("| what | median (least..most) | bar |\n|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()
