"""Attention of rows that are cut over several devices (context parallelism).

``order`` says which tokens a device holds. Then there are three ways to bring queries and keys
together, each the body of a ``jax.shard_map`` that ``glm_jax.ops.attention.sharded`` sets up:
``gather`` (all keys to every device), ``ring`` (keys go round) and ``spread`` (all queries to the
keys); ``choose`` picks one. ``local`` is what a device computes in any of them.
"""

from glm_jax.ops.attention.context.choose import Way, choose_way
from glm_jax.ops.attention.context.gather import gather_attention
from glm_jax.ops.attention.context.local import LocalAttention
from glm_jax.ops.attention.context.order import (
    Order,
    check_length,
    from_zigzag,
    stretches,
    to_zigzag,
    within,
)
from glm_jax.ops.attention.context.ring import ring_attention
from glm_jax.ops.attention.context.spread import spread_attention

__all__ = [
    "LocalAttention",
    "Order",
    "Way",
    "check_length",
    "choose_way",
    "from_zigzag",
    "gather_attention",
    "ring_attention",
    "spread_attention",
    "stretches",
    "to_zigzag",
    "within",
]
