"""Keys and values of what was already read: a pytree, passed in and returned."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from glm_jax.config import GLMConfig


@partial(jax.tree_util.register_dataclass, data_fields=["k", "v"], meta_fields=["prefix_length"])
@dataclasses.dataclass(frozen=True)
class KVCache:
    """One slot per key for every layer and row. Unwritten slots hold zeros and must be hidden by
    the key ranges, which count slots."""

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]
    prefix_length: int = 0
    """Slots in front that hold a prefix. Callers of the network do not count them."""

    @property
    def slots(self) -> int:
        """Tokens per row, a prefix not counted."""
        return self.k.shape[2] - self.prefix_length

    @classmethod
    def zeros(cls, config: GLMConfig, batch: int, length: int, dtype=jnp.float32) -> KVCache:
        shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def with_prefix(self, k: Float[Array, "L P K H"], v: Float[Array, "L P K H"]) -> KVCache:
        """``P`` keys that every row begins with, written into the first slots."""
        length = k.shape[1]

        def write(slots: Array, prefix: Array) -> Array:
            return slots.at[:, :, :length].set(prefix[:, None].astype(slots.dtype))

        return KVCache(write(self.k, k), write(self.v, v), length)

    def write(
        self,
        layer: Int[Array, ""],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        slots: Int[Array, " B"],
    ) -> tuple[KVCache, Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Puts ``T`` new keys at each row's own slot and returns the layer's keys and values.

        Writes beyond the last slot are dropped, so right-padded rows cannot harm a full cache.
        """
        rows = jnp.arange(k.shape[0])[:, None]
        columns = slots[:, None] + jnp.arange(k.shape[1])
        at = (layer, rows, columns)
        new_k = self.k.at[at].set(k.astype(self.k.dtype), mode="drop")
        new_v = self.v.at[at].set(v.astype(self.v.dtype), mode="drop")
        return (
            dataclasses.replace(self, k=new_k, v=new_v),
            jax.lax.dynamic_index_in_dim(new_k, layer, keepdims=False),
            jax.lax.dynamic_index_in_dim(new_v, layer, keepdims=False),
        )
