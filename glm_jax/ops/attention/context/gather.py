"""All keys to every shard: right where they are few, as in multi-query models."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from glm_jax.ops.attention.context.local import LocalAttention
from glm_jax.ops.attention.context.order import Order, from_zigzag, to_zigzag
from glm_jax.ops.attention.prefix import LayerPrefix


def gather_attention(
    local: LocalAttention,
    axis: str,
    order: Order,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    prefix: LayerPrefix,
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    words: Int[Array, "B T N"] | None = None,
) -> Float[Array, "B T N H"]:
    """One shard's part, under ``jax.shard_map``: T and S count what it holds, ranges all keys."""
    keys, values = prefix.before(_all(k, axis, order), _all(v, axis, order))
    return local(q, keys, values, k_start, k_end, words)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _all(x: Float[Array, "B S K H"], axis: str, order: Order) -> Float[Array, "B c*S K H"]:
    """Those of all shards, in the row's own order."""
    found = jax.lax.all_gather(x, axis, axis=1, tiled=True)
    return from_zigzag(found, jax.lax.axis_size(axis), 1) if order == "zigzag" else found


def _all_fwd(x, axis, order):
    return _all(x, axis, order), jnp.zeros((), x.dtype)


def _all_bwd(axis, order, saved, grad):
    # Summed in float32, as one device sums them: the shards' parts are as many as they are.
    grad = grad.astype(jnp.float32)
    if order == "zigzag":
        grad = to_zigzag(grad, jax.lax.axis_size(axis), 1)
    mine = jax.lax.psum_scatter(grad, axis, scatter_dimension=1, tiled=True)
    return (mine.astype(saved.dtype),)


_all.defvjp(_all_fwd, _all_bwd)
