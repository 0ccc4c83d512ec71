"""Prompts with answers as rows: rendered as inference renders them, one to a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from glm_jax.chat import Message, render_training
from glm_jax.config import GLMConfig
from glm_jax.text.layout import lay_out_answer, stack_rows
from glm_jax.text.tokenizer import Tokenizer


class Answer(NamedTuple):
    """Ids that a model is given, and ids that it writes, the one that ends them included."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def answer_to(
    messages: Sequence[Message],
    answer: str,
    tokenizer: Tokenizer,
    chat_format: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Answer:
    """The last answer of a conversation behind all that stands before it.

    Raises:
      UserError: the format cannot hold the conversation.
    """
    given = [dataclasses.replace(message, loss=False) for message in messages]
    said = [*given, Message("assistant", answer, loss=True)]
    [text] = render_training(said, tokenizer, format=chat_format, tools=tools)
    start = text.prompt or text.learned.index(True)
    return Answer(text.ids[:start], text.ids[start:])


def answer_rows(answers: Sequence[Answer], config: GLMConfig, length: int) -> dict[str, np.ndarray]:
    """Rows of ``length`` slots, padded on the right.

    Every id is read, the last one too: a reward model scores an answer where it ends. Slot t
    predicts id t + 1 where that belongs to the answer.

    Returns:
      tokens, targets, k_start, k_end [B, T] and positions [B, 2, T] as ``glm_jax.data`` has them;
      loss_weights [B, T]: 1 where a token of the answer is predicted; lengths [B]: ids in a row.

    Raises:
      UserError: an answer is longer than the model's positions.
    """
    laid_out = [lay_out_answer(each.prompt, each.answer, config) for each in answers]
    rows = stack_rows(laid_out, length)
    targets, weights = np.zeros_like(rows.tokens), np.zeros(rows.tokens.shape, np.float32)
    targets[:, :-1] = rows.tokens[:, 1:]
    for i, each in enumerate(answers):
        weights[i, len(each.prompt) - 1 : len(each) - 1] = 1
    return {**rows._asdict(), "targets": targets, "loss_weights": weights}
