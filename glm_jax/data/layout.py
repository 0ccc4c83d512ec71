"""Where tokens go once it is known what to blank out: Part A, Part B, targets, two position rows.

Pure functions of integer arrays, exact to THUDM/GLM (blocklm_utils.py; tasks/data_utils.py for
``layout_cloze`` and ``layout_unidirectional``; tasks/seq2seq/dataset.py for ``layout_seq2seq``).
Targets are aligned with their inputs: slot i of Part B reads ``tokens[i]`` and predicts
``targets[i]``; nothing is shifted later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Ids = Int[np.ndarray, " n"] | Sequence[int]


class Example(NamedTuple):
    """One training example of T tokens, the first ``sep`` of which are Part A."""

    tokens: Int[np.ndarray, " T"]
    targets: Int[np.ndarray, " T"]
    loss_weights: Float[np.ndarray, " T"]
    positions: Int[np.ndarray, "2 T"]
    """Position (a span stands at its mask) and block position (0 in Part A, 1.. in each piece)."""
    sep: int

    @property
    def k_end(self) -> Int[np.ndarray, " T"]:
        """One past the last key each query sees: Part A sees Part A, Part B also its own past."""
        return np.maximum(np.arange(1, len(self.tokens) + 1, dtype=np.int32), self.sep)


def layout_spans(
    tokens: Ids,
    spans: Sequence[tuple[int, int]] | Int[np.ndarray, "m 2"],
    order: Ids,
    *,
    mask_id: int,
    sop_id: int,
    eop_id: int,
    eos_id: int | None = None,
    block_positions: bool = True,
) -> Example:
    """Blanks out spans of a text: the layout of all three objectives (GLM paper, section 2.1).

    For the spans ``x2 x3`` and ``x6``, the second drawn first::

        tokens  C x1 M x4 x5 M x7 x8 E | S x6 S x2 x3
        targets C x1 M x4 x5 M x7 x8 E | x6 P x2 x3 P
        pos     0 1  2 3  4  5 6  7  8 | 5  5 2  2  2
        block   0 0  0 0  0  0 0  0  0 | 1  2 1  2  3

    Args:
      tokens: the text.
      spans: (start, end) half-open, not overlapping, none empty; they may touch.
      order: which span comes first, second, ... in Part B, as indices into ``spans``.
      eos_id: the document's end, which no span may cover; None if the text has none.
      block_positions: count them in each piece; otherwise all of Part B has 1 (an ablation).

    Raises:
      ValueError: spans or order that are not so.
    """
    ids, order = _ints(tokens), _ints(order)
    spans = np.asarray(spans, np.int64).reshape(-1, 2)
    spans, order = _in_text_order(spans, order, len(ids))
    starts, lengths = spans[:, 0], spans[:, 1] - spans[:, 0]
    part_a, mask_at = _blank(ids, starts, lengths, mask_id)
    pieces = lengths[order] + 1
    within = _counts(pieces)
    source = np.repeat(starts[order], pieces) + within
    inputs = np.where(within == 0, sop_id, ids[source - 1])
    blocks = within + 1 if block_positions else np.ones_like(within)
    if eos_id is not None and (inputs == eos_id).any():
        raise ValueError(f"spans {spans.tolist()} cover eos {eos_id}; a span ends before it")
    last = within == np.repeat(lengths[order], pieces)
    targets = np.where(last, eop_id, ids[np.minimum(source, len(ids) - 1)])
    return _join(part_a, inputs, targets, np.repeat(mask_at[order], pieces), blocks)


def layout_suffix(
    tokens: Ids,
    gen_length: int,
    *,
    gmask_id: int,
    sop_id: int,
    loss_mask: Ids | None = None,
    running_positions: bool = False,
    block_positions: bool = True,
) -> Example:
    """Blanks out the end of a text: ``C x1 x2 G | S x3 x4`` predicting ``x3 x4 E``, without eop.

    Args:
      gen_length: tokens to generate, g; the first ``len(tokens) - g`` are the source.
      loss_mask: [n], the text's own; default ones.
      running_positions: GLM-130B's one row: positions run on through Part B.
      block_positions: as in ``layout_spans``.

    Raises:
      ValueError: nothing left on one side, or a loss mask of another length.
    """
    ids = _ints(tokens)
    if not 0 < gen_length < len(ids):
        raise ValueError(f"gen_length is {gen_length}; of {len(ids)} tokens 1 to {len(ids) - 1}")
    source, target = np.split(ids, [len(ids) - gen_length])
    part_a = np.append(source, gmask_id)
    steps = np.arange(gen_length)
    at = len(source) + (1 + steps if running_positions else 0 * steps)
    blocks = steps + 1 if block_positions else np.ones_like(steps)
    example = _join(part_a, np.append(sop_id, target[:-1]), target, at, blocks)
    if loss_mask is not None:
        if len(loss_mask) != len(ids):
            raise ValueError(f"loss_mask has {len(loss_mask)} entries; one for each of {len(ids)}")
        example.loss_weights[example.sep :] = np.asarray(loss_mask)[-gen_length:]
    return example


def layout_cloze(
    text: Ids,
    answer: Ids | None,
    *,
    max_len: int,
    cls_id: int,
    eos_id: int,
    sop_id: int,
    mask_ids: Sequence[int],
) -> Example:
    """A text with a blank and what fills it, padded with eos to ``max_len`` (fine-tuning).

    Without an answer Part B is ``sop`` alone, with weight 1 and target 0: the slot whose logits a
    one-token cloze reads. The answer is cut by nobody here; it holds its own eop.

    Raises:
      ValueError: no blank, or no room.
    """
    part_a = np.append(np.append(cls_id, _ints(text))[: max_len - 1], eos_id)
    masks = np.flatnonzero(np.isin(part_a, list(mask_ids)))
    if not len(masks):
        raise ValueError(f"no blank in {len(part_a)} tokens; one of {list(mask_ids)} is needed")
    targets = np.zeros(1, np.int64) if answer is None else _ints(answer)
    inputs = np.append(sop_id, targets[:-1])
    example = _join(part_a, inputs, targets, np.full(len(inputs), masks[-1]), _from_one(inputs))
    example.targets[: example.sep] = 0
    return _pad(example, max_len, eos_id)


def layout_unidirectional(
    context: Ids, answer: Ids, *, max_len: int, cls_id: int, mask_id: int, sop_id: int, eos_id: int
) -> Example:
    """Scores an answer after a context from left to right: ``C M | S context answer``.

    Raises:
      ValueError: no room.
    """
    text, scored = np.append(_ints(context), _ints(answer)), len(_ints(answer))
    inputs = np.append(sop_id, text[:-1])
    part_a = np.array([cls_id, mask_id])
    example = _join(part_a, inputs, text, np.ones(len(text), int), _from_one(inputs))
    example.loss_weights[: len(example.tokens) - scored] = 0
    example.targets[: len(example.tokens) - scored] = 0
    return _pad(example, max_len, eos_id)


def layout_seq2seq(
    source: Ids,
    target: Ids,
    *,
    source_len: int,
    target_len: int,
    pad_id: int,
    sop_id: int,
    eop_id: int,
    mask_ids: Sequence[int],
) -> Example:
    """Source padded inside Part A to ``source_len`` (its pads stay visible, as trained), then
    ``target eop pad ..`` of ``target_len``, read one slot late behind sop; block positions run on.

    Raises:
      ValueError: no blank in the source, or either side too long.
    """
    source, target = _ints(source), _ints(target)
    if len(source) > source_len or len(target) + 1 > target_len:
        raise ValueError(
            f"{len(source)} + {len(target) + 1} tokens do not fit {source_len} + {target_len}"
        )
    masks = np.flatnonzero(np.isin(source, list(mask_ids)))
    if not len(masks):
        raise ValueError(f"no blank in the source; one of {list(mask_ids)} is needed")
    part_a = np.pad(source, (0, source_len - len(source)), constant_values=pad_id)
    rest = (0, target_len - len(target) - 1)
    targets = np.pad(np.append(target, eop_id), rest, constant_values=pad_id)
    inputs = np.append(sop_id, targets[:-1])
    example = _join(part_a, inputs, targets, np.full(target_len, masks[0]), _from_one(inputs))
    example.targets[:source_len] = 0
    example.loss_weights[source_len + len(target) + 1 :] = 0
    return example


def _ints(x: Ids) -> np.ndarray:
    return np.asarray(x, np.int64)


def _from_one(x: np.ndarray) -> np.ndarray:
    return np.arange(1, len(x) + 1)


def _counts(lengths: np.ndarray) -> np.ndarray:
    """0, 1, .. length - 1 for each length in turn."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _blank(ids, starts, lengths, mask_id) -> tuple[np.ndarray, np.ndarray]:
    """Part A with every span collapsed on one mask, and where those masks stand."""
    kept = np.ones(len(ids), bool)
    kept[np.repeat(starts, lengths) + _counts(lengths)] = False
    kept[starts] = True
    blanked = ids.copy()
    blanked[starts] = mask_id
    return blanked[kept], starts - (np.cumsum(lengths - 1) - (lengths - 1))


def _join(part_a, inputs, targets, positions, blocks) -> Example:
    """Part A is its own target and is never scored; Part B is scored throughout."""
    sep, length = len(part_a), len(part_a) + len(inputs)
    rows = np.zeros((2, length), np.int32)
    rows[0, :sep], rows[0, sep:], rows[1, sep:] = np.arange(sep), positions, blocks
    weights = np.zeros(length, np.float32)
    weights[sep:] = 1
    tokens, wanted = (np.concatenate([part_a, x]).astype(np.int32) for x in (inputs, targets))
    return Example(tokens, wanted, weights, rows, sep)


def _pad(example: Example, length: int, pad_id: int) -> Example:
    room = length - len(example.tokens)
    if room < 0:
        raise ValueError(f"{len(example.tokens)} tokens do not fit max_len {length}")
    pad = lambda x, value=0: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, room)], constant_values=value)
    tokens, targets, weights, positions, sep = example
    return Example(pad(tokens, pad_id), pad(targets), pad(weights), pad(positions), sep)


def _in_text_order(
    spans: np.ndarray, order: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same spans and the same Part B, with the spans sorted; refuses what is no such thing."""
    if len(order) != len(spans) or (np.sort(order) != np.arange(len(spans))).any():
        raise ValueError(f"order {order.tolist()} is not a permutation of {len(spans)} spans")
    if (spans < 0).any() or (spans > length).any():
        raise ValueError(f"spans {spans.tolist()} leave the text of {length} tokens")
    if (spans[:, 1] <= spans[:, 0]).any():
        raise ValueError(f"spans {spans.tolist()} must not be empty: start before end")
    rank = np.argsort(spans[:, 0])
    in_order = spans[rank]
    if (in_order[1:, 0] < in_order[:-1, 1]).any():
        raise ValueError(f"spans {spans.tolist()} must not overlap")
    return in_order, np.argsort(rank)[order]
