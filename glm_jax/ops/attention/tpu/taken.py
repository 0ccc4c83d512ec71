"""Whether the kernel takes a given call."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array


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
