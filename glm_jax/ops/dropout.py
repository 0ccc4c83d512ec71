"""Dropout that is drawn alike by every implementation, in any order and any blocks.

Each row (a token, or a query of one head) gets one random word. Whether the row keeps column s is a
hash of that word and s: forward, backward and recomputation decide the same on any device without
an array of random bits, and a kernel can decide inside.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# The golden ratio's share of 2**32 spreads neighbouring columns (Knuth, TAOCP 3, section 6.4); the
# rest mixes them: MurmurHash3's finalizer (Appleby, public domain), whose last step would only
# stir low bits.
_SPREAD, _MIX_1, _MIX_2 = (
    int(np.uint32(x).astype(np.int32)) for x in (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)
)


def dropout(x: Float[Array, "*rows D"], rate: float, key: Array | None) -> Float[Array, "*rows D"]:
    """Zeroes elements with probability ``rate``, rescales the rest; the identity without a key."""
    if key is None or not rate:
        return x
    words = _words(key, x.shape[:-1])[..., None]
    kept = keeps(rate, words, jnp.arange(x.shape[-1], dtype=jnp.int32))
    return drop(rate, x, kept).astype(x.dtype)


class Dropout(NamedTuple):
    """Drop attention probabilities with this rate, drawn from this key."""

    rate: float
    key: Array

    def words(self, q: Float[Array, "B T N H"]) -> Int[Array, "B T N"]:
        """The random word of every query of every head."""
        return _words(self.key, q.shape[:3])


class Drops(NamedTuple):
    """What is decided already: the rate, and the words."""

    rate: float
    words: Int[Array, "B T N"]


def _words(key: Array, shape: tuple[int, ...]) -> Int[Array, "..."]:
    return jax.lax.bitcast_convert_type(jax.random.bits(key, shape, jnp.uint32), jnp.int32)


def keeps(rate: float, words: Int[Array, "..."], columns: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether the row of each word keeps each column; the two broadcast.

    Int32 throughout: products wrap, and the TPU's vector unit compares signed numbers.
    """
    x = words + columns * _SPREAD
    x = (x ^ jax.lax.shift_right_logical(x, jnp.int32(16))) * _MIX_1
    x = (x ^ jax.lax.shift_right_logical(x, jnp.int32(13))) * _MIX_2
    return x >= round(rate * 2**32) - 2**31


def counted_from(first: Array | int, words: Int[Array, "..."]) -> Int[Array, "..."]:
    """The words for columns whose numbers are counted from ``first`` on."""
    return words + jnp.asarray(first, jnp.int32) * _SPREAD


def drop(rate: float, x: Float[Array, "..."], kept: Bool[Array, "..."]) -> Float[Array, "..."]:
    """``x`` with zeros for what is dropped, and what stays over ``1 - rate``."""
    return jnp.where(kept, x / (1 - rate), 0.0)
