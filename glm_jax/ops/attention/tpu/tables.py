"""What each tile of queries has to read, worked out before the kernel starts and read as scalars.

A tile is a run of queries that are computed together. Keys are counted in units: of the units
``[first, stop)`` that some query of the tile sees, all of its queries see all of
``[inner_first, inner_stop)``, so only the units outside that need a mask::

    queries of one tile    keys in units of 4
    . . . . . . 1 1 1 1 1 1 1 1 1 1 1 1 1 . . .
    . . . . . . 1 1 1 1 1 1 1 1 1 1 1 1 1 1 . .
    0       1       2       3       4       5
            first=1 inner_first=2   inner_stop=4
                                            stop=6
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

_FAR = 2**30


class Spans(NamedTuple):
    """Units of keys per tile, flat so that scalar memory holds them without padding."""

    first: Int[Array, " B*tiles"]
    inner_first: Int[Array, " B*tiles"]
    inner_stop: Int[Array, " B*tiles"]
    stop: Int[Array, " B*tiles"]
    part_first: Int[Array, " B*parts"]
    """The same of the parts of every tile, which are left out where they alone see nothing."""
    part_stop: Int[Array, " B*parts"]


class Fetches(NamedTuple):
    """Which blocks each block of queries needs in memory."""

    first_keys: Int[Array, " B*blocks"]
    last_keys: Int[Array, " B*blocks"]
    queries: Int[Array, " B*blocks"]
    """The block itself, or, where it sees nothing, one that is in memory already."""


def spans(
    k_start: Int[Array, "B T"], k_end: Int[Array, "B T"], *, tile: int, unit: int, part: int
) -> Spans:
    """The units that tiles of ``tile`` queries see, and parts of them; T is a multiple of both."""
    parts = _outer(k_start, k_end, part, unit)
    first, stop = _outer(k_start, k_end, tile, unit)
    start, end = (x.reshape(len(x), -1, tile) for x in (k_start, k_end))
    inner_first = jnp.clip(-(-start.max(axis=-1) // unit), first, stop)
    inner_stop = jnp.clip(end.min(axis=-1) // unit, inner_first, stop)
    found = first, inner_first, inner_stop, stop, *parts
    return Spans(*(x.astype(jnp.int32).reshape(-1) for x in found))


def _outer(k_start: Array, k_end: Array, size: int, unit: int) -> tuple[Array, Array]:
    """First and last-but-one unit that any of ``size`` queries sees."""
    start, end = (x.reshape(len(x), -1, size) for x in (k_start, k_end))
    seen = start < end
    low = jnp.where(seen, start, _FAR).min(axis=-1)
    high = jnp.where(seen, end, 0).max(axis=-1)
    stop = -(-high // unit)
    return jnp.minimum(low // unit, stop), stop


def fetches(of: Spans, *, batch: int, tiles: int, units: int) -> Fetches:
    """Of blocks of ``tiles`` tiles and ``units`` units."""
    first, stop = (x.reshape(batch, -1, tiles) for x in (of.first, of.stop))
    seen = first < stop
    some = seen.any(axis=-1)
    low = jnp.where(some, jnp.where(seen, first, _FAR).min(axis=-1) // units, 0)
    high = jnp.where(some, (jnp.where(seen, stop, 1).max(axis=-1) - 1) // units, 0)
    # A block that sees nothing names the one before it, so that nothing new is read for it.
    held = jax.lax.cummax(jnp.where(some, jnp.arange(some.shape[1]), 0), axis=1)
    low, high = (jnp.take_along_axis(x, held, axis=1) for x in (low, high))
    return Fetches(*(x.astype(jnp.int32).reshape(-1) for x in (low, high, held)))


def units_computed(of: Spans) -> Int[Array, ""]:
    """Units times parts that one head computes."""
    return (of.part_stop - of.part_first).sum()
