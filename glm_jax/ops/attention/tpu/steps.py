"""Which keys a call over a cache reads, and in what order, worked out before the kernel starts.

With blocks of 4 keys, rows that see the slots [0, 9), [6, 7) and none::

    step    0  1  2  3  4
    row     0  0  0  1  2
    block   0  1  2  1  0
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

_LANES = 128
# Bytes of keys and values of one step. Starting a step takes as long as reading a quarter of it.
_STEP_BYTES = 2**20
_FAR = 2**30


class Cut(NamedTuple):
    """Sizes of a program."""

    heads: int
    """Key heads."""
    keys: int
    """Keys per step."""


class Steps(NamedTuple):
    """The blocks of keys to read, and what is to be read of each row."""

    row: Int[Array, " steps"]
    block: Int[Array, " steps"]
    first: Int[Array, " B"]
    """The row's first block; ``last`` its last."""
    last: Int[Array, " B"]
    inner_start: Int[Array, " B"]
    """All queries of the row see its keys from here to ``inner_stop``."""
    inner_stop: Int[Array, " B"]


def cut(kv_heads: int, head_dim: int, slots: int, itemsize: int) -> Cut:
    """How the work is divided: eight heads fill a vector of scales; of fewer, two programs keep
    both cores of a chip busy that has two."""
    halves = kv_heads // 2 if kv_heads % 2 == 0 else kv_heads
    heads = 8 if kv_heads % 8 == 0 else halves
    width = -(-head_dim // _LANES) * _LANES
    keys = _STEP_BYTES // (2 * heads * width * itemsize) // _LANES * _LANES
    return Cut(heads, min(max(_LANES, keys), 2048, -(-slots // _LANES) * _LANES))


def list_steps(
    k_start: Int[Array, "B T"], k_end: Int[Array, "B T"], *, slots: int, keys: int
) -> tuple[Steps, Int[Array, ""]]:
    """The list, as long as it could ever be, and how many of it count.

    A row that sees nothing has one step, in which its zeros are written.
    """
    start, end = (jnp.clip(x, 0, slots) for x in (k_start, k_end))
    seen = start < end
    low = jnp.where(seen, start, _FAR).min(axis=-1)
    high = jnp.where(seen, end, 0).max(axis=-1)
    first = jnp.where(seen.any(-1), low // keys, 0)
    last = jnp.maximum(first, (high - 1) // keys)
    stops = jnp.cumsum(last - first + 1)
    number = jnp.arange(len(stops) * -(-slots // keys))
    row = jnp.minimum(jnp.searchsorted(stops, number, side="right"), len(stops) - 1)
    block = jnp.minimum(last[row], last[row] + 1 - (stops[row] - number))
    found = row, block, first, last, start.max(-1), end.min(-1)
    return Steps(*(x.astype(jnp.int32) for x in found)), stops[-1].astype(jnp.int32)
