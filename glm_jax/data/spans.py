"""Which tokens to blank out: short spans, whole sentences, or one long stretch.

The laws are those of THUDM/GLM blocklm_utils.py (ConstructBlockStrategy); the random numbers are
numpy's, so they agree in distribution and not draw by draw.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

Spans = Int[np.ndarray, "m 2"]
Stretch = tuple[int, int]

MAX_SPAN = 39


def span_length_law(mean: float = 3.0) -> np.ndarray:
    """P(length = 1..39): Poisson weights without zero, renormalised."""
    k = np.arange(1, MAX_SPAN + 1)
    log_weights = k * math.log(mean) - np.array([math.lgamma(i + 1) for i in k])
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


@functools.cache
def _cumulative(mean: float) -> np.ndarray:
    return np.cumsum(span_length_law(mean))


def draw_lengths(budget: int, rng: np.random.Generator, mean: float = 3.0) -> Int[np.ndarray, " m"]:
    """Span lengths until their sum reaches the budget; what overshoots is kept."""
    lengths = np.zeros(0, np.int64)
    while lengths.sum() < budget:
        more = np.searchsorted(_cumulative(mean), rng.random(budget // 3 + 4), side="right") + 1
        lengths = np.concatenate([lengths, np.minimum(more, MAX_SPAN)])
    reached = np.searchsorted(np.cumsum(lengths), budget) + 1 if budget > 0 else 0
    return lengths[:reached]


def place(
    lengths: Int[np.ndarray, " m"], stretch: Stretch, rng: np.random.Generator
) -> Spans | None:
    """Spans of these lengths, in this order, inside a stretch; None if they do not fit.

    One visible token at least stays between neighbours. The starts are n uniform draws with
    replacement over the room left, sorted, so tight neighbours come up less often than under a
    uniform law over placements; that is the reference's law.
    """
    room = stretch[1] - stretch[0] - int(lengths.sum()) - len(lengths) + 1
    if room < 0:
        return None
    gaps = np.sort(rng.integers(0, room + 1, len(lengths)))
    starts = stretch[0] + gaps + np.cumsum(lengths + 1) - (lengths + 1)
    return np.stack([starts, starts + lengths], axis=1)


def stretches(tokens: Int[np.ndarray, " n"], cls_id: int, eos_id: int) -> list[Stretch]:
    """The part of each document of a sample that may be blanked out: neither [CLS] nor eos, nor
    the last token of a document that was cut."""
    eos = np.flatnonzero(tokens == eos_id)
    ends = eos if len(eos) and eos[-1] == len(tokens) - 1 else np.append(eos, len(tokens) - 1)
    begins = np.append(0, ends[:-1] + 1)
    first = begins + (tokens[begins] == cls_id)
    return [(int(a), int(b)) for a, b in zip(first, ends, strict=True) if a < b]


def token_spans(
    length: int,
    documents: Sequence[Stretch],
    rng: np.random.Generator,
    *,
    ratio: float = 0.15,
    mean: float = 3.0,
    single: bool = False,
) -> Spans | None:
    """Short spans, ``ratio`` of all ``length`` tokens of the sample; None if they find no place.

    In a sample of several documents the shorter ones take spans while these cover at most
    ``ratio`` of them, and the longest (the first of equals) takes the rest.
    """
    lengths = draw_lengths(1 if single else int(ratio * length), rng, mean)
    if not len(lengths) or not documents:
        return None
    # The length that reached the budget tends to be a long one; left in its place, it would
    # always be the text's last span.
    lengths = rng.permutation(lengths)
    placed, used = [], 0
    by_size = sorted(documents, key=lambda d: (d[1] - d[0], -d[0]))
    for document in by_size:
        size = document[1] - document[0]
        rest = np.cumsum(lengths[used:])
        if document is by_size[-1]:
            taken = int((rest + np.arange(1, len(rest) + 1) <= size + 1).sum())
        else:
            taken = int((rest <= int(ratio * size)).sum())
        found = place(lengths[used : used + taken], document, rng)
        if found is not None:
            placed.append(found)
            used += taken
    if used < len(lengths):
        return None
    spans = np.concatenate(placed)
    return spans[np.argsort(spans[:, 0])]


def sentences(
    tokens: Int[np.ndarray, " n"],
    ends: Bool[np.ndarray, " n"],
    cls_id: int,
    eos_id: int,
    *,
    with_cls: bool = False,
) -> Spans:
    """Stretches that close with a sentence's end, and what is left at the end of a cut text.

    [CLS] and eos belong to no sentence. What stands between the last sentence's end and an eos is
    none either, as in the reference. There, all but the sample's first [CLS] belong to the sentence
    that follows them, so that they may have to be predicted: ``with_cls`` does so too.
    """
    apart = (tokens == cls_id) | (tokens == eos_id)
    if with_cls:
        apart[1:] = tokens[1:] == eos_id
    closes = np.flatnonzero(ends & ~apart) + 1
    begins_after = np.union1d(closes, np.flatnonzero(apart) + 1)
    if not len(apart) or not apart[-1]:
        closes = np.union1d(closes, [len(tokens)])
    begins_after = np.union1d(begins_after, [0])
    starts = begins_after[np.searchsorted(begins_after, closes, side="left") - 1]
    spans = np.stack([starts, closes], axis=1)
    return spans[spans[:, 0] < spans[:, 1]]


def sentence_spans(
    length: int, candidates: Spans, rng: np.random.Generator, *, ratio: float = 0.15
) -> Spans | None:
    """Whole sentences in random order until they cover ``ratio`` of the sample."""
    if not len(candidates):
        return None
    shuffled = rng.permutation(candidates)
    covered = np.cumsum(shuffled[:, 1] - shuffled[:, 0])
    taken = shuffled[: np.searchsorted(covered, int(ratio * length)) + 1]
    return taken[np.argsort(taken[:, 0])]
