"""A model with all that requests need to know of it: tokenizer, formats, limits, defaults."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from glm_jax.chat.formats import ChatFormat
from glm_jax.chat.session import Chat
from glm_jax.config import GLMConfig
from glm_jax.errors import UserError
from glm_jax.nn import GLM
from glm_jax.serve.errors import ApiError
from glm_jax.serve.parameters import Common
from glm_jax.serve.request import Request
from glm_jax.text.decoding_loop import room
from glm_jax.text.layout import lay_out
from glm_jax.text.sampling import RowSampling
from glm_jax.text.tokenizer import Tokenizer

_BLANKS = ("[MASK]", "[sMASK]", "[gMASK]")
_GOLDEN = 0x9E3779B9  # as glm_jax.generate: seeds of further samples do not meet neighbouring ones


@dataclasses.dataclass(frozen=True)
class Served:
    """What the HTTP side knows of the model; ``Served.of`` makes it."""

    name: str
    """That clients call it by."""
    config: GLMConfig
    tokenizer: Tokenizer
    format: ChatFormat | None
    no_chat: str
    """Why there is no chat format."""
    stop_ids: tuple[int, ...]
    defaults: Mapping[str, Any]
    """Sampling where a request says nothing."""
    length: int
    """Tokens of a slot, prompt and answer together."""
    most_tokens: int
    """Of one answer."""
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(
        cls,
        model: GLM,
        tokenizer: Tokenizer,
        *,
        name: str = "glm",
        generation: Mapping[str, Any] | None = None,
        length: int = 2048,
        most_tokens: int = 4096,
    ) -> Served:
        """It keeps nothing of the model's weights.

        Args:
          generation: contents of ``generation.json``: stop ids, sampling, prompt format.
        """
        generation = generation or {}
        format, no_chat, defaults = None, "", {}
        stop_ids = tuple(generation.get("stop_ids") or model.config.stop_ids)
        try:
            chat = Chat(model, tokenizer, generation=generation)
        except UserError as error:
            no_chat = str(error)
        else:
            format, stop_ids, defaults = chat.format, chat.stop_ids, chat.sampling
        return cls(
            name, model.config, tokenizer, format, no_chat, stop_ids, defaults, length, most_tokens
        )

    @property
    def vocab_limit(self) -> int:
        """Ids from here on stand for nothing."""
        return min(getattr(self.tokenizer, "used", 2**31 - 1), self.config.vocab_size)

    def check_model(self, name: str | None) -> None:
        """Passes if this is the model that a client wants, or it does not say.

        Raises:
          ApiError: it wants another one.
        """
        if name and name != self.name:
            raise ApiError(
                404, f"model {name!r} is not served here; {self.name!r} is", "model",
                "model_not_found",
            )  # fmt: skip

    def text_prompt(self, text: str) -> list[int]:
        """Ids of a text to continue, with the special tokens that the release puts around it.

        A model that fills blanks continues at [MASK], [sMASK] or [gMASK] in the text, or at a blank
        at its end if it has none.
        """
        if not self.config.prefix_lm:
            return self.tokenizer.encode(text)
        special = self.config.special
        if not any(blank in text for blank in _BLANKS):
            text += "[MASK]" if special.gmask is None else "[gMASK]"
        ids = self.tokenizer.encode_blanks(text)
        (sop,) = special.require("sop")
        return ids if sop in ids else [*ids, sop]

    def requests(
        self, prompt: Sequence[int], body: Common, most: int | None, likely: int
    ) -> list[Request]:
        """One request for each of the ``n`` answers to a prompt.

        Raises:
          ApiError: the prompt is too long.
          UserError: it breaks the family's rule, or a setting is out of range.
        """
        if len(prompt) >= self.length:
            raise self._too_long(len(prompt))
        row = lay_out(prompt, self.config)
        left = min(self.length - len(prompt), room(row, self.config))
        if left < 1:
            raise self._too_long(len(prompt))
        limit = min(left, self.most_tokens, most or self.most_tokens)
        stops = () if body.ignore_eos else self.stop_ids
        stops = tuple(dict.fromkeys([*stops, *body.stop_token_ids]))
        first = secrets.randbits(32) if body.seed is None else body.seed
        return [
            Request(row, limit, stops, self._sampling(body, first + i * _GOLDEN), likely=likely)
            for i in range(body.n)
        ]

    def _too_long(self, length: int) -> ApiError:
        return ApiError(
            400,
            f"the prompt has {length} tokens, which leaves no room for an answer: this server "
            f"takes {min(self.length, self.config.max_seq_len)} tokens, prompt and answer together",
            code="context_length_exceeded",
        )

    def _sampling(self, body: Common, seed: int) -> RowSampling:
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        given = {name: self.defaults[name] for name in names if name in self.defaults}
        given |= {n: value for n in names if (value := getattr(body, n)) is not None}
        given.setdefault("temperature", 1.0)
        given["top_k"] = max(given.get("top_k", 0), 0)  # -1 is usual for "all", too
        return RowSampling.make(1, **given, seed=seed % 2**32, vocab_limit=self.vocab_limit)
