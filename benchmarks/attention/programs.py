"""One layer's attention on one device, lowered for a chip that need not be here."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from glm_jax import sharding
from glm_jax.config import preset
from glm_jax.ops.attention import Implementation, attention
from glm_jax.ops.attention.tpu.decode import decode_forward
from train.planning.topology import topology

# The smallest slice of each chip that has a name.
SLICES = {"v4": "v4-8", "v5e": "v5e-4", "v5p": "v5p-8", "v6e": "v6e-4", "tpu7x": "tpu7x-8"}
# ChatGLM2 and GLM-4 have the same heads.
MODELS = ("glm-10b", "chatglm-6b", "chatglm2-6b", "glm-4-9b")
LENGTHS = (1024, 8192, 32768, 131072)


@dataclasses.dataclass(frozen=True)
class Program:
    """Attention of one row of bfloat16, forward and backward."""

    chip: str
    model: str
    length: int
    tensor: int = 1
    """Devices that share the heads: this one has so many fewer."""

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, key heads, head_dim of this device."""
        heads, kv_heads, head_dim = heads_of(self.model)
        return heads // self.tensor, max(1, kv_heads // self.tensor), head_dim


def heads_of(model: str) -> tuple[int, int, int]:
    """Query heads, key heads, head_dim, of a preset or as they are written: ``32x2x96``."""
    if written := re.fullmatch(r"(\d+)x(\d+)x(\d+)", model):
        heads, kv_heads, head_dim = map(int, written.groups())
        return heads, kv_heads, head_dim
    config = preset(model)
    return config.num_heads, config.num_kv_heads, config.head_dim


@dataclasses.dataclass(frozen=True)
class Decode:
    """One token per row over a cache of two layers."""

    chip: str
    model: str
    slots: int
    dtype: str = "bfloat16"
    """Of the cache; queries are bfloat16."""
    rows: int = 8


@functools.cache
def device_of(chip: str) -> Any:
    where = dict(topology(SLICES[chip]).description)
    name = where.pop("topology_name")
    return topologies.get_topology_desc(topology_name=name, platform="tpu", **where).devices[0]


def _on(device: Any) -> tuple[Mesh, Callable[..., jax.ShapeDtypeStruct]]:
    """A mesh of one device, and a function that describes an array there."""
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=1), [device])
    here = NamedSharding(mesh, PartitionSpec())
    return mesh, lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(
        shape, dtype, sharding=here
    )


def lower(program: Program, *, gradient: bool = True) -> jax.stages.Lowered:
    """For one device of the chip."""
    device = device_of(program.chip)
    return lower_attention(device, program.heads, program.length, "tpu", gradient=gradient)


def lower_attention(
    device: Any,
    heads: tuple[int, int, int],
    length: int,
    implementation: Implementation,
    *,
    gradient: bool = True,
) -> jax.stages.Lowered:
    """For this device, through the same door that the network takes.

    Args:
      heads: query heads, key heads, head_dim.
    """
    mesh, array = _on(device)
    query_heads, kv_heads, head_dim = heads
    q = array(1, length, query_heads, head_dim)
    k = array(1, length, kv_heads, head_dim)
    ranges = array(1, length, dtype=jnp.int32)

    def forward(q, k, v, start, end):
        return attention(q, k, v, start, end, implementation=implementation)

    def both(q, k, v, start, end, d_out):
        out, pull = jax.vjp(lambda q, k, v: forward(q, k, v, start, end), q, k, v)
        return out, *pull(d_out)

    with jax.set_mesh(mesh):
        if gradient:
            return jax.jit(both).lower(q, k, k, ranges, ranges, q)
        return jax.jit(forward).lower(q, k, k, ranges, ranges)


def lower_decode(program: Decode) -> jax.stages.Lowered:
    mesh, array = _on(device_of(program.chip))
    heads, kv_heads, head_dim = heads_of(program.model)
    shape = 2, program.rows, kv_heads, program.slots
    held = array(*shape, head_dim, dtype=program.dtype)
    scales = array(*shape, dtype=jnp.float32) if program.dtype == "int8" else None
    q = array(program.rows, 1, heads, head_dim)
    number, bounds = array(dtype=jnp.int32), array(program.rows, 1, dtype=jnp.int32)
    with jax.set_mesh(mesh):
        return jax.jit(decode_forward).lower(q, held, held, number, bounds, bounds, scales, scales)
