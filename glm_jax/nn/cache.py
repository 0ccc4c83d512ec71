"""Keys and values of what was already read: a pytree, passed in and returned."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

from glm_jax.config import GLMConfig


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["k", "v", "k_scale", "v_scale"],
    meta_fields=["prefix_length"],
)
@dataclasses.dataclass(frozen=True)
class KVCache:
    """One slot per key for every layer and row. Unwritten slots hold zeros and must be hidden by
    the key ranges, which count slots. An int8 cache has a scale for every slot and head."""

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]
    k_scale: Float[Array, "L B S K"] | None = None
    v_scale: Float[Array, "L B S K"] | None = None
    prefix_length: int = 0
    """Slots in front that hold a prefix. Callers of the network do not count them."""

    @property
    def slots(self) -> int:
        """Tokens per row, a prefix not counted."""
        return self.k.shape[2] - self.prefix_length

    @classmethod
    def zeros(cls, config: GLMConfig, batch: int, length: int, dtype=jnp.float32) -> KVCache:
        shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
        slots, scales = jnp.zeros(shape, dtype), None
        if slots.dtype == jnp.int8:
            scales = jnp.zeros(shape[:-1], jnp.float32)
        return cls(slots, slots, scales, scales)

    def with_prefix(self, k: Float[Array, "L P K H"], v: Float[Array, "L P K H"]) -> KVCache:
        """``P`` keys that every row begins with, written into the first slots."""
        at = (slice(None), slice(None), slice(k.shape[1]))
        written = self._put(at, k[:, None], v[:, None])
        return dataclasses.replace(written, prefix_length=k.shape[1])

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
        written = self._put((layer, rows, columns), k, v)
        return (
            written,
            _layer(written.k, written.k_scale, layer, k.dtype),
            _layer(written.v, written.v_scale, layer, v.dtype),
        )

    def _put(self, at, k: Array, v: Array) -> KVCache:
        if self.k_scale is None or self.v_scale is None:
            return dataclasses.replace(self, k=_set(self.k, at, k), v=_set(self.v, at, v))
        (k, k_scale), (v, v_scale) = _to_int8(k), _to_int8(v)
        return dataclasses.replace(
            self,
            k=_set(self.k, at, k),
            v=_set(self.v, at, v),
            k_scale=_set(self.k_scale, at, k_scale),
            v_scale=_set(self.v_scale, at, v_scale),
        )


def _set(slots: Array, at, new: Array) -> Array:
    return slots.at[at].set(new.astype(slots.dtype), mode="drop")


def _layer(slots: Array, scale: Array | None, layer, dtype) -> Float[Array, "B S K H"]:
    """One layer of the cache, as floats where it holds integers."""
    found = jax.lax.dynamic_index_in_dim(slots, layer, keepdims=False)
    if scale is None:
        return found
    scale = jax.lax.dynamic_index_in_dim(scale, layer, keepdims=False)
    return found.astype(dtype) * scale[..., None].astype(dtype)


def _to_int8(x: Float[Array, "*B H"]) -> tuple[Int8[Array, "*B H"], Float[Array, "*B"]]:
    """Each head's vector as integers of its largest number's 127th part."""
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(axis=-1) / 127
    return jnp.round(x / jnp.where(scale == 0, 1, scale)[..., None]).astype(jnp.int8), scale
