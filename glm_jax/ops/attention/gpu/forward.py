"""The forward kernel: output and log-sum-exp of one tile of queries of one head.

Online softmax as in FlashAttention-2 (Dao 2023, algorithm 1), to base 2: the scale holds log2(e),
and the chip's exponential is a power of two.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from glm_jax.ops.attention.gpu.blocks import Blocks
from glm_jax.ops.attention.gpu.tiles import Statics, dot, hide, numbers, walk, whole
from glm_jax.ops.attention.online import EMPTY, LOWEST
from glm_jax.ops.attention.spans import Spans, spans
from glm_jax.ops.dropout import drop, keeps


@functools.partial(jax.jit, static_argnames=("blocks", "statics"))
def forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    words: Int[Array, "B N T"] | None,
    *,
    blocks: Blocks,
    statics: Statics,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """T and S are whole blocks, H a power of two. The log-sum-exp is to base 2."""
    (b, t, n, h), (s, kv_heads) = q.shape, k.shape[1:3]
    tiles, groups = t // blocks.queries, n // kv_heads
    table = spans(k_start, k_end, tile=blocks.queries, unit=blocks.keys)
    # Last tiles first: they see most of causal rows, and the short ones fill up the end.
    tile = lambda i: tiles - 1 - i
    rows = pl.BlockSpec((None, blocks.queries, None, h), lambda i, n, b: (b, tile(i), n, 0))
    keys = pl.BlockSpec((None, s, None, h), lambda i, n, b: (b, 0, jax.lax.div(n, groups), 0))
    ranges = pl.BlockSpec((None, blocks.queries), lambda i, n, b: (b, tile(i)))
    row = pl.BlockSpec((None, None, blocks.queries), lambda i, n, b: (b, n, tile(i)))
    specs = rows, keys, keys, ranges, ranges, None if words is None else row
    return pl.pallas_call(
        functools.partial(_kernel, blocks, statics, tiles),
        grid=(tiles, n, b),
        in_specs=[whole(table), *specs],
        out_specs=[rows, row],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((b, n, t), jnp.float32),
        ],
        compiler_params=blocks.params,
        interpret=statics.interpret,
        name="range_attention_forward",
    )(table.flat(), q, k, v, k_start, k_end, words)


def _kernel(
    blocks: Blocks, statics: Statics, tiles: int, table: Spans, q_ref, k_ref, v_ref, starts_ref,
    ends_ref, words_ref, out_ref, lse_ref,
):  # fmt: skip
    q, starts, ends = q_ref[...], starts_ref[...][:, None], ends_ref[...][:, None]
    words = None if words_ref is None else words_ref[...]
    scale = statics.scale

    def step(unit, _, carry, masked):
        top, total, out = carry
        here, keys = pl.ds(unit * blocks.keys, blocks.keys), numbers(unit, blocks.keys)
        scores = dot(q, k_ref[here, :].T)
        if masked:
            scores = hide(scores, starts, ends, keys[None])
        # Of scores without their scale, which ``weights`` has for nothing.
        new_top = jnp.maximum(top, scores.max(axis=1))
        shrink = jnp.exp2((top - new_top) * scale)
        weights = statics.weights(scores, (new_top * scale)[:, None])
        total = total * shrink + weights.sum(axis=1)
        if words is not None:
            kept = keeps(statics.dropout, words[:, None], keys[None])
            weights = drop(statics.dropout, weights, kept)
        part = dot(weights.astype(v_ref.dtype), v_ref[here, :])
        return new_top, total, out * shrink[:, None] + part

    rows = jnp.zeros(blocks.queries, jnp.float32)
    start = rows + LOWEST, rows, jnp.zeros(q.shape, jnp.float32)
    at = pl.program_id(2) * tiles + tiles - 1 - pl.program_id(0)
    top, total, out = walk(table, at, step, start)
    empty = total == 0.0
    safe = jnp.where(empty, 1.0, total)
    out_ref[...] = (out / safe[:, None]).astype(out_ref.dtype)
    lse_ref[...] = jnp.where(empty, EMPTY, top * scale + jnp.log2(safe))
