"""Arrays in whole blocks."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array


def pad(x: Array, block: int, axis: int = 1) -> Array:
    """Zeros after an axis, up to whole blocks."""
    missing = -x.shape[axis] % block
    if not missing:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = 0, missing
    return jnp.pad(x, widths)
