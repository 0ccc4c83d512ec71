"""Tiny served models, and a server over loopback in a thread of the test's process."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator

import jax

import glm_jax
from glm_jax.nn import GLM
from glm_jax.serve.app import make_app
from glm_jax.serve.engine import Engine
from glm_jax.serve.http import listen, make_server
from glm_jax.serve.request import News, Request
from glm_jax.serve.rows import Rows
from glm_jax.serve.served import Served
from glm_jax.text.layout import lay_out
from glm_jax.text.sampling import RowSampling
from tests.chat.models import tiny_config
from tests.text.every import tiny_tokenizer

LENGTH = 192
MOST = 40
"""Tokens that ``alone`` can give; one number, so that little is compiled."""


@functools.cache
def model_of(name: str = "glm-4-9b") -> GLM:
    """A tiny random model whose weights are large enough that texts differ."""
    config = tiny_config(name, max_seq_len=1024).replace(init_std=0.6)
    return jax.jit(lambda key: GLM(config, key))(jax.random.key(1))


def served_of(name: str = "glm-4-9b", **options) -> Served:
    options = {"length": LENGTH, "name": f"tiny-{name}"} | options
    return Served.of(model_of(name), tiny_tokenizer(name), **options)


@contextlib.contextmanager
def started(name: str = "glm-4-9b", **options) -> Iterator[Engine]:
    """An engine that runs."""
    engine = Engine(model_of(name), **({"slots": 4, "length": LENGTH, "chunk": 32} | options))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@contextlib.contextmanager
def running(engine: Engine, served: Served, **options) -> Iterator[str]:
    """The server's address."""
    socket = listen("127.0.0.1", 0)
    server = make_server(make_app(engine, served, **options), drain_seconds=20)
    thread = threading.Thread(target=server.run, args=([socket],))
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def slow_down(monkeypatch, seconds: float = 0.02, rows: type = Rows) -> None:
    """Makes every step of writing take this long; for an engine with ``burst=0``."""
    write = rows.write

    def slowly(self, *args, **kwargs):
        time.sleep(seconds)
        return write(self, *args, **kwargs)

    monkeypatch.setattr(rows, "write", slowly)


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be in time"
        time.sleep(0.01)


def idle(engine: Engine, slots: int = 4) -> bool:
    """Whether nobody waits and every slot is free."""
    return engine.load() == {"waiting": 0, "slots_in_use": 0, "slots_free": slots}


class Asked:
    """A request to an engine, and what came of it."""

    def __init__(self, model: GLM, prompt: list[int], limit: int = 24, stops=(), **settings):
        self.ids: list[int] = []
        self.tokens: list = []
        self.news: list[News] = []
        self.done = threading.Event()
        settings.setdefault("vocab_limit", model.config.vocab_size)
        likely = settings.pop("likely", 0)
        sampling = RowSampling.make(1, **settings)
        self.request = Request(
            lay_out(prompt, model.config), limit, tuple(stops), sampling, self._deliver, likely
        )

    def _deliver(self, news: News) -> None:
        self.news.append(news)
        self.tokens += news.tokens
        self.ids += [token.id for token in news.tokens]
        if news.reason is not None:
            self.done.set()

    @property
    def reason(self) -> str | None:
        return self.news[-1].reason if self.news else None

    def wait(self) -> Asked:
        assert self.done.wait(60), "no answer came"
        return self


@functools.cache
def _alone(name: str, prompt: tuple[int, ...], settings: tuple) -> list[int]:
    [ids] = glm_jax.generate(
        model_of(name), [prompt], max_new_tokens=MOST, stop_ids=(), **dict(settings)
    )
    return ids


def alone(name: str, prompt: list[int], limit: int = 24, **settings) -> list[int]:
    """The first ``limit`` tokens that the library's own generation gives for one prompt."""
    assert limit <= MOST
    return _alone(name, tuple(prompt), tuple(settings.items()))[:limit]
