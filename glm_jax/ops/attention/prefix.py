"""Keys and values that stand before those of every row (P-Tuning v2)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class LayerPrefix(NamedTuple):
    """One layer's keys and values that stand before every row's own, never turned by positions."""

    k: Float[Array, "P K H"]
    v: Float[Array, "P K H"]

    def before(self, k: Array, v: Array) -> tuple[Array, Array]:
        """[B, T, K, H] each to [B, P + T, K, H]."""

        def join(mine: Array, theirs: Array) -> Array:
            rows = jnp.broadcast_to(mine.astype(theirs.dtype), (len(theirs), *mine.shape))
            return jnp.concatenate([rows, theirs], axis=1)

        return join(self.k, k), join(self.v, v)
