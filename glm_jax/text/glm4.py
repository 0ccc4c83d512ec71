"""GLM-4's byte-level BPE: tiktoken's ranks, or the tokenizer.json of Transformers' releases."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any

import tiktoken

from glm_jax.special import SpecialTokens
from glm_jax.text.base import BaseTokenizer
from glm_jax.text.byte_level import bytes_of, fast_bpe
from glm_jax.text.chatglm import ROLES
from glm_jax.text.decoding import ByteStream

NAMES = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", *ROLES,
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
# How the release cuts a text before merging bytes (tokenization_chatglm.py).
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tiktoken's pattern search overflows its stack in a run of a million blanks; such runs are cut.
_LONG_RUN = re.compile(r"\s{100000}")


class GLM4Tokenizer(BaseTokenizer):
    """GLM-4-9B: ``encode`` gives ``[gMASK] <sop> text``; every text comes back as it was.

    The release's ``encode`` reads the names of special tokens in a text, its chat template does
    not: that is ``allow_special``, off by default. Decoding puts blanks around special tokens.

    Args:
      content: the bytes of ``tokenizer.model`` (tiktoken's ranks) or of ``tokenizer.json``.

    Raises:
      ValueError: they are neither, or vocab_size is too small.
    """

    def __init__(self, content: bytes, family: str = "glm-4-9b", vocab_size: int | None = None):
        if content.lstrip()[:1] == b"{":
            self._encode, self._tokens, ids = _from_fast(content)
        else:
            self._encode, self._tokens = _from_ranks(content)
            ids = {name: len(self._tokens) + i for i, name in enumerate(NAMES)}
        special = SpecialTokens(
            pad=ids["<|endoftext|>"],
            eos=ids["<|endoftext|>"],
            mask=ids["[MASK]"],
            gmask=ids["[gMASK]"],
            smask=ids["[sMASK]"],
            sop=ids["<sop>"],
            eop=ids["<eop>"],
        )
        used = max(ids.values()) + 1
        super().__init__([content], family, special, ids, used, vocab_size)
        self._literal = {index: name for name, index in ids.items()}

    def __reduce__(self) -> Any:
        return type(self), (self._files[0], self.family, self.vocab_size)

    def _ordinary(self, text: str) -> list[int]:
        return self._encode(text)

    def _wrap(self, ids: list[int], pair: list[int] | None) -> list[int]:
        gmask, sop, eos = self.special.require("gmask", "sop", "eos")
        return [gmask, sop, *ids, *([] if pair is None else [*pair, eos])]

    def _stream(self) -> ByteStream:
        return ByteStream(self._bytes, self._literal, spaced=True)

    def _bytes(self, index: int) -> bytes:
        return self._tokens[index] if index < len(self._tokens) else b""

    def token_bytes(self, index: int) -> bytes:
        self._check(index)
        return self._bytes(index)


_Encode = Callable[[str], list[int]]


def parse_ranks(content: bytes) -> list[bytes]:
    """tiktoken's file: a token in base64 and its rank on each line, the ranks 0, 1, 2, ...

    Raises:
      ValueError: a line is something else.
    """
    tokens = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            tokens.append(base64.b64decode(token, validate=True))
            if int(rank) != number - 1:
                raise ValueError
        except (ValueError, binascii.Error):
            raise ValueError(
                f"line {number} is {line[:40]!r}, not a token in base64 and rank {number - 1}"
            ) from None
    different = set(tokens)
    if len(different) < len(tokens):
        raise ValueError(f"{len(different)} different tokens in {len(tokens)} lines")
    if missing := [byte for byte in range(256) if bytes([byte]) not in different]:
        raise ValueError(f"no token for the byte {missing[0]} ({len(missing)} of 256 are missing)")
    return tokens


def _from_ranks(content: bytes) -> tuple[_Encode, list[bytes]]:
    tokens = parse_ranks(content)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    encoding = tiktoken.Encoding("glm-4", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})

    def encode(text: str) -> list[int]:
        ids, begin = [], 0
        for run in _LONG_RUN.finditer(text):
            ids += encoding.encode_ordinary(text[begin : run.end()])
            begin = run.end()
        return ids + encoding.encode_ordinary(text[begin:])

    return encode, tokens


def _from_fast(content: bytes) -> tuple[_Encode, list[bytes], dict[str, int]]:
    tokenizer, vocab, added = fast_bpe(content)
    if missing := [name for name in NAMES[:10] if name not in added]:
        raise ValueError(f"no GLM-4: it has no special tokens {', '.join(missing)}")
    tokens = [b""] * (max(vocab.values()) + 1)
    for token, index in vocab.items():
        tokens[index] = bytes_of(token)
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids, tokens, added
