"""Request bodies, never longer than allowed."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.exceptions import HTTPException
from starlette.requests import Request


async def body_of(request: Request, limit_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        HTTPException: 413 if it is longer than allowed.
    """
    parts, n = [], 0
    async for part in limited_stream(request, limit_bytes):
        parts.append(part)
        n += len(part)
    return b"".join(parts)


async def limited_stream(request: Request, limit_bytes: int) -> AsyncIterator[bytes]:
    """The body in pieces.

    Raises:
        HTTPException: 413 as soon as it is longer than allowed, also if it only says so.
    """
    too_long = HTTPException(413, f"the body is longer than {limit_bytes} bytes")
    said = request.headers.get("content-length", "0")
    if not (said.isascii() and said.isdigit()) or int(said) > limit_bytes:
        raise too_long
    n = 0
    async for part in request.stream():
        n += len(part)
        if n > limit_bytes:
            raise too_long
        yield part
