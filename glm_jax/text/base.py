"""What every tokenizer shares: special tokens in texts, blanks, decoding, sentence ends."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool

from glm_jax.special import SpecialTokens
from glm_jax.text.decoding import Stream
from glm_jax.text.tokenizer import IncrementalDecoder

VOCAB_MULTIPLE = 128
# Spec of the sentence objective (THUDM/GLM blocklm_utils.py): ASCII marks and the full-width ones.
SENTENCE_MARKS = (".", "?", "!", ";", ":", "\n", "。", "？", "！", "；", "…")
_BLANKS = {"[MASK]": "mask", "[sMASK]": "smask", "[gMASK]": "gmask"}


class BaseTokenizer:
    """A subclass gives ``_ordinary``, ``_wrap``, ``_stream`` and ``token_bytes``.

    Args:
      files: the contents that the tokenizer is made of, for its fingerprint and for pickling.
      family: name of the released model whose rules hold.
      special: ids of the command tokens by role.
      special_ids: every id with a name that no text gives, role tokens included.
      used: ids that stand for something, 0 to used - 1.
      vocab_size: rows of the model's embedding; the next multiple of 128 by default.

    Raises:
      ValueError: vocab_size is too small.
    """

    parsed: ClassVar[frozenset[str] | None] = None
    """Names that ``allow_special`` reads; all of them by default."""
    strips: ClassVar[frozenset[str]] = frozenset()
    """Names that swallow the blanks before them (THUDM/GLM: CommandToken's lstrip)."""
    strip_chars: ClassVar[str | None] = None

    def __init__(
        self,
        files: Sequence[bytes],
        family: str,
        special: SpecialTokens,
        special_ids: Mapping[str, int],
        used: int,
        vocab_size: int | None,
    ):
        self.family, self.special, self.special_ids = family, special, dict(special_ids)
        self.used, self._files = used, tuple(files)
        self.vocab_size = vocab_size or -(-used // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        self.skipped: frozenset[int] = frozenset(self.special_ids.values())
        if self.vocab_size < used:
            raise ValueError(f"vocab_size {self.vocab_size} is less than the {used} ids in use")

    def _ordinary(self, text: str) -> list[int]:
        raise NotImplementedError

    def _wrap(self, ids: list[int], pair: list[int] | None) -> list[int]:
        raise NotImplementedError

    def _stream(self) -> Stream:
        raise NotImplementedError

    def token_bytes(self, index: int) -> bytes:
        """The UTF-8 bytes that an id stands for, possibly part of a character; none for a command.

        Raises:
          ValueError: the id is outside the vocabulary.
        """
        raise NotImplementedError

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        allow_special: bool = False,
    ) -> list[int]:
        """Ids of a text, or of two.

        Args:
          add_special_tokens: put the tokens around it that the released tokenizer puts.
          allow_special: names of special tokens in the text become their ids, as in those releases
            whose ``encode`` reads them. Leave it off for what others write: "<|user|>" is then
            nothing but eight characters.

        Raises:
          ValueError: this tokenizer joins no pairs, or reads no special tokens.
        """
        parts = [self._read(well_formed(t), allow_special) for t in (text, pair) if t is not None]
        if add_special_tokens:
            return self._wrap(parts[0], parts[1] if pair is not None else None)
        return [i for part in parts for i in part]

    def encode_blanks(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text in which [MASK], [sMASK] and [gMASK] stand for blanks to be filled.

        Raises:
          ValueError: the vocabulary has no such token.
        """
        ids: list[int] = []
        for part, name in _split(well_formed(text), tuple(_BLANKS)):
            ids += self._ordinary(part.rstrip(self.strip_chars) if name else part)
            ids += self.special.require(_BLANKS[name]) if name else ()
        return self._wrap(ids, None) if add_special_tokens else ids

    def _read(self, text: str, allow_special: bool) -> list[int]:
        if not allow_special:
            return self._ordinary(text)
        names = frozenset(self.special_ids) if self.parsed is None else self.parsed
        if not names:
            raise ValueError(
                f"the tokenizer of {self.family} reads no special tokens in a text; "
                f"put their ids between encoded texts: special_ids has {sorted(self.special_ids)}"
            )
        ids: list[int] = []
        for part, name in _split(text, tuple(names)):
            ids += self._ordinary(part.rstrip(self.strip_chars) if name in self.strips else part)
            ids += [self.special_ids[name]] if name else []
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of the ids, as the released tokenizer writes it; U+FFFD for what is no character.

        Raises:
          ValueError: an id is outside the vocabulary.
        """
        decoder = IncrementalDecoder(self, skip_special_tokens)
        return decoder.push(ids) + decoder.flush()

    def stream(self) -> Stream:
        """A new decoder of single ids; ``IncrementalDecoder`` is what to use."""
        return self._stream()

    @functools.cached_property
    def sentence_ends(self) -> Bool[np.ndarray, "V"]:
        """Whether a token holds a mark that ends a sentence; spec 1.2, 1.6."""
        marks = [mark.encode() for mark in SENTENCE_MARKS]
        table = map(self.token_bytes, range(self.vocab_size))
        return np.array([any(mark in token for mark in marks) for token in table], bool)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes whenever some text could be encoded to other ids."""
        key = hashlib.sha256(repr((self.family, self.special, self.vocab_size)).encode())
        for content in self._files:
            key.update(hashlib.sha256(content).digest())
        return key.hexdigest()[:16]

    def _check(self, index: int) -> None:
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"id {index} is outside the vocabulary of {self.vocab_size}")

    def __reduce__(self) -> Any:
        raise NotImplementedError


def well_formed(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _split(text: str, names: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    """Parts of a text, each with the name that follows it; the last with None."""
    begin = 0
    for found in _pattern(names).finditer(text):
        yield text[begin : found.start()], found[0]
        begin = found.end()
    yield text[begin:], None


@functools.lru_cache(maxsize=64)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
