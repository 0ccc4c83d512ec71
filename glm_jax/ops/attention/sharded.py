"""Attention on a mesh: each device works on its own rows of the batch, heads and queries.

The compiler can cut neither a Pallas call nor loops over data as they should be, so
``jax.shard_map`` does, by the table of ``glm_jax.sharding``. Rows that are cut over ``context`` are
left to ``glm_jax.ops.attention.context``.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from glm_jax.ops.attention import context
from glm_jax.ops.attention.context import LocalAttention, Order, Way
from glm_jax.ops.attention.prefix import LayerPrefix
from glm_jax.sharding import RULES, spec, ways


def sharded_attention(
    local: LocalAttention,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    *,
    prefix: LayerPrefix | None = None,
    order: Order = "natural",
    way: Way | None = None,
    words: Int[Array, "B T N"] | None = None,
) -> Float[Array, "B T N H"]:
    """See ``glm_jax.ops.attention.attention``.

    Args:
      way: how rows that are cut over ``context`` are attended to; None: ``context.choose_way``.
      words: of dropout; all keys are then gathered, as a key's number in its row decides.

    Raises:
      ValueError: words for queries that ``context`` does not cut, over keys that it does; rows in
        zigzag order that cannot be cut so.
    """
    if prefix is None:
        prefix = LayerPrefix(*jnp.zeros((2, 0, *k.shape[2:]), k.dtype))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual:
        k, v = prefix.before(k, v)
        return local(q, k, v, k_start, k_end, words)
    if order == "zigzag":
        context.check_length(q.shape[1], order, ways("length"))
    axis, cut = RULES["length"][0], _cut(q, k, mesh)
    way = _way(q, k, cut, mesh, "gather" if words is not None else way)
    if way == "spread" and words is not None:
        raise ValueError(
            f"attention over keys that {axis} cuts, of {q.shape[1]} queries that it does not, "
            "drops no probabilities: cut both or leave dropout out"
        )

    def shard(q, k, v, prefix, k_start, k_end, words):
        if cut.heads != cut.kv_heads:
            pick = functools.partial(_own_key_head, q, groups=groups, axes=cut.heads)
            k, v, prefix = pick(k), pick(v), LayerPrefix(*(pick(x[None])[0] for x in prefix))
        if way is None:
            k, v = prefix.before(k, v)
            return local(q, k, v, k_start, k_end, words)
        rows = q, k, v, prefix, k_start, k_end
        if way == "spread":
            return context.spread_attention(local, axis, *rows, scatter=bool(cut.length))
        if way == "ring":
            return context.ring_attention(local, axis, order, *rows)
        return context.gather_attention(local, axis, order, *rows, words)

    groups = q.shape[2] // k.shape[2]
    asked = () if way == "spread" else cut.length
    rows = PartitionSpec(cut.batch, asked, cut.heads)
    keys, before = (
        PartitionSpec(cut.batch, cut.slots, cut.kv_heads),
        PartitionSpec(None, cut.kv_heads),
    )
    ranges = PartitionSpec(cut.batch, asked)
    return jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(rows, keys, keys, before, ranges, ranges, rows),
        out_specs=PartitionSpec(cut.batch, cut.length, cut.heads),
        check_vma=False,
    )(q, k, v, prefix, k_start, k_end, words)


class _Cut(NamedTuple):
    """The mesh axes that cut each axis of queries and keys."""

    batch: tuple[str, ...]
    length: tuple[str, ...]
    heads: tuple[str, ...]
    slots: tuple[str, ...]
    kv_heads: tuple[str, ...]


def _cut(q: Array, k: Array, mesh: Any) -> _Cut:
    queries = spec(("batch", "length", "heads", None), q.shape, mesh)
    keys = spec(("batch", "length", "kv_heads", None), k.shape, mesh)
    cut = _Cut(*(_axes(x) for x in (*queries[:3], *keys[1:3])))
    # As 32 heads over 4 do with 2 key heads, the query heads of each shard may share one of them.
    mine = q.shape[2] // math.prod(mesh.shape[a] for a in cut.heads)
    if cut.heads != cut.kv_heads and (q.shape[2] // k.shape[2]) % mine:
        return cut._replace(heads=(), kv_heads=())
    return cut


def _way(q: Array, k: Array, cut: _Cut, mesh: Any, wanted: Way | None) -> Way | None:
    """How queries and keys come together; None: they are together."""
    if not cut.slots:
        return None
    if not cut.length:
        return "spread"
    mine = q.shape[2] // math.prod(mesh.shape[a] for a in cut.heads)
    return wanted or context.choose_way(
        queries=q.shape[1],
        keys=k.shape[1],
        heads=mine,
        kv_heads=max(1, mine * k.shape[2] // q.shape[2]),
        shards=ways("length"),
        own_keys=q.shape[1] == k.shape[1],
    )


def _axes(entry) -> tuple[str, ...]:
    """Mesh axes of one entry of a PartitionSpec, which holds a single name bare."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _own_key_head(q: Array, k: Array, *, groups: int, axes: tuple[str, ...]) -> Array:
    """The key head of this shard's query heads, of all."""
    first = jax.lax.axis_index(axes) * q.shape[2]
    return jax.lax.dynamic_slice_in_dim(k, jax.lax.div(first, groups), 1, axis=2)
