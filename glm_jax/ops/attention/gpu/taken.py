"""Whether the kernels take a given call."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from glm_jax.ops.attention.gpu.blocks import LEAST, MOST_CHANNELS


def why_not(q: Array, k: Array) -> str | None:
    """What keeps the kernels from this call; None if nothing does."""
    if q.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32) or k.dtype != q.dtype:
        return f"q is {q.dtype} and k is {k.dtype}; they take bfloat16, float16 or float32, alike"
    if q.shape[3] > (most := MOST_CHANNELS[q.dtype.itemsize]):
        return f"head_dim is {q.shape[3]}; of {q.dtype} they take up to {most}"
    if q.shape[1] < LEAST:
        return f"{q.shape[1]} queries per row; they take {LEAST} and more"
    return None
