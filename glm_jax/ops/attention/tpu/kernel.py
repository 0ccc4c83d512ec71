"""Attention over key ranges as a function of ordinary arrays, with its gradient."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from glm_jax.ops.attention.online import to_base_2
from glm_jax.ops.attention.padding import pad
from glm_jax.ops.attention.tpu import layout, tables
from glm_jax.ops.attention.tpu.backward import backward
from glm_jax.ops.attention.tpu.blocks import Blocks
from glm_jax.ops.attention.tpu.forward import forward
from glm_jax.ops.dropout import counted_from


class Plan(NamedTuple):
    """How both passes are cut."""

    forward: Blocks
    backward: Blocks
    dropout: float = 0.0
    """Rate, where there are words."""
    interpret: bool = False


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def range_attention(
    plan: Plan,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    words: Int[Array, "B T N"] | None = None,
) -> Float[Array, "B T N H"]:
    """See ``glm_jax.ops.attention.attention``; any T and S, padded inside to whole blocks."""
    return range_forward(plan, q, k, v, k_start, k_end, words)[0]


def _rows(blocks: Blocks, x: Float[Array, "B T N H"], kv_heads: int) -> Float[Array, "B K H R"]:
    return layout.to_rows(pad(x, blocks.queries), x.shape[2] // kv_heads, blocks.queries)


def _queries(blocks: Blocks, x: Array, kv_heads: int, scale: float = 1.0) -> Array:
    """As the kernel takes them; in place it scales them itself."""
    if blocks.in_place:
        return layout.turned(pad(x, blocks.queries))
    # In float32: rounded to bfloat16, the scale would be wrong by up to 0.4 %.
    return _rows(blocks, (x.astype(jnp.float32) * scale).astype(x.dtype), kv_heads)


def _from_queries(blocks: Blocks, x: Array, like: Float[Array, "B T N H"], groups: int) -> Array:
    """The inverse of ``_queries``, without its padding."""
    (t, n) = like.shape[1:3]
    in_place = blocks.in_place
    heads = layout.from_turned(x, n) if in_place else layout.from_rows(x, groups, blocks.queries)
    return heads[:, :t]


def _scalars(blocks: Blocks, k_start: Array, k_end: Array, groups: int):
    """Each row's range, and the tables made from them; ranges count keys of S."""
    starts, ends = (pad(x, blocks.queries) for x in (k_start, k_end))
    table = tables.spans(
        starts, ends, tile=blocks.tile, unit=blocks.unit, part=blocks.part or blocks.tile
    )
    units = blocks.keys // blocks.unit
    fetch = tables.fetches(table, batch=len(starts), tiles=blocks.tiles, units=units)
    return layout.range_rows(starts, ends, groups, blocks.queries), table, fetch


def _word_rows(blocks: Blocks, words: Array | None, kv_heads: int) -> Array | None:
    return None if words is None else _rows(blocks, words[..., None], kv_heads)


def range_forward(plan: Plan, q, k, v, k_start, k_end, words):
    """The output, and what ``range_backward`` wants: at last the log-sum-exp [B, T, N], base 2."""
    (t, n, h), kv_heads, blocks = q.shape[1:], k.shape[2], plan.forward
    groups = n // kv_heads
    k_start, k_end = (jnp.clip(x, 0, k.shape[1]) for x in (k_start, k_end))
    queries = _queries(blocks, q, kv_heads, to_base_2(h))
    keys, values = (pad(x, blocks.keys) for x in (k, v))
    out, lse = forward(
        queries, keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 3, 1),
        *_scalars(blocks, k_start, k_end, groups), _word_rows(blocks, words, kv_heads),
        blocks=blocks, groups=groups, dropout=plan.dropout, interpret=plan.interpret,
    )  # fmt: skip
    out = _from_queries(blocks, out, q, groups)
    lse = layout.from_rows(lse, groups, blocks.queries)[:, :t]
    # Named alike, so that a policy which keeps the output need not run the kernel again.
    out, lse = (checkpoint_name(x, "attention_out") for x in (out, lse[..., 0]))
    return out, (q, k, v, k_start, k_end, words, out, lse)


def range_backward(plan: Plan, saved, d_out):
    """The gradients of ``range_attention``'s arguments; the output and the log-sum-exp may be over
    more keys than these, and dq is then what these add to it."""
    q, k, v, k_start, k_end, words, out, lse = saved
    s, h, kv_heads, blocks = k.shape[1], q.shape[3], k.shape[2], plan.backward
    groups = q.shape[2] // kv_heads
    delta = jnp.einsum("BTNH,BTNH->BTN", out, d_out, preferred_element_type=jnp.float32)
    queries = _queries(blocks, q, kv_heads, to_base_2(h))
    grads = _queries(blocks, d_out.astype(q.dtype), kv_heads)
    lse, delta = (_rows(blocks, x[..., None], kv_heads) for x in (lse, delta))
    keys, values = (pad(x, blocks.keys).transpose(0, 2, 1, 3) for x in (k, v))
    segments = keys.shape[2] // blocks.keys
    drawn = _word_rows(blocks, words, kv_heads)

    def segment(keys, values, first, dq_dtype):
        starts, ends = (jnp.clip(x - first, 0, blocks.keys) for x in (k_start, k_end))
        return backward(
            queries, grads, lse, delta, keys, values, *_scalars(blocks, starts, ends, groups),
            None if drawn is None else counted_from(first, drawn),
            blocks=blocks, groups=groups, dropout=plan.dropout, dq_dtype=dq_dtype,
            interpret=plan.interpret,
        )  # fmt: skip

    if segments == 1:
        dq, dk, dv = segment(keys, values, 0, q.dtype)
    else:
        split = lambda x: jnp.moveaxis(x.reshape(*x.shape[:2], segments, -1, h), 2, 0)
        join = lambda x: jnp.moveaxis(x, 0, 2).reshape(*keys.shape)

        def one(dq, xs):
            keys, values, first = xs
            found = segment(keys, values, first, jnp.float32)
            # XLA may fuse the call with what stacks its results, and then forgets how much fast
            # memory the kernel asks for.
            part, dk, dv = jax.lax.optimization_barrier(found)
            return dq + part, (dk, dv)

        firsts = jnp.arange(segments, dtype=jnp.int32) * blocks.keys
        zero = jnp.zeros(queries.shape, jnp.float32)
        dq, (dk, dv) = jax.lax.scan(one, zero, (split(keys), split(values), firsts))
        dk, dv = join(dk), join(dv)
    dq = _from_queries(blocks, dq, q, groups) * h**-0.5
    dk, dv = (x.transpose(0, 2, 1, 3)[:, :s] for x in (dk * math.log(2), dv))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None, None


range_attention.defvjp(range_forward, range_backward)
