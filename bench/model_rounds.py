"""netcls's NetMamba and the plain PyTorch one in turn, in one process: same weights, same flows, one thread, float32.

python bench/model_rounds.py [--batch 16] [--rounds 3] [--seed 0]

Prints JSON: CPU seconds of every round, and the largest difference of a logit. Ends in an error if the two disagree.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from capture.representations import TokenBatch
from models.predictor import Predictor
from netcls.bench_models import random_checkpoint

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import plain_netmamba

LARGEST_DIFFERENCE = 1e-4


def timed(work: Callable[[], NDArray[np.float32]]) -> tuple[float, NDArray[np.float32]]:
    """CPU seconds of this process, and the logits."""
    before = time.process_time()
    logits = work()
    return time.process_time() - before, logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = random_checkpoint(given.seed)
    flow_bytes = np.random.default_rng(given.seed).integers(0, 256, (given.batch, 1600), dtype=np.uint8)
    tokens = TokenBatch({"bytes": flow_bytes}, np.full(given.batch, 5, np.uint16))
    plain = plain_netmamba.load(checkpoint.state)

    def run_plain() -> NDArray[np.float32]:
        with torch.inference_mode():
            return plain(torch.from_numpy(flow_bytes)).numpy()

    with Predictor(checkpoint, threads=1, device="cpu", precision="fp32") as ours:
        difference = float(np.abs(ours.logits(tokens) - run_plain()).max())
        if difference > LARGEST_DIFFERENCE:
            sys.exit(f"the two networks disagree by {difference:g}; expected at most {LARGEST_DIFFERENCE:g}")
        rounds = [(timed(lambda: ours.logits(tokens))[0], timed(run_plain)[0]) for _ in range(given.rounds)]
    ours_s, plain_s = zip(*rounds, strict=True)
    print(
        json.dumps(
            {
                "batch": given.batch,
                "ours_cpu_s": ours_s,
                "plain_cpu_s": plain_s,
                "logit_difference": difference,
            }
        )
    )


if __name__ == "__main__":
    main()
