"""Fills blanks greedily: what a pretraining run needs to show what it learned."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from glm_jax.nn import GLM, Compute, KVCache, prefix_ranges


def fill_greedily(
    model: GLM,
    part_as: Sequence[Int[np.ndarray, " n"]],
    mask_at: Sequence[int],
    *,
    max_new: int = 16,
    compute: Compute = Compute(),
) -> list[list[int]]:
    """What each text's blank most likely holds, without the eop that ends it.

    Part A is read once, bidirectionally; then Part B grows from sop one token at a time, every
    token at the blank's position and at block positions 1, 2, ... (GLM paper, section 2.2).

    Args:
      part_as: texts with their mask tokens in place, [CLS] first.
      mask_at: index of the blank to fill in each; other blanks stay blank.

    Raises:
      ValueError: the model's vocabulary has no sop or eop, or a text is longer than its positions.
    """
    sop, eop = model.config.special.require("sop", "eop")
    lengths = np.array([len(a) for a in part_as], np.int32)
    if lengths.max() > model.config.max_seq_len and model.config.position == "learned":
        raise ValueError(
            f"a text of {lengths.max()} tokens is longer than the model's "
            f"{model.config.max_seq_len} positions"
        )
    tokens = np.zeros((len(part_as), lengths.max()), np.int32)
    for row, part_a in zip(tokens, part_as, strict=True):
        row[: len(part_a)] = part_a
    at = np.array(mask_at, np.int32)
    out = np.asarray(_fill(model, tokens, lengths, at, sop, max_new, compute))
    return [_until(row.tolist(), eop) for row in out]


def _until(ids: list[int], stop: int) -> list[int]:
    return ids[: ids.index(stop)] if stop in ids else ids


@functools.partial(jax.jit, static_argnums=(5, 6))
def _fill(
    model: GLM,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    mask_at: Int[Array, " B"],
    sop: int,
    max_new: int,
    compute: Compute,
) -> Int[Array, "B N"]:
    rows, width = tokens.shape
    positions = jnp.zeros((rows, 2, width), jnp.int32).at[:, 0].set(jnp.arange(width))
    cache = KVCache.zeros(model.config, rows, width + max_new, jnp.dtype(compute.dtype))
    ranges = prefix_ranges(lengths, width, lengths)
    first_slots = jnp.zeros_like(lengths)
    _, cache = model.decode(tokens, positions, *ranges, cache, first_slots, compute=compute)

    def step(carry, i):
        token, cache = carry
        place = jnp.stack([mask_at, jnp.full_like(mask_at, i + 1)], axis=1)[..., None]
        slots = lengths + i
        k_end = slots[:, None] + 1
        start = jnp.zeros_like(k_end)
        hidden, cache = model.decode(
            token[:, None], place, start, k_end, cache, slots, compute=compute
        )
        token = model.logits(hidden)[:, 0].argmax(axis=-1).astype(jnp.int32)
        return (token, cache), token

    first = jnp.full((rows,), sop, jnp.int32)
    _, out = jax.lax.scan(step, (first, cache), jnp.arange(max_new))
    return out.T
