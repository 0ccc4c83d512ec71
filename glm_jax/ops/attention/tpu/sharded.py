"""The kernel on a mesh: each device works on its own rows of the batch, heads and queries.

The compiler cannot cut a Pallas call, so ``jax.shard_map`` does, by the table of
``glm_jax.sharding`` (which is why this one file of ``ops`` imports it). Queries cut over
``context`` see all keys: those are gathered.
"""

from __future__ import annotations

import functools
import math

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from glm_jax.ops.attention.tpu.blocks import Problem, choose
from glm_jax.ops.attention.tpu.kernel import Plan, range_attention
from glm_jax.sharding import spec


def tpu_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    *,
    vmem: int,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """See ``glm_jax.ops.attention.attention``.

    Args:
      vmem: bytes of fast memory of one core.
      interpret: run on any device, slowly, for tests.
    """
    local = functools.partial(_local, vmem=vmem, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual:
        return local(q, k, v, k_start, k_end)
    queries = spec(("batch", "length", "heads", None), q.shape, mesh)
    keys = spec(("batch", None, "kv_heads", None), k.shape, mesh)
    batch, length, heads, kv_heads = (_axes(x) for x in (*queries[:3], keys[2]))
    if heads != kv_heads and not _one_key_head(q, k, heads, mesh):
        heads, kv_heads = (), ()
    chosen = functools.partial(_own_key_head, axes=heads) if heads != kv_heads else lambda q, k: k

    def shard(q, k, v, k_start, k_end):
        return local(q, chosen(q, k), chosen(q, v), k_start, k_end)

    rows, others = PartitionSpec(batch, length, heads), PartitionSpec(batch, None, kv_heads)
    ranges = PartitionSpec(batch, length)
    return jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(rows, others, others, ranges, ranges),
        out_specs=rows,
        check_vma=False,
    )(q, k, v, k_start, k_end)


def _local(q, k, v, k_start, k_end, *, vmem: int, interpret: bool) -> Array:
    problem = Problem(
        batch=q.shape[0],
        queries=q.shape[1],
        keys=k.shape[1],
        kv_heads=k.shape[2],
        groups=q.shape[2] // k.shape[2],
        head_dim=q.shape[3],
        itemsize=q.dtype.itemsize,
        vmem=vmem,
    )
    return range_attention(Plan(*choose(problem), interpret), q, k, v, k_start, k_end)


def _axes(entry) -> tuple[str, ...]:
    """Mesh axes of one entry of a PartitionSpec, which holds a single name bare."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _one_key_head(q: Array, k: Array, axes, mesh) -> bool:
    """Whether the query heads of each shard share one key head, as 32 over 4 do with 2."""
    mine = q.shape[2] // math.prod(mesh.shape[a] for a in axes)
    return (q.shape[2] // k.shape[2]) % mine == 0


def _own_key_head(q: Array, k: Array, axes) -> Array:
    """The key head of this shard's query heads, of all."""
    first = jax.lax.axis_index(axes) * q.shape[2]
    groups = q.shape[2] * math.prod(jax.lax.axis_size(a) for a in axes) // k.shape[2]
    return jax.lax.dynamic_slice_in_dim(k, jax.lax.div(first, groups), 1, axis=2)
