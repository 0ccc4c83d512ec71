"""Which TPU the program is for, and whether the kernel takes a given call."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

# What every chip since v4 has: for programs compiled elsewhere that do not say for which chip.
SMALLEST_VMEM = 16 * 2**20


def on_tpu() -> bool:
    """Whether the mesh (or else the default backend) is of TPUs."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (device.platform if device else jax.default_backend()) == "tpu"


def vmem() -> int:
    """Bytes of fast memory of one core."""
    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:
        return SMALLEST_VMEM


def why_not(q: Array, k: Array) -> str | None:
    """What keeps the kernel from this call; None if nothing does."""
    head_dim, rows = q.shape[3], q.shape[1] * (q.shape[2] // k.shape[2])
    if q.dtype not in (jnp.bfloat16, jnp.float32) or k.dtype != q.dtype:
        return f"q is {q.dtype} and k is {k.dtype}; it takes bfloat16 or float32, both alike"
    if head_dim % 16 or head_dim > 256:
        return f"head_dim is {head_dim}; it takes multiples of 16 up to 256"
    if rows < 128:
        return f"{rows} query rows per key head do not fill one vector of 128"
    return None
