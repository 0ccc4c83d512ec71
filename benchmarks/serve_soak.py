"""Requests of all kinds, good and bad, thrown at a server: what it must survive."""

from __future__ import annotations

import asyncio
import collections
import json
import random
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx

_KINDS = {
    "whole": 30, "stream": 20, "hang_up": 15, "hang_up_early": 10, "half_a_body": 5,
    "malformed": 8, "oversized": 4, "wrong": 8,
}  # fmt: skip
_PROMPTS = [[10 + (7 * i + j) % 300 for j in range(1 + 9 * i)] for i in range(10)]
_NEW = 16


class Soak:
    """One soak: what is expected, and what has come."""

    def __init__(self, url: str, client: httpx.AsyncClient):
        self._url, self._client = url, client
        self._expected: list[str] = []
        self.done: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        """What should not have happened."""

    async def prepare(self) -> None:
        """The reply to every prompt alone."""
        for prompt in _PROMPTS:
            response = await self._client.post("/v1/completions", json=_body(prompt))
            self._expected.append(response.json()["choices"][0]["text"])

    async def one(self, kind: str, which: int) -> None:
        """A request of this kind."""
        try:
            await getattr(self, f"_{kind}")(which)
        except Exception as error:
            self.wrong.append(f"{kind}: {error!r}")
        self.done[kind] += 1

    async def _whole(self, which: int) -> None:
        while True:
            body = _body(_PROMPTS[which])
            response = await self._client.post("/v1/completions", json=body)
            if response.status_code != 429:
                break
            self.done["told to wait"] += 1
            await asyncio.sleep(float(response.headers["retry-after"]) * 0.2)
        self._same(response.json()["choices"][0]["text"], which)

    async def _stream(self, which: int) -> None:
        while True:
            body = _body(_PROMPTS[which]) | {"stream": True}
            async with self._client.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code == 429:
                    self.done["told to wait"] += 1
                    await asyncio.sleep(float(response.headers["retry-after"]) * 0.2)
                    continue
                lines = [line async for line in response.aiter_lines()]
            chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            return self._same("".join(c["choices"][0]["text"] for c in chunks), which)

    async def _hang_up(self, which: int) -> None:
        """After a few tokens of a long answer."""
        body = _body(_PROMPTS[which]) | {"stream": True, "max_tokens": 100}
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.aiter_lines()
            for _ in range(which):
                await anext(lines, None)

    async def _hang_up_early(self, which: int) -> None:
        """Before an answer can have come."""
        body = json.dumps(_body(_PROMPTS[which]) | {"max_tokens": 100}).encode()
        await self._raw(body, len(body))

    async def _half_a_body(self, which: int) -> None:
        await self._raw(b'{"prompt": [1, 2', 1000)

    async def _raw(self, body: bytes, length: int) -> None:
        address = urlsplit(self._url)
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.close()

    async def _malformed(self, which: int) -> None:
        bodies = [b"{", b"", b"[1, 2]", b"null", b'"text"', b"\xff\xfe", b"[" * 50_000,
                  b'{"prompt": NaN}', b'{"prompt": {"a": 1}}', b'{"messages": 7}']  # fmt: skip
        path = ("/v1/completions", "/v1/chat/completions")[which % 2]
        headers = {"Content-Type": "application/json"}
        await self._refused(400, path, content=bodies[which], headers=headers)

    async def _oversized(self, which: int) -> None:
        body = json.dumps({"prompt": "x" * 200_000}).encode()

        async def in_pieces():
            for at in range(0, len(body), 50_000):
                yield body[at : at + 50_000]

        content: Any = in_pieces() if which % 2 else body
        try:
            await self._refused(413, "/v1/completions", content=content)
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            self.done["cut off"] += 1  # the server need not read what it will not take

    async def _wrong(self, which: int) -> None:
        changes = [{"max_tokens": -1}, {"temperature": "hot"}, {"n": 1000}, {"prompt": [10**9]},
                   {"prompt": []}, {"prompt": [1] * 500}, {"stop": [""]}, {"top_p": 0},
                   {"seed": 1.5}, {"logprobs": 99}]  # fmt: skip
        await self._refused(400, "/v1/completions", json=_body([20]) | changes[which])

    async def _refused(self, status: int, path: str, **request: Any) -> None:
        response = await self._client.post(path, **request)
        if response.status_code != status or not response.json()["error"]["message"]:
            self.wrong.append(f"{status} was due, not {response.status_code}: {response.text}")

    def _same(self, text: str, which: int) -> None:
        if text != self._expected[which]:
            self.wrong.append(f"prompt {which} got {text!r}, not {self._expected[which]!r}")


async def soak(
    url: str,
    count: int,
    *,
    clients: int = 24,
    memory: Callable[[], float] = lambda: 0.0,
    files: Callable[[], int] = lambda: 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Sends ``count`` requests of random kinds; the JSON line of what came of them.

    Args:
      memory: of the server, in MB; read after a fifth of the requests and at the end.
      files: that the server has open.
    """
    rng = random.Random(seed)
    kinds = rng.choices(list(_KINDS), weights=list(_KINDS.values()), k=count)
    todo = iter([(kind, rng.randrange(10)) for kind in kinds])
    limits = httpx.Limits(max_connections=clients)
    begin = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        run = Soak(url, client)
        await run.prepare()
        at_a_fifth: list[float] = []

        async def one_client() -> None:
            for kind, which in todo:
                if not at_a_fifth and run.done.total() > count / 5:
                    at_a_fifth.append(memory())
                await run.one(kind, which)

        await asyncio.gather(*(one_client() for _ in range(clients)))
        health = await _idle(client)
    return {
        "benchmark": "serve_soak",
        "requests": count,
        "seconds": round(time.perf_counter() - begin, 1),
        "kinds": dict(run.done),
        "wrong": len(run.wrong),
        "first_wrong": run.wrong[:3],
        "health": health,
        "server_mb_at_a_fifth": round((at_a_fifth or [0.0])[0], 1),
        "server_mb_at_the_end": round(memory(), 1),
        "open_files_at_the_end": files(),
    }


async def _idle(client: httpx.AsyncClient) -> dict[str, Any]:
    """The server's health, as soon as nobody is served, or after 20 seconds."""
    health: dict[str, Any] = {}
    for _ in range(100):
        health = (await client.get("/health")).json()
        if not health["slots_in_use"] and not health["waiting"]:
            break
        await asyncio.sleep(0.2)
    return health


def _body(prompt: list[int]) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": _NEW, "temperature": 0, "ignore_eos": True}
