"""SentencePiece as in ChatGLM-6B, ChatGLM2-6B and ChatGLM3-6B (released tokenization_chatglm)."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from glm_jax.special import SpecialTokens
from glm_jax.text.base import BaseTokenizer
from glm_jax.text.decoding import CleanUp, Filtered, PieceStream, Replace, Stream
from glm_jax.text.pieces import BYTE, CONTROL, USER_DEFINED, PieceModel

ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
# ChatGLM-6B writes line breaks, tabs and runs of blanks as pieces of their own.
_BLANKS = {f"<|blank_{n}|>": " " * n for n in range(2, 81)}
_WHITESPACE = {"<n>": "\n", "<|tab|>": "\t", **_BLANKS}
_RUN = re.compile(" {2,80}")
_COMMANDS = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
# What v1.1's file holds behind its 130,000 pieces, and v1.0's code adds to its file.
_ADDED = (
    *((name, CONTROL) for name in _COMMANDS),
    *((name, USER_DEFINED) for name in ("<|tab|>", *_BLANKS)),
    *((f"<0x{byte:02X}>", BYTE) for byte in range(256)),
)
V1_0_SHIFT = 20000  # v1.0 keeps the ids below for image tokens


class ChatGLMTokenizer(BaseTokenizer):
    """ChatGLM-6B: v1.1, and v1.0, whose file ends before the command tokens.

    ``encode`` gives ``text [gMASK] <sop>``, and for a pair ``text [gMASK] <sop> pair <eop>``. In
    ``encode_blanks`` the text's own blank takes the place of ``[gMASK]``; v1.0 closes such a text
    with ``</s>`` unless the blank comes last. Texts are normalised (NFKC, blanks at the ends
    removed), and decoding undoes the blanks before English punctuation except in v1.0, as released.

    Args:
      model: the bytes of ``ice_text.model``.

    Raises:
      ValueError: they are no SentencePiece model, or vocab_size is too small.
    """

    parsed: ClassVar[frozenset[str] | None] = frozenset()

    def __init__(self, model: bytes, family: str = "chatglm-6b", vocab_size: int | None = None):
        pieces = PieceModel(model)
        self._v1_0 = "[gMASK]" not in pieces
        self._pieces = PieceModel(model, _ADDED) if self._v1_0 else pieces
        self._shift = V1_0_SHIFT if self._v1_0 else 0
        names = ("<unk>", "<s>", "</s>", "<pad>", *_COMMANDS)
        ids = {name: self._find(name) for name in names}
        special = SpecialTokens(
            pad=ids["<pad>"],
            eos=ids["</s>" if self._v1_0 else "<eop>"],
            mask=ids["[MASK]"],
            gmask=ids["[gMASK]"],
            sop=ids["<sop>"],
            eop=ids["<eop>"],
        )
        used = self._shift + len(self._pieces)
        super().__init__([model], family, special, ids, used, vocab_size)
        listed = () if self._v1_0 else ("<sop>", "<eop>", "<unk>", "<pad>", "[MASK]")
        self.skipped = frozenset(ids[name] for name in listed)

    def __reduce__(self) -> Any:
        return type(self), (self._files[0], self.family, self.vocab_size)

    def _find(self, name: str) -> int:
        index = self._pieces.find(name)
        if index is None:
            raise ValueError(f"a SentencePiece model without the piece {name} is no ChatGLM-6B's")
        return index + self._shift

    def _ordinary(self, text: str) -> list[int]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        text = _RUN.sub(lambda run: f"<|blank_{len(run[0])}|>", text)
        return [index + self._shift for index in self._pieces.encode(text)]

    def _wrap(self, ids: list[int], pair: list[int] | None) -> list[int]:
        mask, gmask, sop, eop = self.special.require("mask", "gmask", "sop", "eop")
        if mask not in ids and gmask not in ids:
            ids = [*ids, gmask]
        elif self._v1_0 and ids[-1] not in (mask, gmask):
            ids = [*ids, *self.special.require("eos")]
        return [*ids, sop, *([] if pair is None else [*pair, eop])]

    def _stream(self) -> Stream:
        stream = PieceStream(self._pieces, {}, shift=self._shift)
        filters = [Replace(_WHITESPACE)] if self._v1_0 else [Replace(_WHITESPACE), CleanUp()]
        return Filtered(stream, *filters)

    def token_bytes(self, index: int) -> bytes:
        self._check(index)
        token = self._pieces.token_bytes(index - self._shift)
        marker = token.decode("utf-8", "ignore")
        return _WHITESPACE[marker].encode() if marker in _WHITESPACE else token


class ChatGLM2Tokenizer(BaseTokenizer):
    """ChatGLM2-6B: special tokens behind the model's pieces, and invisible when decoded.

    ``encode`` gives ``[gMASK] sop text``, and for a pair ``[gMASK] sop text pair </s>``. Every text
    comes back as it was, but for U+2581, SentencePiece's own sign for a blank.

    Args:
      model: the bytes of ``tokenizer.model``.

    Raises:
      ValueError: they are no SentencePiece model, or vocab_size is too small.
    """

    names: ClassVar[tuple[str, ...]] = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
    # "sop" is part of English words: the release never reads these in a text.
    parsed: ClassVar[frozenset[str] | None] = frozenset()
    default_family: ClassVar[str] = "chatglm2-6b"
    literal: ClassVar[bool] = False

    def __init__(self, model: bytes, family: str | None = None, vocab_size: int | None = None):
        self._pieces = PieceModel(model)
        n = len(self._pieces)
        ids = {name: n + i for i, name in enumerate(self.names)}
        bos, eos, pad = (self._find(name) for name in ("<s>", "</s>", "<unk>"))
        special = SpecialTokens(
            pad=pad, eos=eos, mask=n, gmask=n + 1, smask=n + 2, sop=n + 3, eop=n + 4
        )
        all_ids = {**ids, "<bos>": bos, "<eos>": eos, "<pad>": pad}
        used = n + len(self.names)
        super().__init__([model], family or self.default_family, special, all_ids, used, vocab_size)
        self.skipped = frozenset({eos, pad})
        self._literal = {index: name for name, index in ids.items()} if self.literal else {}

    def __reduce__(self) -> Any:
        return type(self), (self._files[0], self.family, self.vocab_size)

    def _find(self, name: str) -> int:
        index = self._pieces.find(name)
        if index is None:
            raise ValueError(f"a SentencePiece model without the piece {name} is no ChatGLM's")
        return index

    def _ordinary(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def _wrap(self, ids: list[int], pair: list[int] | None) -> list[int]:
        gmask, sop, eos = self.special.require("gmask", "sop", "eos")
        return [gmask, sop, *ids, *([] if pair is None else [*pair, eos])]

    def _stream(self) -> PieceStream:
        return PieceStream(self._pieces, self._literal, unknown="")

    def token_bytes(self, index: int) -> bytes:
        self._check(index)
        return self._pieces.token_bytes(index)


class ChatGLM3Tokenizer(ChatGLM2Tokenizer):
    """ChatGLM3-6B: ChatGLM2's pieces and four role tokens; special tokens are written out.

    With ``allow_special`` the role tokens in a text are read, as the release does with
    ``encode_special_tokens``. The release leaves its special tokens in the text even with
    ``skip_special_tokens``, and so does this.
    """

    names = (*ChatGLM2Tokenizer.names, *ROLES)
    parsed = frozenset(ROLES)
    default_family = "chatglm3-6b"
    literal = True
