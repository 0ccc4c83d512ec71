"""Dropout of attention probabilities, drawn alike by every implementation.

Each query of each head gets one random word. Whether it keeps key s is a hash of that word and s,
so forward, backward and recomputation, in whatever blocks and on whatever device, decide the same
without a [T, S] array, and a kernel can decide inside.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# The golden ratio's share of 2**32 spreads neighbouring keys (Knuth, TAOCP 3, section 6.4); the
# rest mixes them: MurmurHash3's finalizer (Appleby, public domain), whose last step would only
# stir low bits.
_SPREAD, _MIX_1, _MIX_2 = (
    int(np.uint32(x).astype(np.int32)) for x in (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)
)


class Dropout(NamedTuple):
    """Drop attention probabilities with this rate, drawn from this key."""

    rate: float
    key: Array

    def words(self, q: Float[Array, "B T N H"]) -> Int[Array, "B T N"]:
        """The random word of every query of every head."""
        bits = jax.random.bits(self.key, q.shape[:3], jnp.uint32)
        return jax.lax.bitcast_convert_type(bits, jnp.int32)


class Drops(NamedTuple):
    """What is decided already: the rate, and the words."""

    rate: float
    words: Int[Array, "B T N"]


def keeps(rate: float, words: Int[Array, "..."], keys: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether the query of each word keeps each key; the two broadcast.

    Int32 throughout: products wrap, and the TPU's vector unit compares signed numbers.
    """
    x = words + keys * _SPREAD
    x = (x ^ jax.lax.shift_right_logical(x, jnp.int32(16))) * _MIX_1
    x = (x ^ jax.lax.shift_right_logical(x, jnp.int32(13))) * _MIX_2
    return x >= round(rate * 2**32) - 2**31


def counted_from(first: Array | int, words: Int[Array, "..."]) -> Int[Array, "..."]:
    """The words for keys whose numbers are counted from ``first`` on."""
    return words + jnp.asarray(first, jnp.int32) * _SPREAD


def drop(
    rate: float, x: Float[Array, "..."], words: Int[Array, "..."], keys: Int[Array, "..."]
) -> Float[Array, "..."]:
    """``x`` with zeros for what is dropped, and what stays over ``1 - rate``."""
    return jnp.where(keeps(rate, words, keys), x / (1 - rate), 0.0)
