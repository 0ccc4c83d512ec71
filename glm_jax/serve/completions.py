"""``/v1/completions``: texts or ids to continue."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
from fastapi import Request as HttpRequest

from glm_jax.serve.chat import usage
from glm_jax.serve.engine import Engine
from glm_jax.serve.errors import ApiError
from glm_jax.serve.parameters import CompletionRequest
from glm_jax.serve.replies import Answers, Row, TextReader, token_entry
from glm_jax.serve.request import Token
from glm_jax.serve.served import Served
from glm_jax.serve.sse import collected, streamed

_USUAL_TOKENS = 16  # OpenAI's default for this endpoint
_MOST_PROMPTS = 64


class CompletionCall:
    """One request for continuations, from its body to OpenAI's objects."""

    def __init__(self, served: Served, body: CompletionRequest):
        served.check_model(body.model)
        if not 0 < len(body.prompts) <= _MOST_PROMPTS:
            raise ApiError(400, f"prompt holds 1 to {_MOST_PROMPTS} prompts", "prompt")
        self._served, self._body = served, body
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._prompts: list[list[int]] = []
        self._offsets: dict[int, int] = {}

    def rows(self) -> list[Row]:
        """The rows to write, ``n`` for each prompt; encodes the prompts.

        Raises:
          UserError, ApiError: a prompt cannot be read, or is too long.
        """
        served, body = self._served, self._body
        rows = []
        for prompt in body.prompts:
            ids = served.text_prompt(prompt) if isinstance(prompt, str) else prompt
            self._prompts.append(ids)
            most = body.max_tokens or _USUAL_TOKENS
            requests = served.requests(ids, body, most, body.logprobs or 0)
            rows += [Row(r, TextReader(served.tokenizer, body.stop)) for r in requests]
        return rows

    def whole(self, answers: Answers, tokens: Sequence[Sequence[Token]], reasons) -> dict:
        """The answer as one object."""
        choices = [
            self._choice(i, row.text, tokens[i], reasons[i]) for i, row in enumerate(answers.rows)
        ]
        return self._head() | {"choices": choices, "usage": usage(self._prompts, answers)}

    async def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        """The answer in pieces."""
        async for i, delta in answers:
            if delta.reason == "error":
                raise ApiError(500, delta.error)
            if delta.text or delta.reason or (self._body.logprobs is not None and delta.tokens):
                choice = self._choice(i, delta.text, delta.tokens, delta.reason)
                yield self._head() | {"choices": [choice]}
        if (options := self._body.stream_options) and options.include_usage:
            yield self._head() | {"choices": [], "usage": usage(self._prompts, answers)}

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id, "object": "text_completion", "created": self._created,
            "model": self._served.name,
        }  # fmt: skip

    def _choice(self, index: int, text: str, tokens: Sequence[Token], reason) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, tokens),
            "finish_reason": reason,
        }

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        name = lambda token: token_entry(self._served.tokenizer, token, 0.0)["token"]
        names = [name(token.id) for token in tokens]
        offsets = []
        for each in names:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(each)
        return {
            "tokens": names,
            "token_logprobs": [max(token.logprob, -9999.0) for token in tokens],
            "top_logprobs": [
                {name(other): score for other, score in token.likely if score > -1e30}
                for token in tokens
            ],
            "text_offset": offsets,
        }


async def completions(engine: Engine, served: Served, body: CompletionRequest, http: HttpRequest):
    """Continuations of one or several prompts, whole or as server-sent events."""
    call = CompletionCall(served, body)
    rows = await anyio.to_thread.run_sync(call.rows)
    answers = Answers(engine, rows)
    if body.stream:
        return streamed(call.chunks(answers), answers, http)
    return call.whole(answers, *await collected(answers, http))
