"""Which keys each tile of queries has to read, worked out before a kernel starts.

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

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

FAR = 2**30
"""Beyond every key."""


class Spans(NamedTuple):
    """Units of keys for each tile of queries; or, turned, tiles for each unit."""

    first: Int[Array, "B tiles"]
    inner_first: Int[Array, "B tiles"]
    inner_stop: Int[Array, "B tiles"]
    stop: Int[Array, "B tiles"]

    def flat(self) -> Spans:
        """As kernels read it: [B * tiles] each."""
        return Spans(*(x.reshape(-1) for x in self))

    def turned(self, units: int) -> Spans:
        """For each of ``units`` units the tiles that see it.

        Tiles between the first and the last that see a unit may not; they count as if they did, and
        the mask hides all of it from them.
        """
        unit = jnp.arange(units)
        within = lambda low, high: (low[..., None] <= unit) & (unit < high[..., None])
        first, stop, _ = _run(within(self.first, self.stop))
        inner_first, inner_stop, whole = _run(within(self.inner_first, self.inner_stop))
        whole &= inner_first < inner_stop
        inner_first, inner_stop = (jnp.where(whole, x, stop) for x in (inner_first, inner_stop))
        # Of a unit that no tile, or that not one run of tiles sees in full, all have a mask.
        return Spans(first, inner_first, inner_stop, stop)


def spans(k_start: Int[Array, "B T"], k_end: Int[Array, "B T"], *, tile: int, unit: int) -> Spans:
    """The units that tiles of ``tile`` queries see; T is a multiple of it."""
    first, stop = outer(k_start, k_end, tile, unit)
    start, end = (x.reshape(len(x), -1, tile) for x in (k_start, k_end))
    inner_first = jnp.clip(-(-start.max(axis=-1) // unit), first, stop)
    inner_stop = jnp.clip(end.min(axis=-1) // unit, inner_first, stop)
    return Spans(*(x.astype(jnp.int32) for x in (first, inner_first, inner_stop, stop)))


def outer(
    k_start: Int[Array, "B T"], k_end: Int[Array, "B T"], size: int, unit: int
) -> tuple[Int[Array, "B tiles"], Int[Array, "B tiles"]]:
    """The first unit that any of ``size`` queries sees, and one past the last."""
    start, end = (x.reshape(len(x), -1, size) for x in (k_start, k_end))
    seen = start < end
    low = jnp.where(seen, start, FAR).min(axis=-1)
    high = jnp.where(seen, end, 0).max(axis=-1)
    stop = -(-high // unit)
    return jnp.minimum(low // unit, stop), stop


def _run(of: Bool[Array, "B tiles units"]) -> tuple[Array, Array, Bool[Array, "B units"]]:
    """The first tile of each unit, one past the last, and whether all between them are of it."""
    tile = jnp.arange(of.shape[1], dtype=jnp.int32)[:, None]
    stop = jnp.where(of, tile + 1, 0).max(axis=1)
    first = jnp.minimum(jnp.where(of, tile, FAR).min(axis=1), stop)
    return first, stop, of.sum(axis=1) == stop - first
