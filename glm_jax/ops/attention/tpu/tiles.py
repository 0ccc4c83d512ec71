"""What both kernels share: the walk over what a block of queries sees, and the arithmetic of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Int

from glm_jax.ops.attention.online import HIDDEN
from glm_jax.ops.attention.tpu.blocks import Blocks
from glm_jax.ops.attention.tpu.tables import Spans
from glm_jax.ops.dropout import counted_from, keeps

# step(head, lanes, keys, first_key, masked): rows and keys as slices of what is in fast memory.
Step = Callable[[int, Any, Any, Array, bool], None]


def walk(
    table: Spans, blocks: Blocks, groups: int, batch: Array, q_block: Array, k_block: Array | int,
    step: Step,
) -> None:  # fmt: skip
    """Calls ``step`` for every tile of this program and all keys of this block that it sees.

    Few keys at a time, with a mask, where some are hidden; many at a time, without, between.
    """
    units, large = blocks.keys // blocks.unit, blocks.step // blocks.unit
    origin = k_block * units
    tiles_per_row = pl.num_programs(2) * blocks.tiles

    def tile(c, _):
        # jax.lax's division, as // asks which chip this is, and a program that is compiled for
        # another machine's chip cannot say.
        at = batch * tiles_per_row + q_block * blocks.tiles + jax.lax.rem(c, blocks.tiles)
        first, inner_first, inner_stop, stop = (
            jnp.clip(x[at] - origin, 0, units) for x in table[:4]
        )
        whole = jax.lax.div(inner_stop - inner_first, large)
        part = blocks.lanes // blocks.parts

        def stretch(unit, size, masked, part=0, lanes=blocks.lanes):
            start = pl.multiple_of(unit * blocks.unit, blocks.unit)
            rows = pl.ds(pl.multiple_of(c * blocks.lanes + part * lanes, lanes), lanes)
            for head in range(blocks.heads):
                step(head, rows, pl.ds(start, size), origin * blocks.unit + start, masked)

        def edge(unit, _):
            if blocks.parts == 1:
                stretch(unit, blocks.unit, True)
                return 0
            for x in range(blocks.parts):
                mine = at * blocks.parts + x
                seen = origin + unit >= table.part_first[mine]
                seen &= origin + unit < table.part_stop[mine]
                pl.when(seen)(functools.partial(stretch, unit, blocks.unit, True, x, part))
            return 0

        def inner(x, _):
            stretch(inner_first + x * large, blocks.step, False)
            return 0

        jax.lax.fori_loop(first, inner_first, edge, 0)
        jax.lax.fori_loop(0, whole, inner, 0)
        jax.lax.fori_loop(inner_first + whole * large, stop, edge, 0)
        return 0

    jax.lax.fori_loop(0, groups * blocks.queries // blocks.lanes, tile, 0)


def dot(x: Array, y: Array, contract: tuple[int, int]) -> Array:
    """Product over one axis of each, summed in float32; float32 inputs are not rounded."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(x, y, dims, precision=precision, preferred_element_type=jnp.float32)


def kept(
    rate: float, words: Int[Array, "1 X"], first_key: Array, shape: tuple[int, ...]
) -> Bool[Array, "keys rows"]:
    """What dropout keeps of scores of this shape, by the words of the rows."""
    keys = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    return keeps(rate, counted_from(first_key, words), keys)


def hide(scores: Array, ranges: Int[Array, "2 X"], first_key: Array) -> Array:
    """Scores [keys, rows] with those that a row does not see at ``HIDDEN``."""
    key = first_key + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    seen: Bool[Array, "keys rows"] = (key >= ranges[0:1]) & (key < ranges[1:2])
    return jnp.where(seen, scores, HIDDEN)
