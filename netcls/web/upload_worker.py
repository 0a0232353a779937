"""The process that classifies one upload: sets its limits, reads a job from stdin, writes events to stdout.

The last line is ``{"stats": ..., "warnings": ..., "truncated": ...}``, or ``{"error": ...}`` with exit code 2.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from capture.errors import NetclsError


def main() -> int:
    """Run; the exit code."""
    job = json.load(sys.stdin)
    limits = job["limits"]
    seconds = int(limits["max_seconds"])
    for what, most in (
        (resource.RLIMIT_AS, limits["max_memory_bytes"]),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 64 << 20),  # numba's cache
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        resource.setrlimit(what, (most, most))
    try:
        return _classify(job["path"], job["model"], limits)
    except NetclsError as error:
        _say({"error": str(error).replace(job["path"], "the capture")})
    except MemoryError:
        _say({"error": "the capture needs more memory than is allowed"})
    return 2


def _classify(path: str, model: str, limits: dict[str, Any]) -> int:
    from netcls.event import encode_line, events_of
    from netcls.pipeline import Run, RunOptions

    options = RunOptions(
        model=model,
        threads=1,
        memory_limit_bytes=64 << 20,
        max_decompressed_bytes=limits["max_unpacked_bytes"],
    )
    n = n_left_out = 0
    out = sys.stdout.buffer
    with Run([path], options, classify=True) as run:
        for batch in run:
            for event in events_of(batch):
                n += 1
                if n > limits["max_events"]:
                    n_left_out += 1
                else:
                    out.write(encode_line(event))
    out.flush()
    _say(
        {
            "stats": run.counters.as_dict(),
            "warnings": [warning.replace(path, "the capture") for warning in run.warnings],
            "truncated": n_left_out > 0,
        }
    )
    return 0


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
