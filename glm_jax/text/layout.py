"""A prompt's ids as a model reads them: positions and visible keys by the family's own rule.

A prompt is what the released tokenizers give, specials included. ChatGLM2, ChatGLM3 and GLM-4 read
it causally. GLM and ChatGLM-6B see what comes before sop (Part A) as a whole, sop and what follows
(Part B) causally, Part B standing at the position of its blank::

    GLM         [CLS] x  [MASK] y  eos sop a  b        ChatGLM-6B   x  y  [gMASK] sop a  b
    position      0   1    2    3   4   2  2  2                     0  1     2     2  2  2
    block         0   0    0    0   0   1  2  3                     0  0     0     1  2  3

Sources: THUDM/GLM tasks and generate_samples.py; get_masks and get_position_ids of the released
modeling_chatglm.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from glm_jax.config import GLMConfig
from glm_jax.errors import UserError

_ROLES = {"mask": "[MASK]", "smask": "[sMASK]", "gmask": "[gMASK]"}


class LaidOut(NamedTuple):
    """One row of T tokens, the first ``sep`` of which are Part A (0: the row is causal)."""

    tokens: Int[np.ndarray, " T"]
    positions: Int[np.ndarray, "2 T"]
    sep: int
    anchor: int | None
    """Where the tokens after this row stand; None: each one place further."""

    def following(self, count: int) -> Int[np.ndarray, "2 N"]:
        """Positions of ``count`` more tokens."""
        steps = np.arange(1, count + 1, dtype=np.int32)
        length = len(self.tokens)
        place = length - 1 + steps if self.anchor is None else np.full_like(steps, self.anchor)
        block = self.positions[1, -1] + steps if self.sep else np.zeros_like(steps)
        return np.stack([place, block])


class Rows(NamedTuple):
    """Rows of unequal length, padded on the right, as the network takes them."""

    tokens: Int[np.ndarray, "B T"]
    positions: Int[np.ndarray, "B 2 T"]
    k_start: Int[np.ndarray, "B T"]
    k_end: Int[np.ndarray, "B T"]
    lengths: Int[np.ndarray, " B"]


def lay_out(ids: Sequence[int] | Int[np.ndarray, " T"], config: GLMConfig) -> LaidOut:
    """One prompt, checked and laid out.

    Raises:
      UserError: it is empty, has an id outside the vocabulary, is longer than the model's
        positions, or breaks the family's rule; the message says what and where.
    """
    tokens = check_ids(ids, config.vocab_size)
    length = len(tokens)
    if config.prefix_lm:
        row = _with_part_b(tokens, config)
    else:
        positions = np.stack([np.arange(length), np.zeros(length)]).astype(np.int32)
        row = LaidOut(tokens, positions, 0, None)
    _check_reach(row, config)
    return row


def lay_out_answer(prompt: Sequence[int], answer: Sequence[int], config: GLMConfig) -> LaidOut:
    """A prompt and what a model wrote behind it, as it stood when it was written.

    An answer may hold any id, a blank or a sop too; there they open nothing.

    Raises:
      UserError: as ``lay_out``.
    """
    row, ids = lay_out(prompt, config), check_ids(answer, config.vocab_size)
    positions = np.concatenate([row.positions, row.following(len(ids))], axis=1)
    whole = row._replace(tokens=np.concatenate([row.tokens, ids]), positions=positions)
    _check_reach(whole, config)
    return whole


def _check_reach(row: LaidOut, config: GLMConfig) -> None:
    learned, length = config.position == "learned", len(row.tokens)
    # A learned table ends; a rotary model was trained up to max_seq_len, its released code up to
    # ChatGLM3 and GLM-4 has no table beyond it either.
    reach = int(row.positions.max()) if learned else length - 1
    most = config.max_seq_len if learned else config.max_seq_len - 1
    if reach > most:
        raise UserError(
            f"{length} tokens reach position {reach}, but this model's positions end at {most} "
            f"(max_seq_len {config.max_seq_len})"
        )


def stack_rows(rows: Sequence[LaidOut], length: int | None = None) -> Rows:
    """Pads rows on the right to ``length`` (the longest row by default); padding sees nothing."""
    lengths = np.array([len(row.tokens) for row in rows], np.int32)
    width = int(lengths.max()) if length is None else length
    tokens = np.zeros((len(rows), width), np.int32)
    positions = np.zeros((len(rows), 2, width), np.int32)
    k_end = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        size = lengths[i]
        tokens[i, :size] = row.tokens
        positions[i, :, :size] = row.positions
        k_end[i, :size] = np.maximum(np.arange(1, size + 1), row.sep)
    return Rows(tokens, positions, np.zeros_like(k_end), k_end, lengths)


def check_ids(ids: Sequence[int] | Int[np.ndarray, " T"], vocab_size: int) -> np.ndarray:
    """The ids as int32.

    Raises:
      UserError: there are none, or one is no id of the vocabulary.
    """
    array = np.asarray(ids)
    if array.size == 0:
        raise UserError("the prompt is empty; it needs at least one id")
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        shown = np.array2string(array, threshold=4, edgeitems=2)
        raise UserError(f"a prompt is a list of ids (whole numbers), not {shown}")
    outside = np.flatnonzero((array < 0) | (array >= vocab_size))
    if outside.size:
        at = int(outside[0])
        raise UserError(
            f"id {array[at]} at place {at} is outside the vocabulary (0 to {vocab_size - 1})"
        )
    return array.astype(np.int32)


def _with_part_b(tokens: np.ndarray, config: GLMConfig) -> LaidOut:
    special = config.special
    if special.sop is None or not special.masks():
        raise UserError(
            "the config does not say which ids are sop and the mask tokens (config.special), and "
            "this model cannot read a prompt without them"
        )
    sops = np.flatnonzero(tokens == special.sop)
    if not sops.size:
        raise UserError(
            f"there is no sop (id {special.sop}) among the {len(tokens)} ids; this model reads "
            "a prompt up to sop and continues after it"
        )
    sep = int(sops[0])
    blanks = _blanks(tokens[:sep], config)
    length = len(tokens)
    positions = np.stack([np.arange(length), np.zeros(length)]).astype(np.int32)
    if config.position == "learned":
        return _pieces(tokens, positions, sops, blanks, config)
    blank = blanks[0]
    positions[1, sep:] = np.arange(1, length - sep + 1)
    is_gmask = int(tokens[blank]) == special.gmask
    if is_gmask and not config.rope_2d:
        # The one-row form of ChatGLM-6B has nothing but this row to tell the text's order by.
        return LaidOut(tokens, positions, sep, None)
    # Version 1.0 leaves sop itself where it stands; what follows goes to the blank all the same.
    first_version = special.eop != special.eos
    positions[0, sep + (is_gmask and first_version) :] = blank
    return LaidOut(tokens, positions, sep, blank)


def _blanks(part_a: np.ndarray, config: GLMConfig) -> list[int]:
    """Places of the blanks in Part A, all of one kind.

    Raises:
      UserError: there is none, or there are two kinds: the released code takes the one or the other
        (its model [gMASK], its tokenizer [MASK]).
    """
    ids = {role: getattr(config.special, role) for role in _ROLES}
    known = ", ".join(f"{_ROLES[role]} {i}" for role, i in ids.items() if i is not None)
    found = [at for at, token in enumerate(part_a.tolist()) if token in ids.values()]
    if not found:
        raise UserError(
            f"there is no mask token before sop (place {len(part_a)}); this model fills one of "
            f"{known}"
        )
    first = int(part_a[found[0]])
    other = next((at for at in found if int(part_a[at]) != first), None)
    if other is not None:
        raise UserError(
            f"there are two different mask tokens before sop: id {first} at place {found[0]} and "
            f"id {part_a[other]} at place {other}; keep one kind of {known}"
        )
    return found


def _pieces(
    tokens: np.ndarray,
    positions: np.ndarray,
    sops: np.ndarray,
    blanks: list[int],
    config: GLMConfig,
) -> LaidOut:
    """GLM's Part B: every sop opens the piece that fills the next blank."""
    if len(sops) > len(blanks):
        raise UserError(
            f"there are {len(sops)} sop (id {config.special.sop}; the last at place {sops[-1]}) "
            f"for {len(blanks)} mask token(s); each sop fills one"
        )
    ends = [*sops[1:].tolist(), len(tokens)]
    for start, end, blank in zip(sops.tolist(), ends, blanks, strict=False):
        positions[0, start:end] = blank
        positions[1, start:end] = np.arange(1, end - start + 1)
    return LaidOut(tokens, positions, int(sops[0]), blanks[len(sops) - 1])
