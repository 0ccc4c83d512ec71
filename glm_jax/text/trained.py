"""The tokenizer that this library trains: SentencePiece with GLM's command tokens behind it."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from glm_jax.special import SpecialTokens
from glm_jax.text.base import BaseTokenizer
from glm_jax.text.decoding import PieceStream
from glm_jax.text.pieces import PieceModel

MODEL_FILE = "tokenizer.model"
META_FILE = "tokenizer.json"
KIND = "sentencepiece"
NUM_COMMANDS = 11  # n .. n+10, see ``command_tokens``
COMMAND_NAMES = {
    "eos": "<|endoftext|>", "sep": "[SEP]", "cls": "[CLS]", "mask": "[MASK]", "unk": "[UNK]",
    "sop": "<|startofpiece|>", "eop": "<|endofpiece|>", "smask": "[sMASK]", "gmask": "[gMASK]",
    "dblock": "[dBLOCK]",
}  # fmt: skip


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


def command_ids(special: SpecialTokens) -> dict[str, int]:
    """GLM's names of the command tokens that a vocabulary has."""
    ids = vars(special)
    return {name: ids[role] for role, name in COMMAND_NAMES.items() if ids[role] is not None}


class SentencePieceTokenizer(BaseTokenizer):
    """A SentencePiece model with GLM's command tokens behind its pieces.

    Command tokens are invisible when decoding; with the special tokens, a text is
    ``[CLS] text <|endoftext|>``, as in the released GLMs.

    Args:
      model: the bytes of a ``.model`` file.
      special: ids of the command tokens; default ``command_tokens(number of pieces)``.
      vocab_size: the padded vocabulary; default the next multiple of 128 that holds every id.

    Raises:
      ValueError: vocab_size is too small, or model is no SentencePiece model.
    """

    strip_chars = " \t"

    def __init__(
        self, model: bytes, special: SpecialTokens | None = None, vocab_size: int | None = None
    ):
        self._pieces = PieceModel(model)
        self.num_pieces = len(self._pieces)
        special = special or command_tokens(self.num_pieces)
        commands = [i for i in vars(special).values() if i is not None]
        used = max(self.num_pieces, *(i + 1 for i in commands))
        super().__init__([model], "trained", special, command_ids(special), used, vocab_size)

    def __reduce__(self) -> Any:
        return type(self), (self._files[0], self.special, self.vocab_size)

    @functools.cached_property
    def fingerprint(self) -> str:
        # Stored with training checkpoints, so its form stays.
        key = self._files[0] + repr((self.special, self.vocab_size)).encode()
        return hashlib.sha256(key).hexdigest()[:16]

    def _ordinary(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def _wrap(self, ids: list[int], pair: list[int] | None) -> list[int]:
        if pair is not None:
            raise ValueError("a GLM joins no pairs: encode one text, with the blank where it is")
        cls, eos = self.special.require("cls", "eos")
        return [cls, *ids, eos]

    def _stream(self) -> PieceStream:
        return PieceStream(self._pieces, {}, unknown="\N{REPLACEMENT CHARACTER}", per_byte=False)

    def token_bytes(self, index: int) -> bytes:
        """The UTF-8 bytes that one id stands for, possibly part of a character."""
        self._check(index)
        return self._pieces.token_bytes(index)

    def save(self, directory: str | Path) -> None:
        """Writes ``tokenizer.model`` and ``tokenizer.json`` into an existing directory."""
        directory, model = Path(directory), self._files[0]
        (directory / MODEL_FILE).write_bytes(model)
        meta = {
            "kind": KIND,
            "vocab_size": self.vocab_size,
            "special": vars(self.special),
            "model_sha256": hashlib.sha256(model).hexdigest(),
        }
        (directory / META_FILE).write_text(json.dumps(meta, indent=2) + "\n")
