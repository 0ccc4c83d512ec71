"""Which examples fit, and which pairs to leave out so that length tells nothing."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
from jaxtyping import Int

from glm_jax.data.finetune.records import Records
from glm_jax.errors import UserError

_log = logging.getLogger(__name__)


def fitting(
    records: Records, lengths: Int[np.ndarray, " N"], most: int, too_long: Literal["skip", "raise"]
) -> Int[np.ndarray, " n"]:
    """Indices of the examples of at most so many ids.

    Raises:
      UserError: one is longer and may not be left out, or all are.
    """
    long = np.flatnonzero(lengths > most)
    if not len(long):
        return np.arange(len(lengths))
    first = f"{records[long[0]].place}: {lengths[long[0]]} ids do not fit in {most}"
    if too_long == "raise" or len(long) == len(lengths):
        raise UserError(f"{first}; see seq_len and too_long")
    _log.warning("left out %d of %d examples as too long: %s", len(long), len(lengths), first)
    return np.flatnonzero(lengths <= most)


def balanced_pairs(differences: Int[np.ndarray, " N"]) -> Int[np.ndarray, " n"]:
    """Indices of pairs among which a chosen answer is longer as often as shorter.

    Pairs whose difference in length has the same power of two stand in one bucket (1, 2 to 3, 4 to
    7, ...); in each the first pairs of either sign are kept, as many as there are of the rarer one
    (ChatGLM-RLHF, arXiv 2404.00934, section 3.2, which does not state its buckets). Pairs of equal
    length all stay.

    Args:
      differences: ids of the chosen answer minus ids of the rejected one.
    """
    bucket = np.where(differences == 0, -1, np.log2(np.maximum(np.abs(differences), 1)).astype(int))
    kept = [np.flatnonzero(bucket == -1)]
    for size in range(int(bucket.max(initial=-1)) + 1):
        longer = np.flatnonzero((bucket == size) & (differences > 0))
        shorter = np.flatnonzero((bucket == size) & (differences < 0))
        count = min(len(longer), len(shorter))
        kept += [longer[:count], shorter[:count]]
    return np.sort(np.concatenate(kept))
