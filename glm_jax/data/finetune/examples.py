"""Conversations to examples: rendered as inference renders them, cut, laid out, weighted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from glm_jax.chat import TrainingText, render_training
from glm_jax.config import GLMConfig
from glm_jax.data.finetune.blanks import blank_text
from glm_jax.data.finetune.forms import Conversation, Pair
from glm_jax.data.finetune.options import FinetuneData
from glm_jax.data.layout import Example
from glm_jax.errors import UserError
from glm_jax.text.layout import lay_out
from glm_jax.text.tokenizer import Tokenizer


def pair_texts(
    pair: Pair, tokenizer: Tokenizer, options: FinetuneData, seq_len: int
) -> list[TrainingText]:
    """The text of a pair for a model without a chat format, as ``conversation_texts``."""
    most = options.max_source_length, options.max_target_length
    text, cut = blank_text(pair, tokenizer, options.blank, *most, seq_len)
    if cut and options.too_long == "raise":
        raise UserError(
            f"source or target are too long for max_source_length {most[0]}, max_target_length "
            f"{most[1]} and seq_len {seq_len}; see too_long"
        )
    return [] if cut and options.too_long == "skip" else [text]


def conversation_texts(
    talk: Conversation, tokenizer: Tokenizer, chat_format: str, options: FinetuneData, seq_len: int
) -> list[TrainingText]:
    """The texts of a conversation that fit a row, cut where the options say so.

    Raises:
      UserError: the format cannot hold the conversation, or it is too long and may not be cut.
    """
    kept = []
    for text in render_training(
        talk.messages, tokenizer, format=chat_format, tools=talk.tools, turns=options.turns
    ):
        short = fit(text, options.max_source_length, options.max_target_length, seq_len)
        if len(short.ids) == len(text.ids):
            kept.append(text)
        elif options.too_long == "raise":
            raise UserError(
                f"{len(text.ids)} tokens are too long: {len(short.ids)} are kept (seq_len "
                f"{seq_len}, max_source_length {options.max_source_length}, max_target_length "
                f"{options.max_target_length}); see too_long"
            )
        elif options.too_long == "cut" and any(short.learned):
            kept.append(short)
    return kept


def fit(text: TrainingText, max_source: int, max_target: int, seq_len: int) -> TrainingText:
    """A text cut as its release cuts it, keeping the head of each part; 0: what fits a row.

    Formats with rounds keep ``max_source`` ids of the prompt and ``max_target`` of the answer. Of
    these ChatGLM-6B counts [gMASK] with the prompt, sop and eop with the answer; ChatGLM2 does not
    count its eos. Formats with role tokens keep ``max_source + max_target + 1`` ids of the whole.
    A row of ``seq_len`` slots reads all ids but the last.
    """
    if not text.prompt:
        whole = max_source + max_target if max_source and max_target else seq_len
        end = min(whole, seq_len) + 1
        return TrainingText(text.ids[:end], text.learned[:end], 0)
    given = text.learned.index(True)
    head, tail = text.ids[:given], text.ids[given:]
    opened = text.prompt - given  # 1: sop is learned, and [gMASK] stands before it
    room = seq_len + opened
    source, target = _rooms(len(head), len(tail) - 1 + opened, max_source, max_target, room)
    head = head[: source - opened] + head[-1:] if opened and len(head) > source else head[:source]
    tail = tail[:-1][: target - opened] + tail[-1:]
    learned = [False] * len(head) + [True] * len(tail)
    return TrainingText(head + tail, learned, len(head) + opened)


def _rooms(
    source: int, target: int, max_source: int, max_target: int, room: int
) -> tuple[int, int]:
    """Ids to keep of a prompt and of an answer of these lengths.

    Where nothing is said, each side may have half of the row, and what the other leaves.
    """
    if not max_target:
        max_target = room - max_source if max_source else max(room // 2, room - source)
    return max_source or max(1, room - min(target, max_target)), max_target


def lay_out_text(text: TrainingText, config: GLMConfig) -> Example:
    """One row: slot t reads id t and predicts id t + 1, where that is learned.

    Raises:
      UserError: it is longer than the model's positions.
    """
    row = lay_out(text.ids[:-1], config)
    targets, weights = np.array(text.ids[1:], np.int32), np.array(text.learned[1:], np.float32)
    return Example(row.tokens, targets, weights, row.positions, row.sep)


def balanced(examples: Sequence[Example]) -> list[Example]:
    """With weights that sum to one over all the examples of a conversation (LongAlign,
    pre_tokenize.py: each weighs one over the number of its targets)."""
    total = sum(float(example.loss_weights.sum()) for example in examples)
    return [e._replace(loss_weights=(e.loss_weights / total).astype(np.float32)) for e in examples]
