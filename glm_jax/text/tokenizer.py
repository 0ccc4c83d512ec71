"""Tokenizers: text to ids and back. The command tokens are ids that no text can produce."""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece as spm
from jaxtyping import Bool

from glm_jax.errors import UserError
from glm_jax.special import SpecialTokens

MODEL_FILE = "tokenizer.model"
META_FILE = "tokenizer.json"
NUM_COMMANDS = 11  # n .. n+10, see ``command_tokens``
VOCAB_MULTIPLE = 128
# Spec of the sentence objective (THUDM/GLM blocklm_utils.py): ASCII marks and the full-width ones.
SENTENCE_MARKS = (".", "?", "!", ";", ":", "\n", "。", "？", "！", "；", "…")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a blank
# A blank swallows the blanks before it (THUDM/GLM: mask tokens are stripped on the left).
_BLANK = re.compile(r"[ \t]*\[(MASK|sMASK|gMASK)\]")


class Tokenizer(Protocol):
    """What the rest of the library asks of a tokenizer."""

    special: SpecialTokens

    @property
    def vocab_size(self) -> int: ...

    @property
    def sentence_ends(self) -> Bool[np.ndarray, "V"]: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_blanks(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def command_tokens(num_pieces: int) -> SpecialTokens:
    """GLM's command tokens behind n pieces, in the order of GLM-Large-Chinese's vocabulary.

    n <|endoftext|> (also the padding), n+1 [SEP], n+2 [CLS], n+3 [MASK], n+4 [UNK], n+5 unused,
    n+6 <|startofpiece|>, n+7 <|endofpiece|>, n+8 [sMASK], n+9 [gMASK], n+10 [dBLOCK].
    """
    n = num_pieces
    return SpecialTokens(
        pad=n, eos=n, sep=n + 1, cls=n + 2, mask=n + 3, unk=n + 4,
        sop=n + 6, eop=n + 7, smask=n + 8, gmask=n + 9, dblock=n + 10,
    )  # fmt: skip


class SentencePieceTokenizer:
    """A SentencePiece model with GLM's command tokens behind its pieces.

    Args:
      model: the bytes of a ``.model`` file.
      special: ids of the command tokens; default ``command_tokens(number of pieces)``.
      vocab_size: the padded vocabulary; default the next multiple of 128 that holds every id.

    Raises:
      ValueError: vocab_size is too small, or model is no SentencePiece model.
    """

    def __init__(
        self, model: bytes, special: SpecialTokens | None = None, vocab_size: int | None = None
    ):
        self._model = model
        try:
            self._sp = spm.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"{len(model)} bytes that are no SentencePiece model") from error
        self.num_pieces = self._sp.get_piece_size()
        self.special = special or command_tokens(self.num_pieces)
        used = max(self.num_pieces, self.num_pieces + NUM_COMMANDS if not special else 0)
        padded = -(-used // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        self._vocab_size = vocab_size or padded
        if self._vocab_size < used:
            raise ValueError(f"vocab_size {self._vocab_size} is less than the {used} ids in use")

    def __getstate__(self):
        return self._model, self.special, self._vocab_size

    def __setstate__(self, state):
        self.__init__(*state)

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding: all ids, padded to a multiple of 128."""
        return self._vocab_size

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes whenever some text could be encoded to other ids."""
        key = self._model + repr((self.special, self._vocab_size)).encode()
        return hashlib.sha256(key).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no command tokens are added, and "[MASK]" is six characters."""
        return self._sp.encode(text)

    def encode_blanks(self, text: str) -> list[int]:
        """Ids of a text in which [MASK], [sMASK] and [gMASK] stand for blanks to be filled."""
        ids: list[int] = []
        begin = 0
        for blank in _BLANK.finditer(text):
            ids += self._sp.encode(text[begin : blank.start()])
            ids += self.special.require(blank[1].lower())
            begin = blank.end()
        return ids + self._sp.encode(text[begin:])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; command tokens and padding ids give nothing, a broken character U+FFFD.

        Raises:
          ValueError: an id is outside the vocabulary.
        """
        decoder = IncrementalDecoder(self)
        return decoder.push(ids) + decoder.flush()

    def token_bytes(self, index: int) -> bytes:
        """The UTF-8 bytes that one id stands for, possibly part of a character."""
        if not 0 <= index < self._vocab_size:
            raise ValueError(f"id {index} is outside the vocabulary of {self._vocab_size}")
        return self._bytes[index]

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        table = [b""] * self._vocab_size
        for index in range(self.num_pieces):
            piece = self._sp.id_to_piece(index)
            if self._sp.is_byte(index):
                table[index] = bytes([int(piece[3:5], 16)])  # "<0x0A>"
            elif self._sp.is_unknown(index):
                table[index] = "\N{REPLACEMENT CHARACTER}".encode()
            elif not self._sp.is_control(index):
                table[index] = piece.replace(_SPACE, " ").encode()
        return table

    @functools.cached_property
    def adds_blank(self) -> bool:
        """Whether the model puts a blank before every text (decoding takes it away again)."""
        return self._sp.encode("a", out_type=str)[0].startswith(_SPACE)

    @functools.cached_property
    def sentence_ends(self) -> Bool[np.ndarray, "V"]:
        """Whether a token holds a mark that ends a sentence; spec 1.2, 1.6."""
        marks = [mark.encode() for mark in SENTENCE_MARKS]
        table = self._bytes
        return np.array([any(mark in token for mark in marks) for token in table], bool)

    def save(self, directory: str | Path) -> None:
        """Writes ``tokenizer.model`` and ``tokenizer.json`` into an existing directory."""
        directory = Path(directory)
        (directory / MODEL_FILE).write_bytes(self._model)
        meta = {
            "kind": "sentencepiece",
            "vocab_size": self._vocab_size,
            "special": vars(self.special),
            "model_sha256": hashlib.sha256(self._model).hexdigest(),
        }
        (directory / META_FILE).write_text(json.dumps(meta, indent=2) + "\n")


class IncrementalDecoder:
    """Decodes a stream of ids: a character appears when its last byte has come, and never changes.

    ``"".join(decoder.push([i]) for i in ids) + decoder.flush() == tokenizer.decode(ids)``.
    """

    def __init__(self, tokenizer: SentencePieceTokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.adds_blank

    def push(self, ids: Iterable[int]) -> str:
        """The text that these further ids complete."""
        text = self._utf8.decode(b"".join(self._tokenizer.token_bytes(int(i)) for i in ids))
        if text and self._strip:
            text, self._strip = text.removeprefix(" "), False
        return text

    def flush(self) -> str:
        """What is left at the end: U+FFFD for bytes that make no character."""
        return self._utf8.decode(b"", final=True)


def load_tokenizer(directory: str | Path) -> SentencePieceTokenizer:
    """The tokenizer that ``save`` or ``python -m train.tokenizer`` wrote.

    Raises:
      UserError: a file is missing, damaged or of another kind.
    """
    directory = Path(directory)
    try:
        meta = json.loads((directory / META_FILE).read_text("utf-8"))
        model = (directory / MODEL_FILE).read_bytes()
        if meta["kind"] != "sentencepiece":
            raise UserError(f"{directory / META_FILE}: kind {meta['kind']!r} is not sentencepiece")
        if hashlib.sha256(model).hexdigest() != meta["model_sha256"]:
            raise UserError(f"{directory / MODEL_FILE} is damaged: not what {META_FILE} was for")
        return SentencePieceTokenizer(model, SpecialTokens(**meta["special"]), meta["vocab_size"])
    except FileNotFoundError as error:
        hint = "python -m train.tokenizer makes a tokenizer"
        raise UserError(f"{error.filename} is missing; {hint}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory}: not a readable tokenizer ({error!r})") from error
