"""Prompts to be answered, those that leave room for an answer, by index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from glm_jax.chat import Message, render
from glm_jax.data.finetune.loader import Split, open_split
from glm_jax.data.preference.forms import Question, QuestionReader
from glm_jax.data.preference.lengths import fitting
from glm_jax.data.preference.options import PreferenceData
from glm_jax.errors import UserError
from glm_jax.text.tokenizer import Tokenizer


class Prompt(NamedTuple):
    """A prompt as ids, what was asked, and what is right."""

    ids: list[int]
    messages: list[Message]
    tools: Sequence[Mapping[str, Any]] | None
    answer: str | None
    place: str

    @property
    def text(self) -> str:
        """What the user said last."""
        return self.messages[-1].content


class Questions:
    """``len(questions)``, ``questions[i] -> Prompt``.

    Args:
      most: ids of the longest prompt.

    Raises:
      UserError: no such file, a line is bad, or nothing fits; the message names file and line.
    """

    def __init__(
        self,
        options: PreferenceData,
        tokenizer: Tokenizer,
        chat_format: str,
        *,
        split: Split,
        most: int,
    ):
        self._tokenizer, self._format = tokenizer, chat_format
        records = open_split(options, split, QuestionReader(options))
        lengths = np.array([len(self._prompt(records[i]).ids) for i in range(len(records))])
        self._records = records.only(fitting(records, lengths, most, options.too_long))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Prompt:
        return self._prompt(self._records[index])

    def _prompt(self, record) -> Prompt:
        said = record.content
        assert isinstance(said, Question)
        try:
            ids = render(said.messages, self._tokenizer, format=self._format, tools=said.tools)
        except UserError as error:
            raise UserError(f"{record.place}: {error}") from None
        return Prompt(ids, said.messages, said.tools, said.answer, record.place)
