"""Labelled texts and blanks as rows: what the network reads, and where it is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glm_jax.config import GLMConfig
from glm_jax.data.tasks.cloze import Cloze
from glm_jax.errors import UserError
from glm_jax.text.classify import lay_out_text
from glm_jax.text.fill import part_a
from glm_jax.text.layout import LaidOut, lay_out
from glm_jax.text.tokenizer import Tokenizer


class Labelled(NamedTuple):
    """A text, and the index of its class."""

    row: LaidOut
    label: int


class Choice(NamedTuple):
    """A row per candidate; ``answers[c]`` stand in row c, each predicted one slot before it."""

    rows: list[LaidOut]
    answers: list[list[int]]
    cloze: Cloze


def labelled(
    text: str, label: int, tokenizer: Tokenizer, config: GLMConfig, seq_len: int
) -> Labelled:
    """A text of at most ``seq_len`` ids, cut at its end; GLM's keeps the id that ends it."""
    ids = tokenizer.encode(text)
    if len(ids) > seq_len:
        ids = [*ids[: seq_len - 1], ids[-1]] if config.prefix_lm else ids[:seq_len]
    return Labelled(lay_out_text(ids, config), label)


def choice(cloze: Cloze, tokenizer: Tokenizer, config: GLMConfig, seq_len: int) -> Choice:
    """A blank with each of its candidates in place.

    Where every candidate is one token, that alone is scored; longer ones are scored with the eop
    that ends them (THUDM/GLM tasks/superglue/finetune.py).

    Raises:
      UserError: a candidate leaves no room for the text, or the model fills no blanks.
    """
    answers = candidates(cloze, tokenizer, config)
    longest = max(map(len, answers))
    prompt = _prompt(cloze.text, tokenizer, config, seq_len - longest + 1)
    rows = [lay_out([*prompt, *answer[:-1]], config) for answer in answers]
    return Choice(rows, answers, cloze)


def candidates(cloze: Cloze, tokenizer: Tokenizer, config: GLMConfig) -> list[list[int]]:
    """The ids of each candidate that are scored."""
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in cloze.answers]
    if not config.prefix_lm or all(len(ids) == 1 for ids in encoded):
        return encoded
    (eop,) = tokenizer.special.require("eop")
    return [[*ids, eop] for ids in encoded]


def _prompt(text: str, tokenizer: Tokenizer, config: GLMConfig, most: int) -> list[int]:
    if not config.prefix_lm:
        if "[MASK]" in text:
            raise UserError("this model reads from left to right and fills no blanks; GLM does")
        ids = tokenizer.encode(text)
        start = len(ids) - len(tokenizer.encode(text, add_special_tokens=False))
        if most <= start:
            raise UserError(f"a candidate leaves {most} tokens for its text")
        return ids if len(ids) <= most else [*ids[:start], *ids[len(ids) - most + start :]]
    ids = part_a(tokenizer, text if "MASK]" in text else f"{text} [MASK]")
    return [*_around_blank(ids, tokenizer, most - 1), *tokenizer.special.require("sop")]


def _around_blank(ids: Sequence[int], tokenizer: Tokenizer, most: int) -> list[int]:
    """Part A cut on the side where more of it stands; what opens, is the blank, and ends stays."""
    over = len(ids) - most
    if over <= 0:
        return list(ids)
    blank = next(i for i, token in enumerate(ids) if token in tokenizer.special.masks())
    before, behind = blank - 1, len(ids) - blank - 2
    if over > before + behind:
        raise UserError(f"a candidate leaves {most} tokens for its text")
    left = min(before, max(over if before >= behind else 0, over - behind))
    right = over - left
    return [ids[0], *ids[1 + left : len(ids) - 1 - right], ids[-1]]


class Shape(NamedTuple):
    """Of a batch: candidates, slots of a row, and scored ids of a candidate."""

    choices: int
    length: int
    answer: int


def choice_arrays(example: Choice, shape: Shape, penalty: float) -> dict[str, np.ndarray]:
    """One example as arrays; candidates and ids that are not there weigh nothing."""
    arrays = row_arrays(example.rows, shape)
    slots, answers = (np.zeros((shape.choices, shape.answer), np.int32) for _ in range(2))
    weights = np.zeros((shape.choices, shape.answer), np.float32)
    valid = np.arange(shape.choices) < len(example.rows)
    for c, (row, ids) in enumerate(zip(example.rows, example.answers, strict=True)):
        n, end = len(ids), len(row.tokens)
        slots[c, :n], answers[c, :n] = np.arange(end - n, end), ids
        weights[c, :n] = 1 / n**penalty
    cloze = example.cloze
    label = np.array(cloze.label, np.int32)
    credit, overlap = (np.zeros(shape.choices, np.float32) for _ in range(2))
    n = len(cloze.answers)
    credit[:n] = cloze.credit or np.arange(n) == label
    overlap[:n] = cloze.overlap or credit[:n]
    scored = {"slots": slots, "answers": answers, "answer_weights": weights}
    worth = {"credit": credit, "overlap": overlap, "label": label}
    return {**arrays, **scored, "valid": valid, **worth}


def row_arrays(rows: Sequence[LaidOut], shape: Shape) -> dict[str, np.ndarray]:
    """Rows as the network takes them, [C, T]; k_start is 0 everywhere."""
    tokens, k_end = (np.zeros((shape.choices, shape.length), np.int32) for _ in range(2))
    positions = np.zeros((shape.choices, 2, shape.length), np.int32)
    lengths = np.ones(shape.choices, np.int32)
    for c, row in enumerate(rows):
        n = len(row.tokens)
        tokens[c, :n], positions[c, :, :n], lengths[c] = row.tokens, row.positions, n
        k_end[c, :n] = np.maximum(np.arange(1, n + 1), row.sep)
    return {"tokens": tokens, "positions": positions, "k_end": k_end, "lengths": lengths}
