"""The backward kernel: dq, dk and dv in one pass, five products a tile.

The same walk as forward. All keys of the segment stay in fast memory with their gradients, so dk
and dv are summed there over all queries, dq over all keys, and no probability is computed twice
(two passes, one for dq and one for dk and dv, would take seven products). Keys that do not fit are
taken in segments by the caller. FlashAttention (Dao et al. 2022, algorithm 4), transposed as in
``forward``.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from glm_jax.ops.attention.online import to_base_2
from glm_jax.ops.attention.tpu.blocks import Blocks
from glm_jax.ops.attention.tpu.layout import gather_rows, scatter_rows
from glm_jax.ops.attention.tpu.tables import Fetches, Spans
from glm_jax.ops.attention.tpu.tiles import dot, hide, kept, walk
from glm_jax.ops.dropout import drop


def _kernel(*refs, blocks: Blocks, groups: int, dropout: float, drops: bool):
    table = Spans(*refs[:6])
    q_ref, grad_ref, lse_ref, delta_ref, k_ref, k_turned_ref, v_ref, ranges_ref, *refs = refs[9:]
    words_ref = refs.pop(0) if drops else None
    dq_ref, dk_ref, dv_ref, sum_ref, *in_place = refs
    rows_ref, grads_ref = in_place if blocks.in_place else (q_ref.at[0], grad_ref.at[0])
    b, i = pl.program_id(0), pl.program_id(2)

    @pl.when(i == 0)
    def _():
        dk_ref[...] = jnp.zeros_like(dk_ref)
        dv_ref[...] = jnp.zeros_like(dv_ref)

    sum_ref[...] = jnp.zeros_like(sum_ref)
    if blocks.in_place:
        gather_rows(rows_ref, q_ref, groups=groups, scale=to_base_2(rows_ref.shape[1]))
        gather_rows(grads_ref, grad_ref, groups=groups)

    def step(head, lanes, keys, first_key, masked):
        q, grad = rows_ref[head, :, lanes], grads_ref[head, :, lanes]
        scores = dot(k_ref[0, head, keys, :], q, (1, 0))
        if masked:
            scores = hide(scores, ranges_ref[0, :, lanes], first_key)
        probs = jnp.exp2(scores - lse_ref[0, head, :, lanes])
        dropped = lambda x: x
        if words_ref is not None:
            keep = kept(dropout, words_ref[0, head, :, lanes], first_key, probs.shape)
            dropped = functools.partial(drop, dropout, kept=keep)
        dv_ref[0, head, keys, :] += dot(dropped(probs).astype(grad.dtype), grad, (1, 1))
        d_probs = dropped(dot(v_ref[0, head, keys, :], grad, (1, 0)))
        d_scores = (probs * (d_probs - delta_ref[0, head, :, lanes])).astype(q.dtype)
        dk_ref[0, head, keys, :] += dot(d_scores, q, (1, 1))
        sum_ref[head, :, lanes] += dot(k_turned_ref[0, head, :, keys], d_scores, (1, 0))

    walk(table, blocks, groups, b, i, 0, step)
    if not blocks.in_place:
        dq_ref[0] = sum_ref[...].astype(dq_ref.dtype)
        return
    for head in range(blocks.heads):
        scatter_rows(dq_ref, head, sum_ref[head], groups=groups)


@functools.partial(
    jax.jit, static_argnames=("blocks", "groups", "dropout", "dq_dtype", "interpret")
)
def backward(
    q: Float[Array, "B K H R"] | Float[Array, "B N*H T"],
    d_out: Float[Array, "B K H R"] | Float[Array, "B N*H T"],
    lse: Float[Array, "B K 1 R"],
    delta: Float[Array, "B K 1 R"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    ranges: Int[Array, "B 2 R"],
    table: Spans,
    fetch: Fetches,
    words: Int[Array, "B K 1 R"] | None = None,
    *,
    blocks: Blocks,
    groups: int,
    dq_dtype,
    dropout: float = 0.0,
    interpret: bool = False,
) -> tuple[Array, Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """Gradients for one segment, S = ``blocks.keys``: dq like ``q``; dk and dv in float32.

    That of the scores is taken as if they were to base e: the caller scales dq and dk.
    """
    (b, kv_heads, _, h), total = k.shape, ranges.shape[2]
    rows, keys, heads = groups * blocks.queries, blocks.keys, blocks.heads
    q_blocks, drops = total // rows, words is not None

    def of_rows(b, n, i, *scalars):
        return b, n, 0, scalars[-1][b * q_blocks + i]

    def of_keys(b, n, i, *_):
        return b, n, 0, 0

    def of_queries(b, n, i, *scalars):
        return b, n, scalars[-1][b * q_blocks + i]

    big, result = (
        pl.BlockSpec((1, heads, h, rows), of_rows),
        pl.BlockSpec((1, heads, h, rows), lambda b, n, i, *_: (b, n, 0, i)),
    )
    if blocks.in_place:
        shape = 1, heads * groups * h, blocks.queries
        big = pl.BlockSpec(shape, of_queries)
        result = pl.BlockSpec(shape, lambda b, n, i, *_: (b, n, i))
    flat = pl.BlockSpec((1, heads, 1, rows), of_rows)
    whole = pl.BlockSpec((1, heads, keys, h), of_keys)
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=9,
        grid=(b, kv_heads // heads, q_blocks),
        in_specs=[
            big,
            big,
            flat,
            flat,
            whole,
            pl.BlockSpec((1, heads, h, keys), of_keys),
            whole,
            pl.BlockSpec((1, 2, rows), lambda b, n, i, *s: (b, 0, s[-1][b * q_blocks + i])),
            *[flat] * drops,
        ],
        out_specs=[
            result,
            whole,
            whole,
        ],
        scratch_shapes=[
            pltpu.VMEM((heads, h, rows), jnp.float32),
            *[pltpu.VMEM((heads, h, rows), q.dtype)] * (2 * blocks.in_place),
        ],
    )
    return pl.pallas_call(
        functools.partial(_kernel, blocks=blocks, groups=groups, dropout=dropout, drops=drops),
        grid_spec=spec,
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, dq_dtype),
            jax.ShapeDtypeStruct(k.shape, jnp.float32),
            jax.ShapeDtypeStruct(k.shape, jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=blocks.vmem,
        ),
        name="range_attention_backward",
        metadata=blocks.metadata(
            batch=b, kv_heads=kv_heads, groups=groups, row=total // groups, slots=keys
        ),
        interpret=interpret,
    )(*table, *fetch, q, d_out, lse, delta, k, k.mT, v, ranges, *[words] * drops)
