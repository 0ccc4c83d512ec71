"""Key ranges for the family's attention patterns: two [B, T] arrays instead of a [T, T] matrix.

A query at t sees the keys in ``[k_start[t], k_end[t])``. With T = 6:

  causal:                     prefix_ranges(sep=3): Part A sees Part A, Part B its own past too
    k_end  1 2 3 4 5 6          k_end  3 3 3 4 5 6
    1 . . . . .                 1 1 1 . . .
    1 1 . . . .                 1 1 1 . . .
    1 1 1 . . .                 1 1 1 . . .
    1 1 1 1 . .                 1 1 1 1 . .
    1 1 1 1 1 .                 1 1 1 1 1 .
    1 1 1 1 1 1                 1 1 1 1 1 1

Both with ``lengths`` hide right padding: a padding query sees nothing.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

Ranges = tuple[Int[Array, "B T"], Int[Array, "B T"]]


def prefix_ranges(
    sep: Int[Array, " B"], length: int, lengths: Int[Array, " B"] | None = None
) -> Ranges:
    """Part A of ``sep`` tokens sees itself; each later token also sees the past up to itself.

    Args:
      sep: tokens in Part A, per row; 0 gives causal attention.
      length: T.
      lengths: real tokens per row; the rest is right padding.
    """
    steps = jnp.arange(1, length + 1, dtype=jnp.int32)
    k_end = jnp.maximum(steps, jnp.asarray(sep, jnp.int32)[:, None])
    if lengths is not None:
        k_end = jnp.where(steps <= lengths[:, None], jnp.minimum(k_end, lengths[:, None]), 0)
    return jnp.zeros_like(k_end), k_end


def causal_ranges(batch: int, length: int, lengths: Int[Array, " B"] | None = None) -> Ranges:
    """Every token sees its past and itself."""
    return prefix_ranges(jnp.zeros((batch,), jnp.int32), length, lengths)
