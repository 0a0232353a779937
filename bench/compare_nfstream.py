"""Our flows beside nfstream's, over captures and folders of captures.

    python -m bench.compare_nfstream [--idle S] [--active S] [--sample N] [--list] PATH...

Prints which flows agree (packets and bytes of both directions) and what explains the others; exits 1 if something
is unexplained. What each cause means: tests/differential/flow_agreement.py, docs/flow_meter_agreement.md.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from capture.errors import CaptureError
from netcls.inputs import find_captures
from tests.differential.flow_agreement import CAUSES, Agreement, compare
from tests.differential.nfstream_peer import meter


def main() -> int:
    options = _options()
    captures = [Path(capture) for path in options.paths for capture in find_captures(path)]
    if options.sample and options.sample < len(captures):
        captures = sorted(random.Random(1).sample(captures, options.sample))
    start_s = time.process_time()
    total = Agreement()
    refused: list[str] = []
    for path, flows in zip(captures, meter(captures, options.idle, options.active), strict=True):
        if isinstance(flows, str):
            refused.append(f"{path.name}: nfstream: {flows}")
            continue
        try:
            total.add(compare(path, flows, options.idle, options.active))
        except CaptureError as error:
            refused.append(f"{path.name}: ours: {error}")
    _report(total, refused, options.list)
    print(f"\n{time.process_time() - start_s:.0f} CPU s without nfstream's")
    return 1 if total.unexplained else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--idle", type=int, default=120, metavar="S", help="idle timeout of both, seconds")
    parser.add_argument(
        "--active", type=int, default=1800, metavar="S", help="active timeout of both, seconds"
    )
    parser.add_argument(
        "--sample", type=int, default=0, metavar="N", help="only N captures, drawn with seed 1"
    )
    parser.add_argument("--list", action="store_true", help="all that is unexplained, not the first 20 lines")
    return parser.parse_args()


def _report(total: Agreement, refused: list[str], is_long: bool) -> None:
    print(
        "| captures | packets | flows, ours | flows, nfstream | the same | unexplained |\n|--:|--:|--:|--:|--:|--:|"
    )
    numbers = (total.captures, total.packets, total.ours, total.theirs, total.agreed, len(total.unexplained))
    print("| " + " | ".join(f"{number:,}" for number in numbers) + " |\n")
    print("| causes | knots | flows, ours | flows, nfstream |\n|---|--:|--:|--:|")
    for causes, knots in total.causes.most_common():
        ours, theirs = total.flows_by_cause[causes]
        print(f"| {' + '.join(f'`{cause}`' for cause in causes)} | {knots:,} | {ours:,} | {theirs:,} |")
    print("\n| packets that one side has | packets | who is right |\n|---|--:|---|")
    for cause, packets in total.packets_by_cause.most_common():
        print(f"| `{cause}` | {packets:,} | {CAUSES.get(cause, '')} |")
    for title, lines in (("not read", refused), ("unexplained", total.unexplained)):
        print(f"\n{title}: {len(lines)}")
        for line in lines if is_long else lines[:20]:
            print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
