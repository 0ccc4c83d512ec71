"""Where rows lie: a row is a query of one head, and those of one key head stand side by side, as
[block of queries, head of the group, query of the block].

XLA lays them out so where a key head has one query head. Of grouped heads, a program of the kernel
takes its queries with the channels of all heads along the sublanes and the queries along the lanes,
which is how XLA lays out the network's activations on TPUs, and puts its own rows together in fast
memory (``gather_rows``): nothing is copied or turned around in between.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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


def turned(x: Float[Array, "B T N H"]) -> Float[Array, "B N*H T"]:
    """Queries last: a change of name where XLA has them so in memory."""
    return x.reshape(*x.shape[:2], -1).swapaxes(1, 2)


def from_turned(x: Float[Array, "B N*H T"], heads: int) -> Float[Array, "B T N H"]:
    """The inverse of ``turned``."""
    return x.swapaxes(1, 2).reshape(len(x), x.shape[2], heads, -1)


def gather_rows(to_ref, from_ref, *, groups: int, scale: float = 1.0) -> None:
    """In a program: its block [1, heads * G * H, queries] to rows [heads, H, G * queries]."""
    heads, h, rows = to_ref.shape
    queries = rows // groups
    for head in range(heads):
        for group in range(groups):
            at = (head * groups + group) * h
            part = from_ref[0, at : at + h, :].astype(jnp.float32) * scale
            lanes = slice(group * queries, (group + 1) * queries)
            to_ref[head, :, lanes] = part.astype(to_ref.dtype)


def scatter_rows(to_ref, head: int, rows: Float[Array, "H R"], *, groups: int) -> None:
    """In a program: one key head's rows to their places in [1, heads * G * H, queries]."""
    h, queries = rows.shape[0], rows.shape[1] // groups
    for group in range(groups):
        at = (head * groups + group) * h
        part = rows[:, group * queries : (group + 1) * queries]
        to_ref[0, at : at + h, :] = part.astype(to_ref.dtype)


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
