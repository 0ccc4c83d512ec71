"""A program to be compiled, and what is known of it without a compiler."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Program:
    """Traced for a topology, ready to compile."""

    lowered: Any
    shares: Mapping[str, int]
    """Bytes per device of what goes in, by kind, from shapes and shardings."""
    flops: int
    """Model FLOPs of one call over all devices (``glm_jax.config.flops_per_token``)."""
    tokens: int
    """Tokens of one call over all devices."""
    calls: int = 1
    """Calls that the whole task takes: pieces of a prompt."""


def placed(x: Any, where: Any) -> jax.ShapeDtypeStruct:
    """An array that need not exist, of ``x``'s shape and type."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def device_bytes(tree: Any) -> int:
    """Per device, without the padding of TPU tiles."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * _bits(x.dtype) for x in leaves) // 8


def _bits(dtype: Any) -> int:
    """An ``itemsize`` counts whole bytes, of int4 too."""
    return 4 if dtype == jnp.int4 else 8 * dtype.itemsize
