"""From the engine's tokens to text: the rows of one HTTP request, on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from fastapi import Request as HttpRequest

from glm_jax.chat.streaming import StopTexts
from glm_jax.serve.engine import Engine
from glm_jax.serve.request import News, Request, Token
from glm_jax.text.tokenizer import IncrementalDecoder, Tokenizer


class Reader(Protocol):
    """Ids in, text out: ``glm_jax.chat.streaming.ReplyReader`` or ``TextReader``."""

    @property
    def stopped(self) -> bool: ...

    def push(self, ids: Iterable[int]) -> str: ...

    def flush(self) -> str: ...


class TextReader:
    """The plain text of ids, up to where a stop text begins."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
        self._decoder = IncrementalDecoder(tokenizer, skip_special_tokens=True)
        self._stopper = StopTexts(stop)

    @property
    def stopped(self) -> bool:
        return self._stopper.found

    def push(self, ids: Iterable[int]) -> str:
        return self._stopper.push(self._decoder.push(ids))

    def flush(self) -> str:
        text = "" if self.stopped else self._stopper.push(self._decoder.flush())
        return text + self._stopper.flush()


class Delta(NamedTuple):
    """What came to one row: tokens, the text that they settle, and at last the reason to end."""

    text: str
    tokens: tuple[Token, ...]
    reason: str | None
    error: str


class Row:
    """One answer as it is read."""

    def __init__(self, request: Request, reader: Reader):
        self.request, self.reader = request, reader
        self.count = 0
        self.text = ""

    def take(self, news: News) -> Delta:
        taken: list[Token] = []
        texts: list[str] = []
        reason = news.reason
        for token in news.tokens:
            if token.id in self.request.stops:
                break
            taken.append(token)
            texts.append(self.reader.push([token.id]))
            if self.reader.stopped:
                reason = "stop"
                break
        if reason is not None:
            texts.append(self.reader.flush())
        self.count += len(taken)
        text = "".join(texts)
        self.text += text
        return Delta(text, tuple(taken), reason, news.error)


class Answers:
    """The rows of one HTTP request; iterating gives (row, what came to it) until all have ended.

    Raises:
      QueueFull, Draining: from the engine, which then has none of them.
    """

    def __init__(self, engine: Engine, rows: Sequence[Row]):
        self.rows = rows
        self._engine = engine
        self._open = set(range(len(rows)))
        self._news: asyncio.Queue[tuple[int, News]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def sender(index: int) -> Callable[[News], None]:
            def send(news: News) -> None:
                loop.call_soon_threadsafe(self._news.put_nowait, (index, news))

            return send

        for i, row in enumerate(rows):
            row.request.deliver = sender(i)
        engine.submit([row.request for row in rows])

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        while self._open:
            index, news = await self._news.get()
            if index not in self._open:
                continue
            delta = self.rows[index].take(news)
            if delta.reason is not None:
                self._open.discard(index)
                if news.reason is None:  # a stop text: the engine does not know of it
                    self._engine.cancel(self.rows[index].request)
            yield index, delta

    def close(self) -> None:
        """Gives up on all that have not ended: their slots are free at the next step."""
        for index in self._open:
            self._engine.cancel(self.rows[index].request)
            self._news.put_nowait((index, News((), "cancelled")))

    async def close_when_gone(self, http: HttpRequest) -> None:
        """Closes when the client has hung up."""
        while (await http.receive())["type"] != "http.disconnect":
            pass
        self.close()


def token_entry(tokenizer: Tokenizer, index: int, logprob: float) -> dict[str, Any]:
    """A token in OpenAI's form for log probabilities."""
    content = tokenizer.token_bytes(index)
    text = content.decode("utf-8", "replace") if content else tokenizer.decode([index])
    return {
        "token": text,
        "logprob": max(logprob, -9999.0),
        "bytes": list(content or text.encode()),
    }
