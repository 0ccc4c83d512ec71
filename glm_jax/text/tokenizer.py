"""What a tokenizer is: text to ids and back. The special tokens are ids that no text gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Bool

from glm_jax.special import SpecialTokens
from glm_jax.text.decoding import Stream


class Tokenizer(Protocol):
    """What the rest of the library asks of a tokenizer, trained or released.

    ``family`` names the model whose rules hold (``trained`` for one of our own), ``special`` has
    the command tokens by role, ``special_ids`` every special token by name, such as "<|user|>", and
    ``skipped`` the ids that ``skip_special_tokens`` leaves out. ``vocab_size`` counts the rows of
    the model's embedding; the first ``used`` of them stand for something.
    """

    family: str
    special: SpecialTokens
    special_ids: dict[str, int]
    skipped: frozenset[int]
    vocab_size: int
    used: int

    @property
    def sentence_ends(self) -> Bool[np.ndarray, "V"]: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        allow_special: bool = False,
    ) -> list[int]: ...

    def encode_blanks(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str: ...

    def token_bytes(self, index: int) -> bytes: ...

    def stream(self) -> Stream: ...


class IncrementalDecoder:
    """Decodes a stream of ids: a character appears when its last byte has come, and never changes.

    ``"".join(decoder.push([i]) for i in ids) + decoder.flush() == tokenizer.decode(ids)``.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = False):
        self._vocab_size = tokenizer.vocab_size
        self._skipped = tokenizer.skipped if skip_special_tokens else frozenset()
        self._stream = tokenizer.stream()

    def push(self, ids: Iterable[int]) -> str:
        """The text that these further ids complete.

        Raises:
          ValueError: an id is outside the vocabulary.
        """
        return "".join(self._one(int(index)) for index in ids)

    def _one(self, index: int) -> str:
        if not 0 <= index < self._vocab_size:
            raise ValueError(f"id {index} is outside the vocabulary of {self._vocab_size}")
        return "" if index in self._skipped else self._stream.push(index)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for bytes that make no character."""
        return self._stream.flush()
