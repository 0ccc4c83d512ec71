"""What each tile of queries has to read, as the scalars that the kernels prefetch.

See ``glm_jax.ops.attention.spans`` for what the numbers mean.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from glm_jax.ops.attention import spans as shared
from glm_jax.ops.attention.spans import FAR


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
    parts = shared.outer(k_start, k_end, part, unit)
    found = *shared.spans(k_start, k_end, tile=tile, unit=unit), *parts
    return Spans(*(x.astype(jnp.int32).reshape(-1) for x in found))


def fetches(of: Spans, *, batch: int, tiles: int, units: int) -> Fetches:
    """Of blocks of ``tiles`` tiles and ``units`` units."""
    first, stop = (x.reshape(batch, -1, tiles) for x in (of.first, of.stop))
    seen = first < stop
    some = seen.any(axis=-1)
    low = jnp.where(some, jnp.where(seen, first, FAR).min(axis=-1) // units, 0)
    high = jnp.where(some, (jnp.where(seen, stop, 1).max(axis=-1) - 1) // units, 0)
    # A block that sees nothing names the one before it, so that nothing new is read for it.
    held = jax.lax.cummax(jnp.where(some, jnp.arange(some.shape[1]), 0), axis=1)
    low, high = (jnp.take_along_axis(x, held, axis=1) for x in (low, high))
    return Fetches(*(x.astype(jnp.int32).reshape(-1) for x in (low, high, held)))


def units_computed(of: Spans) -> Int[Array, ""]:
    """Units times parts that one head computes."""
    return (of.part_stop - of.part_first).sum()
