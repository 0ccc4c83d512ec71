"""A few queries over very many keys that are cut over the shards: reading from a long cache.

The queries go to the keys, as in Flash-Decoding (Dao et al. 2023): every shard attends over its own
keys, and only outputs and log-sum-exps are summed over the shards.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from glm_jax.ops.attention.context.local import LocalAttention
from glm_jax.ops.attention.context.order import within
from glm_jax.ops.attention.prefix import LayerPrefix


def spread_attention(
    local: LocalAttention,
    axis: str,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    prefix: LayerPrefix,
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    *,
    scatter: bool,
) -> Float[Array, "B t N H"]:
    """One shard's part, under ``jax.shard_map``: all queries, the shard's own keys in natural
    order, ranges over all keys. The first shard has the prefix too. Not differentiable.

    Returns:
      all queries' outputs, or with ``scatter`` only the shard's own share of them.
    """
    shards = jax.lax.axis_size(axis)
    shard, length, before = jax.lax.axis_index(axis), k.shape[1] * shards, len(prefix.k)

    def among_own(bound: Array) -> Array:
        own = within(bound - before, shard, order="natural", shards=shards, length=length)
        return own + jnp.where(shard == 0, jnp.clip(bound, 0, before), before)

    out, lse = local.forward(q, *prefix.before(k, v), among_own(k_start), among_own(k_end))
    return sum_over_shards(out, lse, axis, scatter=scatter)


def sum_over_shards(
    out: Float[Array, "B T N H"], lse: Float[Array, "B T N"], axis: str, *, scatter: bool = False
) -> Float[Array, "B t N H"]:
    """Outputs over all keys from those over each shard's own.

    Args:
      scatter: every shard gets only its own share of the queries.
    """
    # Queries that see nothing anywhere weigh zeros; the largest weight is 1, so nothing overflows.
    weight = jnp.exp(lse - jax.lax.pmax(lse, axis))[..., None]
    parts = out.astype(jnp.float32) * weight, weight
    if scatter:
        total = (jax.lax.psum_scatter(x, axis, scatter_dimension=1, tiled=True) for x in parts)
    else:
        total = jax.lax.psum(parts, axis)
    summed, weights = total
    return (summed / weights).astype(out.dtype)
