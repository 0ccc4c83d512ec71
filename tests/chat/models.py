"""Tiny random models with the tiny tokenizers' vocabularies, and one that says what it is told."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import pytest

from glm_jax.chat import Chat
from glm_jax.config import preset
from glm_jax.nn import GLM
from tests.text.every import tiny_tokenizer

_SIZES = {"num_layers": 2, "embed_dim": 16, "num_heads": 4, "head_dim": 4, "mlp_dim": 24}


def tiny_config(name: str, max_seq_len: int = 512):
    tokenizer = tiny_tokenizer(name)
    base = preset(name)
    kv_heads = {"num_kv_heads": 4} if base.num_kv_heads == base.num_heads else {"num_kv_heads": 2}
    return base.replace(
        vocab_size=tokenizer.vocab_size,
        max_seq_len=max_seq_len,
        special=tokenizer.special,
        stop_ids=(tokenizer.special.eos,),
        **_SIZES,
        **kv_heads,
    )


@functools.cache
def tiny_model(name: str) -> GLM:
    config = tiny_config(name)
    return jax.jit(lambda key: GLM(config, key))(jax.random.key(0))


class Scripted:
    """In place of the generation core: each call gives the next reply, some ids at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, *replies: str | list[int]):
        self.tokenizer = tiny_tokenizer(name)
        self.calls: list[tuple[list[int], dict]] = []
        self.closed = 0
        self._replies = [self._ids(reply) for reply in replies]
        monkeypatch.setattr("glm_jax.chat.session.stream", self)
        self.chat = functools.partial(Chat, tiny_model(name), self.tokenizer)

    def _ids(self, reply: str | list[int]) -> list[int]:
        if isinstance(reply, list):
            return reply
        return self.tokenizer.encode(reply, add_special_tokens=False)

    def __call__(self, model, prompt, *, every, max_new_tokens, **options) -> Iterator[list[int]]:
        self.calls.append((list(prompt), options))
        ids = self._replies[len(self.calls) - 1][:max_new_tokens]
        try:
            for i in range(0, len(ids), every):
                yield ids[i : i + every]
        finally:
            self.closed += 1
