"""Classification of a capture that somebody sends, in a process of its own with limits on everything.

The file is hostile: it may unpack to terabytes or want all memory. The process that reads it may die of that; this one
does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from netcls.web.body import limited_stream

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint

WORKER: Final = "netcls.web.upload_worker"


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Of one upload.

    Attributes:
        max_body_bytes: of the capture as it is sent.
        max_unpacked_bytes: that a compressed one may unpack to.
        max_memory_bytes: address space of the process; torch alone maps some 1.5 GiB.
        max_seconds: from the first byte to the last event, and CPU time of the process.
        max_events: flows told; further ones are counted only.
        max_output_bytes: of the answer.
        at_once: uploads that are classified at the same time; others are asked to wait.
    """

    max_body_bytes: int = 64 << 20
    max_unpacked_bytes: int = 512 << 20
    max_memory_bytes: int = 6 << 30
    max_seconds: float = 120.0
    max_events: int = 20_000
    max_output_bytes: int = 64 << 20
    at_once: int = 1


class Uploads:
    """Takes uploads, one after the other."""

    def __init__(self, limits: UploadLimits) -> None:
        self._limits = limits
        self._n_running = 0

    async def classify(self, request: Request, checkpoint: Checkpoint | None) -> Response:
        """Events of the capture in the body.

        Returns:
            200 ``{"events": [...], "stats": {...}, "warnings": [...], "truncated": false}``; 422 for what is no
            capture or breaks a limit; 413, 429, 503, 504.
        """
        if checkpoint is None:
            return _error(503, "no model is loaded; netcls serves flow records only")
        if self._n_running >= self._limits.at_once:
            return _error(429, "another capture is being classified; try again", {"retry-after": "5"})
        self._n_running += 1
        try:
            async with asyncio.timeout(self._limits.max_seconds):
                return await self._classify(request, str(checkpoint.path))
        except TimeoutError:
            return _error(504, f"not done within {self._limits.max_seconds:g} s; send a smaller capture")
        finally:
            self._n_running -= 1

    async def _classify(self, request: Request, model: str) -> Response:
        with tempfile.TemporaryDirectory(prefix="netcls-upload-") as folder:
            path = Path(folder) / "upload"
            n = 0
            with path.open("wb") as file:
                async for part in limited_stream(request, self._limits.max_body_bytes):
                    file.write(part)
                    n += len(part)
            if not n:
                raise HTTPException(400, "the body is empty; expected a pcap or pcapng capture")
            status, said = await self._run(path, model)
        return JSONResponse(said, status)

    async def _run(self, path: Path, model: str) -> tuple[int, dict[str, Any]]:
        job = {"path": str(path), "model": model, "limits": asdict(self._limits)}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            WORKER,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=path.parent,
            env=_environment(),
            start_new_session=True,
            limit=1 << 20,
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(job).encode())
            process.stdin.close()
            out = bytearray()
            while part := await process.stdout.read(1 << 16):
                out += part
                if len(out) > self._limits.max_output_bytes:
                    return 422, {"error": "the answer is larger than allowed; send a smaller capture"}
            return _answer_of(bytes(out), await process.wait())
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


def _answer_of(out: bytes, code: int) -> tuple[int, dict[str, Any]]:
    lines = out.split(b"\n")
    try:
        last = json.loads(lines[-2]) if len(lines) > 1 else {}
        if code == 0 and "stats" in last:
            return 200, {"events": [json.loads(line) for line in lines[:-2]], **last}
        if code == 2 and isinstance(last.get("error"), str):
            return 422, {"error": last["error"]}
    except ValueError:
        pass
    return 422, {
        "error": "the process that classified it broke a limit of memory or time, or died; send less"
    }


def _environment() -> dict[str, str]:
    """What the process needs, and none of the appliance's secrets."""
    wanted = (
        "PATH",
        "HOME",
        "LANG",
        "TMPDIR",
        "NUMBA_CACHE_DIR",
        "OMP_WAIT_POLICY",
        "PYTHONPATH",
        "VIRTUAL_ENV",
    )
    return {name: os.environ[name] for name in wanted if name in os.environ} | {"OMP_NUM_THREADS": "1"}


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text}, status, headers)
