"""Filling the blanks of a text: what GLM was trained to do, for people."""

from __future__ import annotations

import re
from typing import Any

from glm_jax.errors import UserError
from glm_jax.nn import GLM
from glm_jax.text.generate import generate
from glm_jax.text.prepare import prepare
from glm_jax.text.tokenizer import Tokenizer

_BLANK = re.compile(r"\[(MASK|sMASK|gMASK)\]")


def fill(model: GLM, tokenizer: Tokenizer, text: str, **options: Any) -> str:
    """The text with what the model puts into its blanks.

    >>> glm_jax.fill(model, tok, "Ng is an adjunct professor at [MASK] (formerly [MASK]).")

    ``[MASK]`` stands for some words, ``[sMASK]`` for a sentence, ``[gMASK]`` for the rest of the
    text. Several blanks of one kind are filled from left to right, each with those before it in
    view (GLM paper, section 2.1).

    Args:
      options: of ``glm_jax.generate``; ids that stand for nothing are never chosen.

    Raises:
      UserError: there is no blank, there are two kinds, or the model fills none.
    """
    answers = fill_blanks(model, tokenizer, text, **options)
    pieces = _BLANK.split(text)[::2]  # the odd ones are the blanks' kinds
    filled = (a + piece for a, piece in zip(answers, pieces[1:], strict=True))
    return pieces[0] + "".join(filled)


def fill_blanks(model: GLM, tokenizer: Tokenizer, text: str, **options: Any) -> list[str]:
    """What the model puts into each blank, in order; arguments as ``fill``.

    Raises:
      UserError: as ``fill``.
    """
    config = model.config
    if not config.prefix_lm:
        raise UserError(f"{config.name or 'this model'} reads text from left to right and fills no "
                        "blanks; GLM and ChatGLM-6B do")  # fmt: skip
    kinds = _BLANK.split(text)[1::2]
    if not kinds:
        raise UserError("the text has no blank; write [MASK], [sMASK] or [gMASK] where one is")
    if len(kinds) > 1 and config.position != "learned":
        raise UserError(f"ChatGLM-6B fills one blank at a time; this text has {len(kinds)}")
    if options.get("num_samples", 1) > 1:
        raise UserError("fill gives one text; call it again with another seed")
    options.setdefault("vocab_limit", tokenizer.used)
    (sop,) = config.special.require("sop")
    before = part_a(tokenizer, text)
    ids: list[int] = []
    answers: list[str] = []
    model = prepare(model) if len(kinds) > 1 else model
    for _ in kinds:
        ids += [sop]
        [piece] = generate(model, [before + ids], **options)
        ids += piece
        answers.append(tokenizer.decode(piece, skip_special_tokens=True).strip())
    return answers


def part_a(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text with its blanks as the released tokenizer lays it out, up to where sop stands."""
    ids = tokenizer.encode_blanks(text)
    sop = tokenizer.special.sop
    return ids[: ids.index(sop)] if sop in ids else ids
