"""Pairs for models that fill blanks and have no chat format: the target is what fills a blank.

THUDM/GLM tasks/seq2seq/dataset.py, with ``sop`` given and ``eop`` learned::

    [CLS] source [sMASK] <eos> sop [target eop]
"""

from __future__ import annotations

import re

from glm_jax.chat import TrainingText
from glm_jax.data.finetune.forms import Pair
from glm_jax.errors import UserError
from glm_jax.text.fill import part_a
from glm_jax.text.tokenizer import Tokenizer

_BLANK = re.compile(r"\[(MASK|sMASK|gMASK)\]")


def blank_prompt(tokenizer: Tokenizer, source: str, blank: str = "") -> list[int]:
    """The ids up to the ``sop`` behind which the model fills the source's blank.

    Args:
      blank: where the blank of a source without one is: a text with ``{}`` for the source. Empty:
        behind it, ``[sMASK]`` where the vocabulary has that, else ``[MASK]``.

    Raises:
      UserError: there is no blank in what comes of it, or no ``{}`` in ``blank``.
    """
    if not _BLANK.search(source):
        source = (blank or default_blank(tokenizer)).replace("{}", source)
    if not _BLANK.search(source):
        raise UserError(f"--blank {blank!r} has no blank; write [MASK], [sMASK] or [gMASK] in it")
    return [*part_a(tokenizer, source), *tokenizer.special.require("sop")]


def default_blank(tokenizer: Tokenizer) -> str:
    return "{} [sMASK]" if tokenizer.special.smask is not None else "{} [MASK]"


def blank_text(
    pair: Pair, tokenizer: Tokenizer, blank: str, max_source: int, max_target: int, seq_len: int
) -> tuple[TrainingText, bool]:
    """A pair to learn from, and whether it had to be cut.

    The source is cut at the end, where that leaves its blank; the target keeps its head.

    Args:
      max_source, max_target: ids to keep of the prompt with its sop, and of the target with its
        eop; 0: what fits a row of ``seq_len`` slots, which reads all ids but the last.

    Raises:
      UserError: a blank inside the source leaves no room.
    """
    (eop,) = tokenizer.special.require("eop")
    target = [*tokenizer.encode(pair.target, add_special_tokens=False), eop]
    room = seq_len + 1
    most_target = min(max_target or max(room // 2, room - (max_source or room)), room - 1)
    whole = len(target)
    target = [*target[:-1][: most_target - 1], eop]
    most_source = min(max_source or room, room - len(target))
    source = pair.source
    prompt = blank_prompt(tokenizer, source, blank)
    cut = len(prompt) > most_source or len(target) < whole
    if len(prompt) > most_source:
        if _BLANK.search(source):
            raise UserError(
                f"{len(prompt)} tokens of a source with its own blank do not fit {most_source}"
            )
        prompt = _shortened(tokenizer, source, blank, most_source)
    learned = [False] * len(prompt) + [True] * len(target)
    return TrainingText([*prompt, *target], learned, len(prompt)), cut


def _shortened(tokenizer: Tokenizer, source: str, blank: str, most: int) -> list[int]:
    """The prompt of as many characters of the source as fit; their number is searched for."""
    low, high = 0, len(source)
    while low < high:
        middle = (low + high + 1) // 2
        if len(blank_prompt(tokenizer, source[:middle], blank)) <= most:
            low = middle
        else:
            high = middle - 1
    prompt = blank_prompt(tokenizer, source[:low], blank)
    if len(prompt) > most:
        raise UserError(f"the {len(prompt)} tokens around a blank do not fit {most}")
    return prompt
