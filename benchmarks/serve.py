"""Many clients at a time, beside the same requests one at a time; and a soak.

    python -m benchmarks.serve                # 64 clients, unequal prompts, one JSON line
    python -m benchmarks.serve --soak 2000    # also broken, cancelled and dropped requests

Server and clients are processes of this machine and share its cores. "One at a time" is a server
with a single slot and a single client, so that it pays nothing for the batch. Every reply of the
crowd is compared with the reply of that server to the same request; where they differ, the server
of the crowd is asked once more for that reply alone. (A batch of one and a batch of many are other
programs, whose sums may round otherwise; one server's replies must not depend on the company.)
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # this process only makes the model and asks
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import httpx
import numpy as np

from benchmarks.serve_soak import soak
from benchmarks.serving import VOCAB, serving, small_config, write_model
from glm_jax import command_line
from glm_jax.config import num_params


@dataclasses.dataclass(frozen=True)
class Args:
    """Measures the server under many clients, or soaks it."""

    clients: int = 64
    """Clients at a time, each with one request after another."""
    requests: int = 128
    """Requests in all."""
    slots: int = 32
    """Of the server; the other clients wait in its queue."""
    layers: int = 8
    width: int = 640
    """Size of the random model. Its weights do not fit a processor's cache, as no real model's do:
    what a batch saves is reading them once for every reply."""
    soak: int = 0
    """Instead: this many requests, well-formed and not."""


class Work(NamedTuple):
    prompt: list[int]
    new: int


class Reply(NamedTuple):
    text: str
    first_token: float
    """Seconds."""


def make_work(count: int) -> list[Work]:
    """Prompts of 4 to 200 tokens and answers of 16 to 192, evenly mixed: about as much to write as
    to read. Reading is bound by arithmetic, alone as in a crowd; only writing gains by a batch."""
    rng = np.random.default_rng(0)
    return [
        Work(
            rng.integers(0, VOCAB - 128, rng.integers(4, 201)).tolist(), int(rng.integers(16, 193))
        )
        for _ in range(count)
    ]


async def ask(client: httpx.AsyncClient, work: Work) -> Reply | None:
    """A streamed reply; None if it does not come whole."""
    body = {
        "prompt": work.prompt, "max_tokens": work.new, "temperature": 0, "ignore_eos": True,
        "stream": True,
    }  # fmt: skip
    begin, first, texts, reason = time.perf_counter(), 0.0, [], None
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            return None
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            first = first or time.perf_counter() - begin
            choice = json.loads(line[6:])["choices"][0]
            texts.append(choice["text"])
            reason = choice["finish_reason"] or reason
    return Reply("".join(texts), first) if reason == "length" else None


async def run(url: str, work: list[Work], clients: int) -> tuple[list[Reply | None], float]:
    """Every reply in order, and the seconds that all took together."""
    replies: list[Reply | None] = [None] * len(work)
    todo = iter(range(len(work)))
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def one_client() -> None:
            for i in todo:
                replies[i] = await ask(client, work[i])

        for each in work[:1]:
            await ask(client, each)  # connections and caches of a first time
        begin = time.perf_counter()
        await asyncio.gather(*(one_client() for _ in range(clients)))
        return replies, time.perf_counter() - begin


def measure(model: Path, args: Args) -> dict[str, Any]:
    """The JSON line."""
    work = make_work(args.requests)
    tokens = sum(each.new for each in work)
    context = ["--context", "400"]
    with serving(model, "--slots", "1", *context) as server:
        alone, seconds_alone = asyncio.run(run(server.url, work, 1))
    with serving(model, "--slots", str(args.slots), *context) as server:
        together, seconds = asyncio.run(run(server.url, work, args.clients))
        resident = server.resident_mb()
        doubtful = [i for i in range(len(work)) if _text(alone[i]) != _text(together[i])]
        again, _ = asyncio.run(run(server.url, [work[i] for i in doubtful], 1))
    lost = sum(reply is None for reply in together)
    mixed_up = sum(
        _text(together[i]) != _text(reply) for i, reply in zip(doubtful, again, strict=True)
    )
    first = sorted(1000 * reply.first_token for reply in together if reply)
    return {
        "benchmark": "serve",
        "params": num_params(small_config(args.layers, args.width)),
        "cores": os.cpu_count(),
        "clients": args.clients,
        "slots": args.slots,
        "requests": args.requests,
        "prompt_tokens": sum(len(each.prompt) for each in work),
        "new_tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 1),
        "one_at_a_time_tokens_per_s": round(tokens / seconds_alone, 1),
        "ratio": round(seconds_alone / seconds, 2),
        "first_token_ms": {"p50": round(_at(first, 0.5)), "p99": round(_at(first, 0.99))},
        "first_token_alone_ms_p50": round(
            _at(sorted(1000 * reply.first_token for reply in alone if reply), 0.5), 1
        ),
        "lost": lost,
        "rounded_otherwise_in_a_batch_of_one": len(doubtful) - mixed_up,
        "different_from_alone": mixed_up,
        "server_mb": round(resident),
    }


def _text(reply: Reply | None) -> str | None:
    return reply and reply.text


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def main(argv: list[str]) -> None:
    args = command_line.parse(Args, "python -m benchmarks.serve", argv)
    with tempfile.TemporaryDirectory(prefix="serve-bench-") as folder:
        if args.soak:
            model = write_model(Path(folder), small_config(2, 128))
            with serving(model, "--slots", "8", "--context", "128", "--queue", "64",
                         "--max-body", "100000") as server:  # fmt: skip
                line = asyncio.run(soak(server.url, args.soak, memory=server.resident_mb,
                                        files=server.open_files))  # fmt: skip
        else:
            line = measure(write_model(Path(folder), small_config(args.layers, args.width)), args)
    print(json.dumps(line))


if __name__ == "__main__":
    command_line.run(lambda: main(sys.argv[1:]))
