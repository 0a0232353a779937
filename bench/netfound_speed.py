"""netFound packed against padded, on the flows of captures: python bench/netfound_speed.py CAPTURE...

One process, one thread of torch, CPU seconds; the two sides answer the same flows in turn, with random weights.
Prints a line a size: flows per CPU second of both, their ratio, the largest difference of a logit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from capture.representations import build
from capture.representations import netfound_layout as layout
from models.nets.netfound import NetFoundClassifier
from models.nets.netfound_config import sized
from netcls.datasets.capture_flows import concatenate_tokens, process_captures

N_LABELS = 45
FLOWS = {"tiny": 320, "small": 96}
PADDED_SHARE = {"tiny": 4, "small": 8}  # every so-manyth flow is run padded as well
BATCH = {True: 32, False: 4}


def flows_of(captures: list[str], at_most: int) -> list[Tensor]:
    """The arrays of the captures' flows, a sample of each capture."""
    read = process_captures(
        [Path(name) for name in captures],
        build("netfound", {}),
        at_most=at_most,
        seed=0,
        threads=1,
        cache_dir=None,
        on_progress=None,
    )
    return [
        torch.tensor(array) for array in concatenate_tokens([flows.tokens for flows in read]).arrays.values()
    ]


def timed(
    model: NetFoundClassifier, arrays: list[Tensor], rows: Tensor, packed: bool
) -> tuple[float, Tensor]:
    """Flows per CPU second, and their logits."""
    model.packed = packed
    batch = BATCH[packed]
    with torch.inference_mode():
        model(*(array[rows[:batch]] for array in arrays))
        start_s = time.process_time()
        logits = [model(*(a[rows[i : i + batch]] for a in arrays)) for i in range(0, len(rows), batch)]
        return len(rows) / (time.process_time() - start_s), torch.cat(logits)


def main() -> None:
    """Read, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("captures", nargs="+")
    parser.add_argument("--max-flows-per-capture", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    arrays = flows_of(options.captures, options.max_flows_per_capture)
    n_tokens = (arrays[0] != layout.PAD).sum((1, 2))
    print(f"{len(n_tokens)} flows, {float(n_tokens.float().mean()):.0f} tokens each")
    for size, most in FLOWS.items():
        torch.manual_seed(0)
        model = NetFoundClassifier(sized(size), N_LABELS).eval()
        rows = torch.randperm(len(n_tokens), generator=torch.Generator().manual_seed(0))[:most]
        rows = rows[n_tokens[rows].argsort()]
        packed, logits = timed(model, arrays, rows, packed=True)
        step = PADDED_SHARE[size]
        padded, again = timed(model, arrays, rows[::step], packed=False)
        apart = float((logits[::step] - again).abs().max())
        print(
            f"{size}: packed {packed:.1f}, padded {padded:.1f} flows per CPU s, {packed / padded:.1f} x, {apart:.1e}"
        )


if __name__ == "__main__":
    main()
