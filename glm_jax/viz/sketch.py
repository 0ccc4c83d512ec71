"""One row of tokens with names to draw it by, laid out by the code that lays out real prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from glm_jax.config import GLMConfig
from glm_jax.text.layout import LaidOut, lay_out, stack_rows
from glm_jax.text.tokenizer import Tokenizer

_ROLES = {
    "[CLS]": "cls", "[SEP]": "sep", "[MASK]": "mask", "[sMASK]": "smask", "[gMASK]": "gmask",
    "sop": "sop", "eop": "eop", "eos": "eos",
}  # fmt: skip


class Sketch(NamedTuple):
    """T tokens: what to write beside them, where they stand, whom they see."""

    words: tuple[str, ...]
    positions: Int[np.ndarray, "2 T"]
    k_start: Int[np.ndarray, " T"]
    k_end: Int[np.ndarray, " T"]

    @property
    def seen(self) -> Bool[np.ndarray, "T T"]:
        """Whether the query of a row sees the key of a column."""
        return seen(self.k_start, self.k_end)

    @property
    def in_part_b(self) -> Bool[np.ndarray, " T"]:
        return self.positions[1] > 0


def seen(k_start: Int[np.ndarray, " T"], k_end: Int[np.ndarray, " T"]) -> Bool[np.ndarray, "T T"]:
    """The matrix that two key ranges stand for."""
    keys = np.arange(len(k_start))
    return (keys >= k_start[:, None]) & (keys < k_end[:, None])


def sketch(config: GLMConfig, text: str) -> Sketch:
    """A prompt in words, such as ``"[CLS] the cat [MASK] eos sop sat"``, as the model reads it.

    Args:
      text: words between blanks; ``[CLS] [SEP] [MASK] [sMASK] [gMASK] sop eop eos`` are the
        family's own ids, each other word is some ordinary one.

    Raises:
      ValueError: the vocabulary lacks one of those.
      UserError: the prompt breaks the family's rule.
    """
    words = text.split()
    taken = {i for i in vars(config.special).values() if i is not None}
    ordinary = (i for i in range(config.vocab_size) if i not in taken)
    ids = [
        config.special.require(_ROLES[word])[0] if word in _ROLES else next(ordinary)
        for word in words
    ]
    return sketch_row(lay_out(ids, config), words)


def sketch_ids(config: GLMConfig, tokenizer: Tokenizer, ids: Sequence[int]) -> Sketch:
    """A prompt of ids with the tokenizer's own pieces."""
    names = {i: name for name, i in tokenizer.special_ids.items()}
    words = [names.get(i) or tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
    return sketch_row(lay_out(ids, config), [_visible(word) for word in words])


def sketch_row(row: LaidOut, words: Sequence[str]) -> Sketch:
    """A row that is laid out already."""
    rows = stack_rows([row])
    return Sketch(tuple(words), row.positions, rows.k_start[0], rows.k_end[0])


def sketch_packed(row: Mapping[str, np.ndarray], words: Sequence[str]) -> Sketch:
    """A training row, which holds several examples (``glm_jax.data.Packer``), up to its padding."""
    used = int((row["k_end"] > 0).sum())
    start, end = row["k_start"][:used], row["k_end"][:used]
    return Sketch(tuple(words[:used]), row["positions"][:, :used], start, end)


def _visible(word: str) -> str:
    return word.replace("\n", "↵").strip() or "␣"
