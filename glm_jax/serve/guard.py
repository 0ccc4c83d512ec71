"""What stands before every request: its size, its time, its key."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from pathlib import Path

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm_jax.errors import UserError, first_line
from glm_jax.serve.errors import body_of
from glm_jax.serve.metrics import Metrics

_OPEN = ("/", "/health")
_BODY_SECONDS = 30.0


class Guard:
    """ASGI middleware: reads a body up to a limit, and lets in those with a key.

    Args:
      keys: any of them opens everything but ``/`` and ``/health``; none: everything is open.
      most_bytes: of a body.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], most_bytes: int, metrics: Metrics):
        self._app, self._most, self._metrics = app, most_bytes, metrics
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        refused = self._refusal(scope["path"], headers)
        if refused is None:
            try:
                async with asyncio.timeout(_BODY_SECONDS):
                    first = await self._body(receive)
            except TimeoutError:
                refused = 408, f"the body did not come within {_BODY_SECONDS:.0f} s"
            else:
                if first is None:
                    refused = 413, f"the body is larger than {self._most} bytes"
                else:
                    return await self._app(scope, _replay(first, receive), send)
        status, message = refused
        self._metrics.refused.labels(str(status)).inc()
        # What is left of the body is not read, so the connection is of no further use.
        headers = {"Connection": "close"}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        answer = JSONResponse(body_of(status, message), status, headers)
        return await answer(scope, receive, send)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        if self._keys and path not in _OPEN:
            kind, _, key = headers.get(b"authorization", b"").partition(b" ")
            # No early end: the time must not tell which key is nearly right.
            known = [hmac.compare_digest(key.strip(), mine) for mine in self._keys]
            if kind.lower() != b"bearer" or not any(known):
                return 401, "no valid API key; send the header Authorization: Bearer KEY"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most:
            return 413, f"the body has {int(length)} bytes; at most {self._most}"
        return None

    async def _body(self, receive: Receive) -> Message | None:
        """The whole body as one message; None if it is too large."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._most:
                return None
            more = message.get("more_body", False)
        return {"type": "http.request", "body": b"".join(parts), "more_body": False}


def _replay(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def read_keys(path: Path) -> list[str]:
    """The keys of a file: one a line, empty lines and those that begin with # left out.

    Raises:
      UserError: it cannot be read, or has no key.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"--api-key-file {path} cannot be read: {first_line(error)}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UserError(f"--api-key-file {path} has no key; write one a line")
    return keys
