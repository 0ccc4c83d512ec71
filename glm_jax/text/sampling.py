"""Choosing the next token: one function for every row of a batch, each with settings of its own.

A row's choice depends on its logits, its seed and its step alone, so the same seed gives the same
text whatever else is in the batch. Nothing is sorted: the bounds of top-k and top-p are found by
bisection over the bits of a float, which costs 32 passes over the vocabulary and suits a TPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from glm_jax.errors import UserError

NEVER = -jnp.inf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowSampling:
    """Settings of every row, as arrays [B]."""

    temperature: Float[Array, " B"]
    """0: the most likely token."""
    top_k: Int[Array, " B"]
    """Only the k most likely (and those as likely as the last of them); 0: all."""
    top_p: Float[Array, " B"]
    """Only the fewest most likely tokens that hold this probability together; 1: all."""
    min_p: Float[Array, " B"]
    """Only tokens at least this much as likely as the most likely; 0: all."""
    repetition_penalty: Float[Array, " B"]
    """Divides the positive logits of tokens that were there before, multiplies the negative ones
    (arXiv 1909.05858, section 4.1); 1: nothing."""
    seed: UInt32[Array, " B"]
    vocab_limit: Int[Array, " B"]
    """Ids from here on are never chosen: padding of the embedding that no tokenizer knows."""

    @classmethod
    def make(
        cls,
        rows: int,
        *,
        temperature: float | Sequence[float] = 0.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        min_p: float | Sequence[float] = 0.0,
        repetition_penalty: float | Sequence[float] = 1.0,
        seed: int | Sequence[int] = 0,
        vocab_limit: int | Sequence[int] = 2**31 - 1,
    ) -> RowSampling:
        """From one value for all rows or one for each.

        Raises:
          UserError: a value that is out of its range.
        """

        def spread(value: Any, dtype: Any) -> Any:
            return np.broadcast_to(np.asarray(value), (rows,)).astype(dtype)

        made = cls(
            spread(temperature, np.float32),
            spread(top_k, np.int32),
            spread(top_p, np.float32),
            spread(min_p, np.float32),
            spread(repetition_penalty, np.float32),
            spread(np.asarray(seed) % 2**32, np.uint32),
            spread(vocab_limit, np.int32),
        )
        for name, fine, right in (
            ("temperature", lambda x: x >= 0, "at least 0 (0: the most likely token)"),
            ("top_k", lambda x: x >= 0, "at least 0 (0: all)"),
            ("top_p", lambda x: (x > 0) & (x <= 1), "above 0 and at most 1"),
            ("min_p", lambda x: (x >= 0) & (x <= 1), "between 0 and 1"),
            ("repetition_penalty", lambda x: x > 0, "above 0 (1: none)"),
        ):
            values = getattr(made, name)
            if not (np.isfinite(values) & fine(values)).all():
                wrong = values[~(np.isfinite(values) & fine(values))][0]
                raise UserError(f"{name} is {wrong}; it must be {right}")
        return made


def sample(
    logits: Float[Array, "B V"],
    rows: RowSampling,
    seen: Bool[Array, "B V"] | None,
    step: Int[Array, " B"],
) -> Int[Array, " B"]:
    """The next token of every row.

    Args:
      seen: which tokens a row holds already, for the repetition penalty; None where it is 1.
      step: tokens that each row has produced before; with its seed it makes the randomness.
    """
    logits = adjust(logits, rows, seen)
    greedy = logits.argmax(-1).astype(jnp.int32)

    def draw() -> Int[Array, " B"]:
        kept = keep_likely(logits / jnp.where(rows.temperature > 0, rows.temperature, 1)[:, None],
                           rows)  # fmt: skip
        noise = jax.vmap(lambda seed, at: jax.random.gumbel(
            jax.random.fold_in(jax.random.key(seed), at), logits.shape[1:]
        ))(rows.seed, step)  # fmt: skip
        drawn = (kept + noise).argmax(-1).astype(jnp.int32)
        return jnp.where(rows.temperature > 0, drawn, greedy)

    return jax.lax.cond((rows.temperature > 0).any(), draw, lambda: greedy)


def adjust(
    logits: Float[Array, "B V"], rows: RowSampling, seen: Bool[Array, "B V"] | None
) -> Float[Array, "B V"]:
    """Logits in float32 without what may never be chosen, repetitions penalised."""
    logits = logits.astype(jnp.float32)
    if seen is not None:
        penalty = rows.repetition_penalty[:, None]
        logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    known = jnp.arange(logits.shape[-1]) < rows.vocab_limit[:, None]
    # A network that overflowed must not end a conversation: its logits count as unlikely.
    return jnp.where(known & ~jnp.isnan(logits), logits, NEVER)


def keep_likely(logits: Float[Array, "B V"], rows: RowSampling) -> Float[Array, "B V"]:
    """Logits with -inf where top-k, then top-p, then min-p leave a token out."""
    count = jnp.where(rows.top_k > 0, rows.top_k, logits.shape[-1])
    enough = lambda kept: kept.sum(-1) >= count
    logits = jnp.where(_most_likely(logits, enough), logits, NEVER)
    probabilities = jax.nn.softmax(logits, axis=-1)
    enough = lambda kept: jnp.where(kept, probabilities, 0).sum(-1) >= rows.top_p
    kept = _most_likely(logits, enough) | (rows.top_p >= 1)[:, None]
    largest = probabilities.max(-1, keepdims=True)
    kept &= probabilities >= rows.min_p[:, None] * largest
    return jnp.where(kept, logits, NEVER)


def _most_likely(logits: Float[Array, "B V"], enough) -> Bool[Array, "B V"]:
    """The fewest largest logits of each row that are enough; all where all are not."""
    # Order-preserving: the bits of a non-negative float grow with it, those of a negative one
    # shrink.
    bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

    def halve(_, bounds):
        low, high = bounds  # keeping those >= low is enough (or low is the least), >= high is not
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        fits = enough(order >= middle[:, None])
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    rows = logits.shape[0]
    bounds = (jnp.full(rows, -(2**31), jnp.int32), jnp.full(rows, 2**31 - 1, jnp.int32))
    low, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    return order >= low[:, None]


def ban_repeated_ngrams(
    logits: Float[Array, "B V"],
    history: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    size: int,
) -> Float[Array, "B V"]:
    """-inf for every token that would repeat a run of ``size`` tokens (arXiv 1705.04304).

    Args:
      history: each row's tokens so far, ``lengths`` of them.
    """
    width = history.shape[1]
    starts = jnp.arange(width)
    last = lengths[:, None] - (size - 1) + jnp.arange(size - 1)
    tail = jnp.take_along_axis(history, jnp.clip(last, 0, width - 1), axis=1)
    windows = [jnp.roll(history, -i, axis=1) == tail[:, i : i + 1] for i in range(size - 1)]
    same = jnp.stack(windows).all(0) if windows else jnp.ones_like(history, bool)
    follows = starts + size - 1
    same &= (follows < lengths[:, None]) & (lengths >= size)[:, None]
    banned = jnp.roll(history, -(size - 1), axis=1)
    row = jnp.arange(len(history))[:, None]
    hits = jnp.zeros(logits.shape, bool).at[row, banned].max(same)
    return jnp.where(hits, NEVER, logits)


def ban(
    logits: Float[Array, "B V"], ids: Int[Array, " N"], where: Bool[Array, "..."]
) -> Float[Array, "B V"]:
    """-inf for some ids of the rows where it is wanted; ids below 0 are none."""
    ids = jnp.where(ids < 0, logits.shape[-1], ids)
    banned = jnp.zeros(logits.shape[-1], bool).at[ids].set(True, mode="drop")
    return jnp.where(where & banned, NEVER, logits)
