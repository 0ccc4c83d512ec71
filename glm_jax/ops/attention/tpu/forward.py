"""The forward kernel: output and log-sum-exp, everything transposed.

Rows (a query of one head) lie along the lanes and keys along the sublanes: softmax then reduces
over sublanes, which costs a tenth of a reduction over lanes, and its running maximum and sum are
one vector each instead of a padded column. The heads of a group are so many more rows, which is
how they share one copy of the keys. Softmax is to base 2: the scale holds log2(e), and the chip's
exponential is a power of two. Online softmax: FlashAttention (Dao et al. 2022, algorithm 1).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from glm_jax.ops.attention.online import EMPTY, LOWEST, to_base_2
from glm_jax.ops.attention.tpu.blocks import Blocks
from glm_jax.ops.attention.tpu.layout import gather_rows, scatter_rows
from glm_jax.ops.attention.tpu.tables import Fetches, Spans
from glm_jax.ops.attention.tpu.tiles import dot, hide, kept, walk
from glm_jax.ops.dropout import drop


def _kernel(*refs, blocks: Blocks, groups: int, dropout: float, drops: bool):
    table = Spans(*refs[:6])
    q_ref, k_ref, v_ref, ranges_ref, *refs = refs[9:]
    words_ref = refs.pop(0) if drops else None
    out_ref, lse_ref, top_ref, total_ref, sum_ref, *in_place = refs
    rows_ref = in_place[0] if blocks.in_place else q_ref.at[0]
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _():
        top_ref[...] = jnp.full_like(top_ref, LOWEST)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        if blocks.in_place:
            scale = to_base_2(rows_ref.shape[1])
            gather_rows(rows_ref, q_ref, groups=groups, scale=scale)

    def step(head, lanes, keys, first_key, masked):
        scores = dot(k_ref[0, head, keys, :], rows_ref[head, :, lanes], (1, 0))
        if masked:
            scores = hide(scores, ranges_ref[0, :, lanes], first_key)
        old = top_ref[head, :, lanes]
        top = jnp.maximum(old, scores.max(axis=0, keepdims=True))
        shrink = jnp.exp2(old - top)
        weights = jnp.exp2(scores - top)
        top_ref[head, :, lanes] = top
        added = weights.sum(axis=0, keepdims=True)
        total_ref[head, :, lanes] = total_ref[head, :, lanes] * shrink + added
        if words_ref is not None:
            keep = kept(dropout, words_ref[0, head, :, lanes], first_key, weights.shape)
            weights = drop(dropout, weights, keep)
        part = dot(v_ref[0, head, :, keys], weights.astype(v_ref.dtype), (1, 0))
        sum_ref[head, :, lanes] = sum_ref[head, :, lanes] * shrink + part

    walk(table, blocks, groups, b, i, j, step)

    @pl.when(j == pl.num_programs(3) - 1)
    def _():
        total = total_ref[...]
        empty = total == 0.0
        safe = jnp.where(empty, 1.0, total)
        lse_ref[0] = jnp.where(empty, EMPTY, top_ref[...] + jnp.log2(safe))
        if not blocks.in_place:
            out_ref[0] = (sum_ref[...] / safe).astype(out_ref.dtype)
            return
        for head in range(blocks.heads):
            scatter_rows(out_ref, head, sum_ref[head] / safe[head], groups=groups)


@functools.partial(jax.jit, static_argnames=("blocks", "groups", "dropout", "interpret"))
def forward(
    q: Float[Array, "B K H R"] | Float[Array, "B N*H T"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K H S"],
    ranges: Int[Array, "B 2 R"],
    table: Spans,
    fetch: Fetches,
    words: Int[Array, "B K 1 R"] | None = None,
    *,
    blocks: Blocks,
    groups: int,
    dropout: float = 0.0,
    interpret: bool = False,
) -> tuple[Float[Array, "B K H R"] | Float[Array, "B N*H T"], Float[Array, "B K 1 R"]]:
    """Output, like ``q``, and base-2 log-sum-exp of every row.

    Rows are laid out [block of queries, head of the group, query of the block] and their queries
    scaled by ``to_base_2``; with ``blocks.in_place`` queries are ``layout.turned``.

    Args:
      words: where weights are dropped, at this rate.
    """
    (b, kv_heads, h, _), total = v.shape, ranges.shape[2]
    rows, heads = groups * blocks.queries, blocks.heads
    q_blocks, k_blocks = total // rows, k.shape[2] // blocks.keys

    def key_block(b, i, j, low, high):
        return jnp.clip(j, low[b * q_blocks + i], high[b * q_blocks + i])

    def of_rows(b, n, i, j, *scalars):
        block = scalars[-1][b * q_blocks + i]
        return (b, n, block) if blocks.in_place else (b, n, 0, block)

    def of_outputs(b, n, i, j, *_):
        return (b, n, i) if blocks.in_place else (b, n, 0, i)

    def of_keys(b, n, i, j, *scalars):
        return b, n, key_block(b, i, j, *scalars[-3:-1]), 0

    def of_values(b, n, i, j, *scalars):
        return b, n, 0, key_block(b, i, j, *scalars[-3:-1])

    drops = words is not None
    in_place = 1, heads * groups * h, blocks.queries
    of_program = in_place if blocks.in_place else (1, heads, h, rows)
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=9,
        grid=(b, kv_heads // heads, q_blocks, k_blocks),
        in_specs=[
            pl.BlockSpec(of_program, of_rows),
            pl.BlockSpec((1, heads, blocks.keys, h), of_keys),
            pl.BlockSpec((1, heads, h, blocks.keys), of_values),
            pl.BlockSpec((1, 2, rows), lambda b, n, i, j, *_: (b, 0, i)),
            *[pl.BlockSpec((1, heads, 1, rows), lambda b, n, i, j, *_: (b, n, 0, i))] * drops,
        ],
        out_specs=[
            pl.BlockSpec(of_program, of_outputs),
            pl.BlockSpec((1, heads, 1, rows), lambda b, n, i, j, *_: (b, n, 0, i)),
        ],
        scratch_shapes=[
            pltpu.VMEM((heads, 1, rows), jnp.float32),
            pltpu.VMEM((heads, 1, rows), jnp.float32),
            pltpu.VMEM((heads, h, rows), jnp.float32),
            *[pltpu.VMEM((heads, h, rows), q.dtype)] * blocks.in_place,
        ],
    )
    return pl.pallas_call(
        functools.partial(_kernel, blocks=blocks, groups=groups, dropout=dropout, drops=drops),
        grid_spec=spec,
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((b, kv_heads, 1, total), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=blocks.vmem,
        ),
        name="range_attention_forward",
        metadata=blocks.metadata(
            batch=b, kv_heads=kv_heads, groups=groups, row=total // groups, slots=k.shape[2]
        ),
        interpret=interpret,
    )(*table, *fetch, q, k, v, ranges, *[words] * drops)
