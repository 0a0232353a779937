"""packet-mamba's inference against our own NetMamba, in turn in one process: one thread, CPU seconds, ratios.

python bench/packet_mamba_speed.py [--rounds 5] [--flows 256] [--capture FILE ...] [--json FILE]

`small` has 32 packets, width 128, 2 blocks; `base` 64 packets and 4 blocks; NetMamba the paper's sizes (401 tokens,
width 256, 4 blocks). All weights are random: they cost what trained ones cost. Without `--capture` the flows are made
up and every one is full (32 or 64 packets, the first 12 with payload), the dearest there are; with it they are those
of the captures, most of them shorter.

The limit is the time of the matrix products at the rate of one of 512 x 128 x 512 measured in the same
rounds, and 0.26 ns for each (packet, channel, state) of the scan. All products of all blocks count, also those that
are left out because nothing reads them.
"""

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from capture.flow_table import FlowTableConfig
from capture.representations import build
from models.nets.netmamba import NetMambaClassifier, NetMambaConfig
from models.nets.packet_mamba import PacketMambaClassifier, PacketMambaConfig, last_packet
from models.precision import cpu_multiplies_bf16, cpu_multiplies_int8
from netcls.tokens import tokens_of_capture

sys.path.insert(0, str(Path(__file__).parent))
from netmamba_speed import Work, in_turn

SIZES = {"small": (32, 2, 50), "base": (64, 4, 12)}  # packets, blocks, bar against NetMamba
LEAST_SHARE = 0.55
SCAN_NS = 0.26
N_LABELS, N_NETMAMBA_FLOWS = 45, 16


def made_up(n_flows: int, n_packets: int) -> tuple[NDArray[Any], ...]:
    """Full flows: 12 packets with 12 payload bytes each, quantities over all orders of magnitude."""
    rng = np.random.default_rng(0)
    numbers = np.exp(rng.uniform(0, 12, (n_flows, n_packets, 5))).astype(np.int32)
    flags = np.zeros((n_flows, n_packets, 10), np.uint8)
    flags[..., 0], flags[..., 1] = rng.integers(1, 3, (n_flows, n_packets)), 6
    flags[..., 2], flags[:, :12, 9] = rng.choice([2, 16, 24], (n_flows, n_packets)), 12
    return numbers, flags, rng.integers(0, 256, (n_flows, n_packets, 12), dtype=np.uint8)


def captured(paths: list[str], n_flows: int, n_packets: int) -> tuple[NDArray[Any], ...]:
    """The first flows of captures."""
    representation = build("packets", {"n_packets": n_packets})
    parts = [
        tokens for path in paths for _, tokens in tokens_of_capture(path, representation, FlowTableConfig())
    ]
    names = ("numbers", "flags", "payload")
    return tuple(np.concatenate([part.arrays[name] for part in parts])[:n_flows] for name in names)


def limit_s(config: PacketMambaConfig, n_tokens: int, flop_per_s: float) -> float:
    """Seconds that so many packets cost at least."""
    width, channels = config.d_model, config.d_model * config.expand
    selection = channels * (-(-width // 16) + 2 * config.d_state)
    flop = 2 * (width * 2 * channels + selection + channels * width)
    steps = channels * config.d_state
    return n_tokens * config.n_layers * (flop / flop_per_s + steps * SCAN_NS * 1e-9)


@torch.inference_mode()
def measure(given: argparse.Namespace) -> list[list[str]]:
    torch.manual_seed(0)
    precisions = ["fp32", *["bf16"] * cpu_multiplies_bf16(), *["int8"] * cpu_multiplies_int8()]
    strides = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (N_NETMAMBA_FLOWS, 1600), dtype=np.uint8)
    )
    a, b, c = torch.randn(512, 128), torch.randn(128, 512), torch.empty(512, 512)
    works: dict[str, tuple[Work, int]] = {"product": (partial(torch.mm, a, b, out=c), 200)}
    inputs: dict[str, tuple[torch.Tensor, ...]] = {}
    configs: dict[str, PacketMambaConfig] = {}
    for precision in precisions:
        netmamba = NetMambaClassifier(NetMambaConfig(), N_LABELS).eval()
        netmamba.inference_precision = precision
        works[f"netmamba {precision}"] = (partial(netmamba, strides), 1)
        for name, (n_packets, n_layers, _) in SIZES.items():
            arrays = (
                captured(given.capture, given.flows, n_packets)
                if given.capture
                else made_up(given.flows, n_packets)
            )
            inputs[name] = tuple(torch.from_numpy(array) for array in arrays)
            configs[name] = PacketMambaConfig(n_packets=n_packets, n_layers=n_layers)
            model = PacketMambaClassifier(configs[name], N_LABELS).eval()
            model.inference_precision = precision
            works[f"{name} {precision}"] = (partial(model, *inputs[name]), 1)
    seconds = in_turn(works, given.rounds)
    rates = [2 * 512 * 128 * 512 / s for s in seconds["product"]]
    rows = []
    for precision in precisions:
        netmamba_s = [s / N_NETMAMBA_FLOWS for s in seconds[f"netmamba {precision}"]]
        rows.append([f"netmamba {precision}", f"{1 / statistics.median(netmamba_s):.0f}", "", "", "", ""])
        for name, (_, _, bar) in SIZES.items():
            n_flows = len(inputs[name][0])
            n_tokens = int((last_packet(inputs[name][1]) + 1).sum())
            ours_s = [s / n_flows for s in seconds[f"{name} {precision}"]]
            ratios = [theirs / ours for ours, theirs in zip(ours_s, netmamba_s, strict=True)]
            # In a narrow precision the limit is that of a faster product, which is not measured here.
            shares = [
                limit_s(configs[name], n_tokens, rate) / n_flows / s
                for s, rate in zip(ours_s, rates, strict=True)
            ]
            rows.append(
                [
                    f"{name} {precision}",
                    f"{1 / statistics.median(ours_s):.0f}",
                    f"{n_tokens / n_flows:.1f}",
                    f"{statistics.median(ratios):.1f} ({min(ratios):.1f}..{max(ratios):.1f})",
                    f"{bar}",
                    f"{statistics.median(shares):.2f} (bar {LEAST_SHARE})" if precision == "fp32" else "",
                ]
            )
    rows.append(
        ["product 512 x 128 x 512 fp32, GFLOP/s", f"{statistics.median(rates) / 1e9:.0f}", "", "", "", ""]
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flows", type=int, default=256)
    parser.add_argument("--capture", nargs="+", metavar="FILE")
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(given)
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")
    print(
        "| what | flows per CPU s | packets a flow | times NetMamba, same precision | bar | of the limit model |"
    )
    print("|---|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()
