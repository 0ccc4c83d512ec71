"""Records to rows: the recipe that ``glm_jax.data.stream`` follows in fine-tuning."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence

import numpy as np

from glm_jax.config import GLMConfig
from glm_jax.data.finetune.examples import (
    balanced,
    conversation_texts,
    lay_out_text,
    pair_texts,
)
from glm_jax.data.finetune.forms import Pair, Text
from glm_jax.data.finetune.options import FinetuneData
from glm_jax.data.finetune.records import Record
from glm_jax.data.finetune.texts import TextRecipe, text_recipe
from glm_jax.data.layout import Example
from glm_jax.data.stream import SampleId
from glm_jax.errors import UserError
from glm_jax.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Document:
    """What a record became: examples, or a text that is cut into them as rows have room."""

    part: int
    samples: Sequence[Example] | np.ndarray
    recipe: TextRecipe | None = None

    def __len__(self) -> int:
        return len(self.samples)


@dataclasses.dataclass(frozen=True)
class FinetuneRecipe:
    """All that turns records into rows, the same for every stream."""

    tokenizer: Tokenizer
    config: GLMConfig
    chat_format: str
    options: FinetuneData
    seq_len: int
    seed: int
    isolate: bool = True

    @property
    def open_rows(self) -> int:
        return self.options.open_rows

    @property
    def share_rows(self) -> bool:
        return self.options.packing

    @property
    def pad(self) -> int:
        special = self.tokenizer.special
        return special.pad if special.pad is not None else special.eos or 0

    @functools.cached_property
    def _texts(self) -> TextRecipe:
        return text_recipe(
            self.tokenizer, self.config, self.options.infilling, self.seq_len, self.seed
        )

    def document(self, record: Record) -> _Document:
        """The examples of a record.

        Raises:
          UserError: it cannot be rendered, or is too long; the message names its place.
        """
        try:
            if isinstance(record.content, Text):
                ids = self._texts.document(record.content.text)
                return _Document(record.part, ids, self._texts)
            return _Document(record.part, self._examples(record))
        except UserError as error:
            if self.options.on_bad == "skip":
                _warn_once(f"skipped: {record.place}: {error}")
                return _Document(record.part, [])
            raise UserError(f"{record.place}: {error}") from None

    def _examples(self, record: Record) -> list[Example]:
        content = record.content
        assert not isinstance(content, Text)
        if isinstance(content, Pair) and not self.chat_format:
            texts = pair_texts(content, self.tokenizer, self.options, self.seq_len)
        else:
            talk = content.conversation() if isinstance(content, Pair) else content
            texts = conversation_texts(
                talk, self.tokenizer, self.chat_format, self.options, self.seq_len
            )
        if not texts:
            _warn_once(f"left out as too long: {record.place}")
        examples = [lay_out_text(text, self.config) for text in texts]
        return balanced(examples) if self.options.balance and examples else examples

    def cut(self, document: _Document, position: int, begin: int, free: Sequence[int]) -> int:
        """Where the sample that begins here ends: an example is whole, a text is cut."""
        if document.recipe is None:
            return begin + 1
        assert isinstance(document.samples, np.ndarray)
        return document.recipe.cut(document.samples, position, begin, free)

    def example(self, document: _Document, sample: SampleId) -> tuple[Example, int] | None:
        """The example of a sample, and the part of the data that it is from."""
        if document.recipe is None:
            example = document.samples[sample[1]]
            assert isinstance(example, Example)
            return example, document.part
        assert isinstance(document.samples, np.ndarray)
        made = document.recipe.example(document.samples, sample)
        if made is None:
            return None
        example = balanced(made[:1])[0] if self.options.balance else made[0]
        return example, document.part


@functools.lru_cache(maxsize=10_000)
def _warn_once(text: str) -> None:
    _log.warning("%s", text)
