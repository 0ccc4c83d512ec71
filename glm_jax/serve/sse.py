"""How answers leave: as one JSON object, or piece by piece as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.responses import StreamingResponse

from glm_jax.serve.errors import ApiError, body_of
from glm_jax.serve.replies import Answers
from glm_jax.serve.request import Token

log = logging.getLogger(__name__)


async def collected(answers: Answers, http: HttpRequest) -> tuple[list[list[Token]], list[str]]:
    """Every row's tokens and why it ended; gives up when the client hangs up.

    Raises:
      ApiError: the engine failed, or the client has hung up.
    """
    tokens: list[list[Token]] = [[] for _ in answers.rows]
    reasons = [""] * len(answers.rows)
    watch = asyncio.create_task(answers.close_when_gone(http))
    try:
        async for i, delta in answers:
            tokens[i] += delta.tokens
            if delta.reason == "error":
                raise ApiError(500, delta.error)
            if delta.reason == "cancelled":
                raise ApiError(499, "the client has hung up")
            reasons[i] = delta.reason or ""
    finally:
        watch.cancel()
        answers.close()
    return tokens, reasons


def streamed(
    chunks: AsyncIterator[dict[str, Any]], answers: Answers, http: HttpRequest
) -> StreamingResponse:
    """The chunks as events, and OpenAI's last one, ``[DONE]``."""

    async def events() -> AsyncIterator[str]:
        watch = asyncio.create_task(answers.close_when_gone(http))
        try:
            async for chunk in chunks:
                yield _event(json.dumps(chunk, ensure_ascii=False))
            yield _event("[DONE]")
        except ApiError as error:
            yield _event(json.dumps(body_of(error.status, str(error))))
        except Exception:
            log.exception("a stream failed")
            yield _event(json.dumps(body_of(500, "the server failed; its log says why")))
        finally:
            watch.cancel()
            answers.close()

    return Events(events(), answers)


class Events(StreamingResponse):
    """Server-sent events; their rows are given up also where nobody ever asks for the first one."""

    def __init__(self, events: AsyncIterator[str], answers: Answers):
        # Proxies must neither keep nor gather what is meant to be read at once.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._answers = answers

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.close()


def _event(data: str) -> str:
    return f"data: {data}\n\n"
