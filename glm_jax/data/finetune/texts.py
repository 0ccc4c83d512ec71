"""Plain text to go on pretraining with: blanks to fill, or from left to right."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from glm_jax.config import GLMConfig
from glm_jax.data.layout import Example
from glm_jax.data.objectives import INFILLING_PRESETS, Infilling
from glm_jax.data.stream import Recipe, SampleId
from glm_jax.errors import UserError
from glm_jax.text.layout import lay_out
from glm_jax.text.tokenizer import Tokenizer

_FILL = 24  # empty slots of a row that are worth filling with a piece of a long document


@dataclasses.dataclass(frozen=True)
class Causal:
    """A text read from left to right: ``[gMASK] sop text eos``, every token of it predicted.

    A text longer than a row goes on in the next, behind ``[gMASK] sop`` again: what ChatGLM2 and
    later models begin with.
    """

    tokenizer: Tokenizer
    config: GLMConfig
    seq_len: int

    @property
    def _start(self) -> tuple[int, ...]:
        return self.tokenizer.special.require("gmask", "sop")

    def document(self, text: str) -> Int[np.ndarray, "n"]:
        """Tokens of a document and its end; nothing for a blank text."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return np.array([*ids, *self.tokenizer.special.require("eos")] if ids else [], np.int32)

    def cut(
        self, document: Int[np.ndarray, "n"], position: int, begin: int, free: Sequence[int]
    ) -> int:
        """Where the sample that begins here ends: where a waiting row, or a new one, is full."""
        del position
        most = self.seq_len - len(self._start) + 1
        if begin + most >= len(document):
            return len(document)
        gap = max((n for n in free if n >= _FILL), default=self.seq_len)
        return begin + gap - len(self._start) + 1

    def example(self, document: Int[np.ndarray, "n"], sample: SampleId) -> tuple[Example, int]:
        ids = np.array([*self._start, *document[sample[1] : sample[2]]], np.int32)
        row = lay_out(ids[:-1], self.config)
        weights = np.ones(len(ids) - 1, np.float32)
        weights[: len(self._start) - 1] = 0
        return Example(row.tokens, ids[1:], weights, row.positions, row.sep), 0


TextRecipe = Recipe | Causal


def text_recipe(
    tokenizer: Tokenizer, config: GLMConfig, infilling: str, seq_len: int, seed: int
) -> TextRecipe:
    """Blank infilling for models that read Part A as a whole, causal for the others.

    Raises:
      UserError: the recipe is unknown.
    """
    if not config.prefix_lm:
        return Causal(tokenizer, config, seq_len)
    if infilling not in INFILLING_PRESETS:
        raise UserError(f"infilling {infilling!r} is not one of {', '.join(INFILLING_PRESETS)}")
    return Recipe(tokenizer, _possible(INFILLING_PRESETS[infilling], tokenizer), seq_len, seed)


def _possible(infilling: Infilling, tokenizer: Tokenizer) -> Infilling:
    """Without the objective whose mask the vocabulary lacks (ChatGLM-6B has no [sMASK])."""
    if tokenizer.special.smask is not None or not infilling.task_mask:
        return infilling
    return dataclasses.replace(infilling, mask=infilling.mask + infilling.smask, smask=0.0)
