"""A few queries per row over a cache where it lies: no layer is copied out, on a mesh neither.

See ``glm_jax.ops.attention.tpu.decode`` for what each device runs.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Int8

from glm_jax.ops.attention.context import within
from glm_jax.ops.attention.context.spread import sum_over_shards
from glm_jax.ops.attention.tpu.decode import decode_forward
from glm_jax.ops.chip import on_tpu
from glm_jax.sharding import RULES, spec

# Query rows of one key head; more of them fill the vectors of the kernel for prompts.
MOST_ROWS = 128


def reads_in_place(
    q: Float[Array, "B T N H"], kv_heads: int, implementation: str, *, anywhere: bool = False
) -> bool:
    """Whether ``in_place_attention`` is for this call: few queries, a TPU, heads of whole vectors.

    A cache of narrower heads (GLM-10B's 64 channels) the TPU compiler keeps with the slots
    innermost, in half the memory, and would copy for the kernel at every layer.

    Args:
      implementation: as asked for; only ``auto`` and ``tpu`` leave the choice.
      anywhere: not only on a TPU, and any heads: for tests.
    """
    rows = q.shape[1] * (q.shape[2] // kv_heads)
    return (
        implementation in ("auto", "tpu")
        and (anywhere or (on_tpu() and q.shape[3] % 128 == 0))
        and rows < MOST_ROWS
        and q.dtype in (jnp.bfloat16, jnp.float32)
    )


def in_place_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "L B K S H"] | Int8[Array, "L B K S H"],
    v: Float[Array, "L B K S H"] | Int8[Array, "L B K S H"],
    layer: Int[Array, ""] | int,
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    k_scale: Float[Array, "L B K S"] | None = None,
    v_scale: Float[Array, "L B K S"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """See ``glm_jax.ops.attention.attention`` and ``tpu.decode.decode_forward``.

    Slots that are cut over ``context`` stay where they are: each device attends over its own, as in
    ``context.spread``.
    """
    layer = jnp.asarray(layer, jnp.int32)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual:
        return decode_forward(
            q, k, v, layer, k_start, k_end, k_scale, v_scale, interpret=interpret
        )[0]
    rows = spec(("batch", None, "heads", None), q.shape, mesh)
    held = spec((None, "batch", "kv_heads", "length", None), k.shape, mesh)
    batch, heads, kv_heads, cut = rows[0], rows[2], held[2], held[3]
    slots, context = k.shape[3], RULES["length"][0]
    groups, mine = q.shape[2] // k.shape[2], q.shape[2] // _size(heads, mesh)
    # As 32 heads over 4 do with 2 key heads, the query heads of each shard may share one of them.
    if heads != kv_heads and groups % mine:
        heads = kv_heads = None
    shared = heads != kv_heads

    def shard(q, k, v, layer, k_start, k_end, *scales):
        first = jax.lax.axis_index(heads) * mine if shared else 0
        if cut:
            at, shards = jax.lax.axis_index(context), jax.lax.axis_size(context)
            own = functools.partial(within, order="natural", shards=shards, length=slots)
            k_start, k_end = own(k_start, at), own(k_end, at)
        out, lse = decode_forward(
            q, k, v, layer, k_start, k_end, *(scales or (None, None)),
            jax.lax.div(first, groups) if shared else 0,
            kv_heads=1 if shared else None, interpret=interpret,
        )  # fmt: skip
        return sum_over_shards(out, lse, context) if cut else out

    queries, ranges = PartitionSpec(batch, None, heads), PartitionSpec(batch)
    cache = PartitionSpec(None, batch, kv_heads, cut)
    scales = () if k_scale is None else (k_scale, v_scale)
    return jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(queries, cache, cache, PartitionSpec(), ranges, ranges, *[cache] * len(scales)),
        out_specs=queries,
        check_vma=False,
    )(q, k, v, layer, k_start, k_end, *scales)


def _size(axes, mesh) -> int:
    """Devices among which one entry of a PartitionSpec cuts an axis."""
    names = (axes,) if isinstance(axes, str) else tuple(axes or ())
    return math.prod(mesh.shape[name] for name in names)
