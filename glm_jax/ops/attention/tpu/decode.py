"""A few queries per row over a cache: reads the keys that a row sees, and no others.

The cache stays whole in the chip's memory, all layers in one array; the kernel is told which layer
it is. Its grid is a list of the blocks of keys that any row sees, row after row, which was worked
out before it starts, so the next block is under way while one is computed, over rows of any length.
Here rows lie along the sublanes and keys along the lanes, as there are few rows. The softmax is
online and to base 2, as in ``forward``.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, Int8

from glm_jax.ops.attention.online import HIDDEN, LOWEST, to_base_2
from glm_jax.ops.attention.padding import pad
from glm_jax.ops.attention.tpu.steps import Cut, Steps, cut, list_steps
from glm_jax.ops.attention.tpu.tiles import dot

# Rows of a head's queries come in whole vectors of the narrower type.
_ROWS = 16


def _kernel(*refs, sizes: Cut, slots: int, own_scales: bool):
    table = Steps(*refs[1:7])
    q_ref, ranges_ref, k_ref, v_ref, *scale_refs = refs[7:-5]
    out_ref, lse_ref, top_ref, total_ref, sum_ref = refs[-5:]
    step, own_head = pl.program_id(1), refs[0][1] + pl.program_id(0) * sizes.heads
    row, first_key = table.row[step], table.block[step] * sizes.keys

    @pl.when(table.block[step] == table.first[row])
    def _():
        top_ref[...] = jnp.full_like(top_ref, LOWEST)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    def scale(ref, head):
        return ref[0, 0, pl.ds(head if own_scales else own_head + head, 1), :]

    def attend(masked: bool):
        for head in range(sizes.heads):
            q = q_ref[0, head]
            keys, values = (_floats(ref[0, 0, head], q.dtype) for ref in (k_ref, v_ref))
            scores = dot(q, keys, (1, 1))
            if scale_refs:
                scores *= scale(scale_refs[0], head)
            seen = None
            if masked:
                key = first_key + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
                seen = (key >= ranges_ref[0, :, 0:1]) & (key < ranges_ref[0, :, 1:2])
                scores = jnp.where(seen, scores, HIDDEN)
                # Beyond the last slot lies whatever was there, which no weight of zero undoes.
                slot = first_key + jax.lax.broadcasted_iota(jnp.int32, values.shape, 0)
                values = jnp.where(slot < slots, values, 0)
            old = top_ref[head]
            top = jnp.maximum(old, scores.max(axis=1, keepdims=True))
            shrink, weights = jnp.exp2(old - top), jnp.exp2(scores - top)
            top_ref[head] = top
            total_ref[head] = total_ref[head] * shrink + weights.sum(axis=1, keepdims=True)
            if scale_refs:
                weights *= scale(scale_refs[1], head)
                weights = weights if seen is None else jnp.where(seen, weights, 0.0)
            part = dot(weights.astype(q.dtype), values, (1, 0))
            sum_ref[head] = sum_ref[head] * shrink + part

    inner = first_key >= table.inner_start[row]
    inner &= first_key + sizes.keys <= table.inner_stop[row]
    pl.when(inner)(functools.partial(attend, False))
    pl.when(jnp.logical_not(inner))(functools.partial(attend, True))

    @pl.when(table.block[step] == table.last[row])
    def _():
        total = total_ref[...]
        safe = jnp.where(total == 0.0, 1.0, total)
        out_ref[0] = (sum_ref[...] / safe).astype(out_ref.dtype)
        lse = (top_ref[...] + jnp.log2(safe)) * math.log(2)
        lse_ref[0] = jnp.where(total == 0.0, HIDDEN, lse)


def _floats(x: Array, dtype) -> Array:
    """The chip turns integers into float32 only."""
    return x.astype(jnp.float32).astype(dtype) if x.dtype == jnp.int8 else x.astype(dtype)


@functools.partial(jax.jit, static_argnames=("kv_heads", "sizes", "interpret"))
def decode_forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "L B K S H"] | Int8[Array, "L B K S H"],
    v: Float[Array, "L B K S H"] | Int8[Array, "L B K S H"],
    layer: Int[Array, ""],
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    k_scale: Float[Array, "L B K S"] | None = None,
    v_scale: Float[Array, "L B K S"] | None = None,
    first_head: Int[Array, ""] | int = 0,
    kv_heads: int | None = None,
    *,
    sizes: Cut | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """The output and the log-sum-exp of each query's scores, ``HIDDEN`` where it sees nothing.

    See ``glm_jax.ops.attention.attention``; not differentiable.

    Args:
      layer: which of the L layers of the cache.
      k_scale, v_scale: of integer keys and values, one for every head and slot.
      first_head: the key heads of these queries begin here, ``kv_heads`` of the K (all: None).
      sizes: of a program; chosen by the shape if None.
      interpret: run on any device, slowly, for tests.
    """
    (b, t, n, h), (_, _, all_heads, slots, _) = q.shape, k.shape
    kv_heads = all_heads if kv_heads is None else kv_heads
    sizes, groups = sizes or cut(kv_heads, h, slots, k.dtype.itemsize), n // kv_heads
    table, count = list_steps(k_start, k_end, slots=slots, keys=sizes.keys)
    # Scaled in float32: a scale that was rounded to bfloat16 would be wrong by up to 0.4 %.
    rows = (q.astype(jnp.float32) * to_base_2(h)).astype(q.dtype)
    rows = rows.reshape(b, t, kv_heads, groups, h)
    rows = rows.transpose(0, 2, 1, 3, 4).reshape(b, kv_heads, t * groups, h)
    rows = pad(rows, _ROWS, axis=2)  # What is added sees nothing.
    ranges = jnp.stack([k_start, k_end], axis=-1)
    ranges = pad(jnp.repeat(ranges.astype(jnp.int32), groups, axis=1), _ROWS)
    scales = [x for x in (k_scale, v_scale) if x is not None]
    own_scales = sizes.heads % 8 == 0 or sizes.heads == all_heads
    both = _call(
        rows, ranges, k, v, *scales,
        where=jnp.stack([jnp.int32(layer), jnp.int32(first_head)]), table=table, count=count,
        sizes=sizes, own_scales=own_scales, interpret=interpret,
    )  # fmt: skip
    out, lse = (
        x[:, :, : t * groups].reshape(b, kv_heads, t, groups, -1).swapaxes(1, 2) for x in both
    )
    return out.reshape(b, t, n, h), lse.reshape(b, t, n)


def _call(q, ranges, k, v, *scales, where, table, count, sizes, own_scales, interpret):
    (b, kv_heads, rows, h), (_, _, all_heads, slots, _) = q.shape, k.shape
    heads, keys = sizes

    def of_row(n, s, where, row, *_):
        return row[s], n, 0, 0

    def of_keys(n, s, where, row, block, *_):
        return where[0], row[s], jax.lax.div(where[1], heads) + n, block[s], 0

    def of_scales(n, s, where, row, block, *_):
        head = jax.lax.div(where[1], heads) + n if own_scales else 0
        return where[0], row[s], head, block[s]

    of_cache = pl.BlockSpec((1, 1, heads, keys, h), of_keys)
    of_scale = pl.BlockSpec((1, 1, heads if own_scales else all_heads, keys), of_scales)
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1 + len(table),
        grid=(kv_heads // heads, count),
        in_specs=[
            pl.BlockSpec((1, heads, rows, h), of_row),
            pl.BlockSpec((1, rows, 2), lambda n, s, where, row, *_: (row[s], 0, 0)),
            of_cache,
            of_cache,
            *[of_scale for _ in scales],
        ],
        out_specs=[
            pl.BlockSpec((1, heads, rows, h), of_row),
            pl.BlockSpec((1, heads, rows, 1), of_row),
        ],
        scratch_shapes=[
            pltpu.VMEM((heads, rows, 1), jnp.float32),
            pltpu.VMEM((heads, rows, 1), jnp.float32),
            pltpu.VMEM((heads, rows, h), jnp.float32),
        ],
    )
    return pl.pallas_call(
        functools.partial(_kernel, sizes=sizes, slots=slots, own_scales=own_scales),
        grid_spec=spec,
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((b, kv_heads, rows, 1), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        # Were every row full: the compiler wants a number, and the rows are data.
        cost_estimate=pl.CostEstimate(
            flops=4 * q.size * slots,
            transcendentals=q.size // h * slots,
            bytes_accessed=b * kv_heads * slots * (2 * h * k.dtype.itemsize + 4 * len(scales)),
        ),
        name="range_attention_decode",
        interpret=interpret,
    )(where, *table, q, ranges, k, v, *scales)
