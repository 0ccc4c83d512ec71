"""Rows of one key head side by side: [block of queries, head of the group, query of the block]."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def pad(x: Array, block: int) -> Array:
    """Zeros after the second axis, up to whole blocks."""
    missing = -x.shape[1] % block
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) if missing else x


def to_rows(x: Float[Array, "B T N H"], groups: int, block: int) -> Float[Array, "B K H R"]:
    """The queries (or what belongs to them) of each key head, ``groups`` heads to one."""
    b, t, n, h = x.shape
    split = x.reshape(b, t // block, block, n // groups, groups, h)
    return split.transpose(0, 3, 5, 1, 4, 2).reshape(b, n // groups, h, t * groups)


def from_rows(x: Float[Array, "B K H R"], groups: int, block: int) -> Float[Array, "B T N H"]:
    """The inverse of ``to_rows``."""
    b, kv_heads, h, rows = x.shape
    split = x.reshape(b, kv_heads, h, rows // groups // block, groups, block)
    return split.transpose(0, 3, 5, 1, 4, 2).reshape(b, rows // groups, kv_heads * groups, h)


def range_rows(
    k_start: Int[Array, "B T"], k_end: Int[Array, "B T"], groups: int, block: int
) -> Int[Array, "B 2 R"]:
    """Each row's range of keys."""
    both = jnp.stack([k_start, k_end], axis=1)
    b, _, t = both.shape
    split = jnp.broadcast_to(
        both.reshape(b, 2, t // block, 1, block), (b, 2, t // block, groups, block)
    )
    return split.reshape(b, 2, t * groups)
