"""Peak memory and CPU time of batch-64 inference by the length of the sequence, each in a process of its own.

python bench/netmamba_memory.py [--plot docs/netmamba_memory.svg] [--plain] [--rounds 3]

Memory is the peak of the resident set less what it was when torch had been imported: numba, kernels, weights and all
buffers count. Time is CPU seconds of one more answer to the same 64 flows. One thread, fp32, the paper's width and
depth, random weights. --plain adds the network in plain PyTorch (peers/plain_netmamba.py) at up to 400 tokens: it takes
gigabytes. The plot needs matplotlib (`.[dev]`).
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cpu_rounds import ENVIRONMENT

LENGTHS = (100, 200, 400, 800, 1600, 3200)
N_FLOWS = 64
PLAIN_UP_TO = 400


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def measure(length: int, plain: bool) -> dict[str, Any]:
    """In a fresh process."""
    import torch

    torch.set_num_threads(1)
    imported_mib = resident_mib()
    from models.nets.netmamba import NetMambaClassifier, NetMambaConfig

    torch.manual_seed(0)
    model: torch.nn.Module = NetMambaClassifier(NetMambaConfig(n_bytes=4 * length), 20).eval()
    if plain:
        sys.path.insert(0, str(Path(__file__).parent / "peers"))
        import plain_netmamba

        ours, model = model, plain_netmamba.PlainNetMamba(20, n_strides=length)
        model.load_state_dict(ours.state_dict())
    flows = torch.randint(0, 256, (N_FLOWS, 4 * length), dtype=torch.uint8)
    with torch.inference_mode():
        model(flows)
        began_s = time.process_time()
        if not plain:
            model(flows)
        cpu_s = time.process_time() - began_s
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"length": length, "peak_mib": peak_mib - imported_mib, "cpu_s": None if plain else cpu_s}


def in_own_process(length: int, plain: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", str(length), *(["--plain"] if plain else [])]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def draw(ours: list[dict[str, Any]], plain: list[dict[str, Any]], path: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "netcls"
    import matplotlib.pyplot as plt

    figure, (memory, seconds) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    lengths = [row["length"] for row in ours]
    memory.plot(lengths, [row["peak_mib"] for row in ours], "o-", label="netcls, fp32")
    if plain:
        plain_lengths = [row["length"] for row in plain]
        memory.plot(plain_lengths, [row["peak_mib"] for row in plain], "s--", label="plain PyTorch")
    memory.axhline(200, color="gray", linewidth=0.8, linestyle=":")
    memory.set(title="Peak memory, 64 flows", ylabel="MiB beyond importing torch", xscale="log", yscale="log")
    memory.legend()
    ticks = (100, 200, 500, 1000, 2000)
    memory.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    ticks_s = (0.3, 1, 3, 10)
    seconds.plot(lengths, [row["cpu_s"] for row in ours], "o-")
    seconds.set(title="Time, 64 flows, one thread", ylabel="CPU s", xscale="log", yscale="log")
    seconds.set_yticks(ticks_s, [str(tick) for tick in ticks_s])
    for axes in (memory, seconds):
        axes.set_xlabel("strides of a flow")
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.plain)))
        return
    in_own_process(LENGTHS[0], False)  # fills the kernel cache: compiling takes memory
    # In turn, so that a busy minute falls on all lengths; the least time of the rounds, and the most memory.
    rounds = [[in_own_process(length, False) for length in LENGTHS] for _ in range(given.rounds)]
    ours = [
        {
            "length": length,
            "peak_mib": max(row[i]["peak_mib"] for row in rounds),
            "cpu_s": min(row[i]["cpu_s"] for row in rounds),
        }
        for i, length in enumerate(LENGTHS)
    ]
    plain = [in_own_process(n, True) for n in LENGTHS if given.plain and n <= PLAIN_UP_TO]
    print(
        "| strides | MiB beyond importing torch | CPU s | ms for each flow and 100 strides | plain PyTorch, MiB |"
    )
    print("|---|---|---|---|---|")
    of_plain = {row["length"]: f"{row['peak_mib']:.0f}" for row in plain}
    for row in ours:
        each_ms = 1000 * row["cpu_s"] / N_FLOWS / (row["length"] / 100)
        print(
            f"| {row['length']} | {row['peak_mib']:.0f} | {row['cpu_s']:.2f} | {each_ms:.2f} | "
            f"{of_plain.get(row['length'], '')} |"
        )
    if given.plot:
        draw(ours, plain, given.plot)


if __name__ == "__main__":
    main()
