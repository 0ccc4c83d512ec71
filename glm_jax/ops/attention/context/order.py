"""Which tokens of a row each shard holds when the row is cut over several.

``natural``: shard i of c holds the i-th of c stretches. In causal rows the last shard then has
nearly all the work. ``zigzag``: the row is cut into 2 c stretches and shard i holds stretches i and
2 c - 1 - i, an early and a late one, so that all have the same (Brandon et al. 2023, "Striped
Attention", motivates the balance; the pairing is that of Llama 3, Grattafiori et al. 2024, section
3.3.2)::

    stretch    0 1 2 3 4 5 6 7
    shard      0 1 2 3 3 2 1 0

In both orders a shard's tokens are an increasing run of the row's own. A query's keys are one run
of the row, so those among a shard's tokens are one run of the shard: ``within`` says which.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Int

Order = Literal["natural", "zigzag"]


def stretches(order: Order) -> int:
    """How many stretches a shard holds; a row's length is a multiple of this times the shards."""
    return 2 if order == "zigzag" else 1


def check_length(length: int, order: Order, shards: int) -> None:
    """Raises ValueError unless a row of this length can be cut so."""
    parts = stretches(order) * shards
    if length % parts:
        raise ValueError(
            f"rows of {length} tokens cannot be cut over context={shards}: the length must be a "
            f"multiple of {parts}"
        )


def to_zigzag(x: Array, shards: int, axis: int) -> Array:
    """A row in its own order to shard after shard, each with its early and its late stretch."""
    parts = _split(x, (2, shards), axis)
    early, late = jnp.split(parts, 2, axis)
    both = jnp.concatenate([early, jnp.flip(late, axis + 1)], axis)
    return jnp.swapaxes(both, axis, axis + 1).reshape(x.shape)


def from_zigzag(x: Array, shards: int, axis: int) -> Array:
    """The inverse of ``to_zigzag``."""
    parts = jnp.swapaxes(_split(x, (shards, 2), axis), axis, axis + 1)
    early, late = jnp.split(parts, 2, axis)
    return jnp.concatenate([early, jnp.flip(late, axis + 1)], axis).reshape(x.shape)


def _split(x: Array, sizes: tuple[int, ...], axis: int) -> Array:
    return x.reshape(*x.shape[:axis], *sizes, -1, *x.shape[axis + 1 :])


def within(
    place: Int[Array, "*B"], shard: Int[Array, ""] | int, *, order: Order, shards: int, length: int
) -> Int[Array, "*B"]:
    """How many of a shard's tokens lie before a place of the row: a bound of a run, in the row,
    becomes one in the shard.

    Args:
      length: of the whole row.
    """
    size = length // (stretches(order) * shards)
    firsts = (shard,) if order == "natural" else (shard, 2 * shards - 1 - shard)
    return sum((jnp.clip(place - first * size, 0, size) for first in firsts), jnp.zeros_like(place))
