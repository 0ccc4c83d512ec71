"""A device that says what it is told: for what a random model would never say."""

from __future__ import annotations

from collections.abc import Sequence

from glm_jax.serve import engine as engine_module
from glm_jax.serve.request import Token
from tests.serve.server import model_of


class ScriptedRows:
    """In place of ``glm_jax.serve.rows.Rows``: every request gets the next of these replies."""

    replies: Sequence[Sequence[int]] = ()

    def __init__(self, model, slots, length, chunk, compute=None):
        self.model, self.length, self.lost = model, length, False
        self._next = iter(self.replies)
        self._left = {}

    def warm_up(self, progress) -> None: ...

    def clear(self) -> None: ...

    def read(self, request):
        self._left[request] = list(next(self._next))
        return request.length, self._one(request)

    def write(self, writing, steps, *, until_free):
        return {slot: [self._one(request)] for slot, request in writing.items()}, 1

    def _one(self, request) -> Token:
        return Token(self._left[request].pop(0), -0.5)


def script(monkeypatch, tokenizer, *replies: str | list) -> None:
    """Engines made from now on give these replies, in order: texts, or lists of ids and texts."""
    ids = []
    for reply in replies:
        parts = [reply] if isinstance(reply, str) else reply
        flat = [
            i
            for part in parts
            for i in (
                [part]
                if isinstance(part, int)
                else tokenizer.encode(part, add_special_tokens=False)
            )
        ]
        ids.append([*flat, tokenizer.special_ids["<|user|>"]])
    monkeypatch.setattr(ScriptedRows, "replies", ids)
    monkeypatch.setattr(engine_module, "Rows", ScriptedRows)


__all__ = ["ScriptedRows", "model_of", "script"]
