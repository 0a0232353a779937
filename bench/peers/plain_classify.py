"""A capture to answers with what there is today: dpkt_tokens.py, then plain_netmamba.py in batches of 16.

python bench/peers/plain_classify.py CAPTURE CHECKPOINT_DIR
"""

import json
import sys
from collections import Counter
from pathlib import Path

import plain_netmamba
import torch
from dpkt_tokens import tokens_of
from safetensors.torch import load_file

BATCH = 16


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    model = plain_netmamba.load(load_file(Path(sys.argv[2]) / "model.safetensors"))
    n_packets, tokens = tokens_of(sys.argv[1])
    labels = Counter()
    for start in range(0, len(tokens), BATCH):
        labels.update(model(torch.from_numpy(tokens[start : start + BATCH])).argmax(dim=1).tolist())
    print(json.dumps({"packets": n_packets, "flows": labels.total()}))


if __name__ == "__main__":
    main()
