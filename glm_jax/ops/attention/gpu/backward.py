"""The backward kernels: one for the queries' gradient, one for the keys' and values'.

Both compute the probabilities anew from the log-sum-exp (FlashAttention-2, Dao 2023, algorithm 2).
Each program sums up what it alone writes, so there are no atomic sums and the gradients are the
same every time.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from glm_jax.ops.attention.gpu.blocks import Blocks
from glm_jax.ops.attention.gpu.tiles import Statics, dot, hide, numbers, walk, whole
from glm_jax.ops.attention.spans import Spans, spans
from glm_jax.ops.dropout import drop, keeps


class Saved(NamedTuple):
    """What both kernels take, and the references to it that they see."""

    q: Float[Array, "B T N H"]
    grad: Float[Array, "B T N H"]
    """Of the output."""
    lse: Float[Array, "B N T"]
    """Of the scores, to base 2."""
    delta: Float[Array, "B N T"]
    """The sum over a row of the output times its gradient."""
    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"]
    k_start: Int[Array, "B T"]
    k_end: Int[Array, "B T"]
    words: Int[Array, "B N T"] | None
    """Of dropout."""


def queries_gradient(
    saved: Saved, *, blocks: Blocks, statics: Statics, dtype: Any
) -> Float[Array, "B T N H"]:
    """dq, of this type; T and S are whole blocks, H a power of two."""
    (b, t, n, h), (s, kv_heads) = saved.q.shape, saved.k.shape[1:3]
    tiles, groups = t // blocks.queries, n // kv_heads
    table = spans(saved.k_start, saved.k_end, tile=blocks.queries, unit=blocks.keys)
    rows = pl.BlockSpec((None, blocks.queries, None, h), lambda i, n, b: (b, i, n, 0))
    row = pl.BlockSpec((None, None, blocks.queries), lambda i, n, b: (b, n, i))
    keys = pl.BlockSpec((None, s, None, h), lambda i, n, b: (b, 0, jax.lax.div(n, groups), 0))
    ranges = pl.BlockSpec((None, blocks.queries), lambda i, n, b: (b, i))
    return pl.pallas_call(
        functools.partial(_queries_kernel, blocks, statics, tiles),
        grid=(tiles, n, b),
        in_specs=[whole(table), _specs(saved, rows, row, keys, ranges)],
        out_specs=rows,
        out_shape=jax.ShapeDtypeStruct(saved.q.shape, dtype),
        compiler_params=blocks.params,
        interpret=statics.interpret,
        name="range_attention_queries_gradient",
    )(table.flat(), saved)


def keys_gradient(
    saved: Saved, *, blocks: Blocks, statics: Statics, dtype: Any
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """dk and dv, of this type; a program sums over all query heads that share its keys."""
    (b, t, n, h), (s, kv_heads) = saved.q.shape, saved.k.shape[1:3]
    tiles, groups = s // blocks.keys, n // kv_heads
    seen = spans(saved.k_start, saved.k_end, tile=blocks.queries, unit=blocks.keys)
    table = seen.turned(tiles)
    rows = pl.BlockSpec((None, t, groups, h), lambda j, k, b: (b, 0, k, 0))
    row = pl.BlockSpec((None, groups, t), lambda j, k, b: (b, k, 0))
    keys = pl.BlockSpec((None, blocks.keys, None, h), lambda j, k, b: (b, j, k, 0))
    ranges = pl.BlockSpec((None, t), lambda j, k, b: (b, 0))
    return pl.pallas_call(
        functools.partial(_keys_kernel, blocks, statics, tiles, groups),
        grid=(tiles, kv_heads, b),
        in_specs=[whole(table), _specs(saved, rows, row, keys, ranges)],
        out_specs=[keys, keys],
        out_shape=[jax.ShapeDtypeStruct(saved.k.shape, dtype)] * 2,
        compiler_params=blocks.params,
        interpret=statics.interpret,
        name="range_attention_keys_gradient",
    )(table.flat(), saved)


def _specs(saved: Saved, rows, row, keys, ranges) -> Saved:
    words = None if saved.words is None else row
    return Saved(rows, rows, row, row, keys, keys, ranges, ranges, words)


def _queries_kernel(
    blocks: Blocks, statics: Statics, tiles: int, table: Spans, saved: Saved, dq_ref
):
    q, grad, lse, delta = (x[...] for x in saved[:4])
    starts, ends = saved.k_start[...][:, None], saved.k_end[...][:, None]
    words = None if saved.words is None else saved.words[...]

    def step(unit, _, dq, masked):
        here, numbered = pl.ds(unit * blocks.keys, blocks.keys), numbers(unit, blocks.keys)
        keys = saved.k[here, :]
        scores = dot(q, keys.T)
        if masked:
            scores = hide(scores, starts, ends, numbered[None])
        probs = statics.weights(scores, lse[:, None])
        d_probs = dot(grad, saved.v[here, :].T)
        if words is not None:
            kept = keeps(statics.dropout, words[:, None], numbered[None])
            d_probs = drop(statics.dropout, d_probs, kept)
        d_scores = probs * (d_probs - delta[:, None])
        return dq + dot(d_scores.astype(keys.dtype), keys)

    at = pl.program_id(2) * tiles + pl.program_id(0)
    dq = walk(table, at, step, jnp.zeros(q.shape, jnp.float32))
    dq_ref[...] = (dq * statics.head_dim**-0.5).astype(dq_ref.dtype)


def _keys_kernel(
    blocks: Blocks, statics: Statics, tiles: int, groups: int, table: Spans, saved: Saved,
    dk_ref, dv_ref,
):  # fmt: skip
    keys, values = saved.k[...], saved.v[...]
    numbered = numbers(pl.program_id(0), blocks.keys)[:, None]

    def step(unit, head, carry, masked):
        dk, dv = carry
        here = pl.ds(unit * blocks.queries, blocks.queries)
        q, grad = saved.q[here, head, :], saved.grad[here, head, :]
        scores = dot(keys, q.T)
        if masked:
            starts, ends = saved.k_start[here][None], saved.k_end[here][None]
            scores = hide(scores, starts, ends, numbered)
        probs = statics.weights(scores, saved.lse[head, here][None])
        d_probs = dot(values, grad.T)
        dropped = probs
        if saved.words is not None:
            kept = keeps(statics.dropout, saved.words[head, here][None], numbered)
            dropped, d_probs = (drop(statics.dropout, x, kept) for x in (probs, d_probs))
        d_scores = probs * (d_probs - saved.delta[head, here][None])
        return dk + dot(d_scores.astype(q.dtype), q), dv + dot(dropped.astype(grad.dtype), grad)

    at = pl.program_id(2) * tiles + pl.program_id(0)
    zero = jnp.zeros(keys.shape, jnp.float32)
    dk, dv = walk(table, at, step, (zero, zero), turns=groups)
    dk_ref[...] = (dk * statics.head_dim**-0.5).astype(dk_ref.dtype)
    dv_ref[...] = dv.astype(dv_ref.dtype)
