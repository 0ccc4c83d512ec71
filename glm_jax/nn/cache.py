"""Keys and values of what was already read: a pytree, passed in and returned."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

from glm_jax.config import GLMConfig


@partial(
    jax.tree_util.register_dataclass, data_fields=["k", "v", "k_scale", "v_scale"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class CachedKeys:
    """Keys and values with the heads first, so that those which a query reads lie together.

    Of one layer, or of all with an axis for them in front. An int8 cache has a scale for every
    head and slot.
    """

    k: Float[Array, "*L B K S H"]
    v: Float[Array, "*L B K S H"]
    k_scale: Float[Array, "*L B K S"] | None = None
    v_scale: Float[Array, "*L B K S"] | None = None

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype) -> CachedKeys:
        empty, scales = jnp.zeros(shape, dtype), None
        if empty.dtype == jnp.int8:
            scales = jnp.zeros(shape[:-1], jnp.float32)
        return cls(empty, empty, scales, scales)

    def put(self, at: Any, k: Array, v: Array) -> CachedKeys:
        """With these at ``at``, an index; what lies outside is dropped."""
        if self.k_scale is None or self.v_scale is None:
            return CachedKeys(_set(self.k, at, k), _set(self.v, at, v))
        (k, k_scale), (v, v_scale) = _to_int8(k), _to_int8(v)
        return CachedKeys(
            _set(self.k, at, k),
            _set(self.v, at, v),
            _set(self.k_scale, at, k_scale),
            _set(self.v_scale, at, v_scale),
        )

    def floats(self, dtype) -> tuple[Float[Array, "*L B K S H"], Float[Array, "*L B K S H"]]:
        """Keys and values as numbers of this type."""
        return _floats(self.k, self.k_scale, dtype), _floats(self.v, self.v_scale, dtype)


@partial(jax.tree_util.register_dataclass, data_fields=["layers"], meta_fields=["prefix_length"])
@dataclasses.dataclass(frozen=True)
class KVCache:
    """One slot per key for every layer, row and head. Unwritten slots hold zeros and must be hidden
    by the key ranges, which count slots."""

    layers: CachedKeys | tuple[CachedKeys, ...]
    """All in one array, for layers that are scanned; or each its own (``nn.unstacked``), as a CPU
    wants them, which would copy a layer out of the whole at every step."""
    prefix_length: int = 0
    """Slots in front that hold a prefix. Callers of the network do not count them."""

    @classmethod
    def zeros(
        cls, config: GLMConfig, batch: int, length: int, dtype=jnp.float32, *, stacked: bool = True
    ) -> KVCache:
        shape = batch, config.num_kv_heads, length, config.head_dim
        if stacked:
            return cls(CachedKeys.zeros((config.num_layers, *shape), dtype))
        return cls(tuple(CachedKeys.zeros(shape, dtype) for _ in range(config.num_layers)))

    @property
    def row_axis(self) -> int:
        """Of every array; heads and slots are the two after it."""
        return int(isinstance(self.layers, CachedKeys))

    @property
    def slots(self) -> int:
        """Tokens per row, a prefix not counted."""
        return jax.tree.leaves(self.layers)[0].shape[self.row_axis + 2] - self.prefix_length

    def with_prefix(self, k: Float[Array, "L P K H"], v: Float[Array, "L P K H"]) -> KVCache:
        """``P`` keys that every row begins with, written into the first slots."""
        k, v = (x.swapaxes(1, 2)[:, None] for x in (k, v))
        if isinstance(self.layers, CachedKeys):
            written: Any = _put_first(self.layers, k, v)
        else:
            written = tuple(
                _put_first(layer, *kv) for layer, *kv in zip(self.layers, k, v, strict=True)
            )
        return KVCache(written, k.shape[3])

    def write(
        self,
        layer: Int[Array, ""] | int,
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        slots: Int[Array, " B"],
    ) -> tuple[KVCache, CachedKeys]:
        """Puts ``T`` new keys at each row's own slot and returns all that the layer holds.

        Writes beyond the last slot are dropped, so right-padded rows cannot harm a full cache.

        Args:
          layer: a number that is known when the program is traced, if the layers are apart.
        """
        rows = jnp.arange(k.shape[0])[:, None]
        columns = slots[:, None] + jnp.arange(k.shape[1])
        at = (rows, slice(None), columns)
        if isinstance(self.layers, CachedKeys):
            # An index of every head: windows over heads would make the TPU compiler keep slots
            # before heads, and copy the whole cache for the kernel that reads it.
            heads = jnp.arange(k.shape[2])
            each = (layer, rows[..., None], heads, columns[..., None])
            whole = self.layers.put(each, k, v)
            one = partial(jax.lax.dynamic_index_in_dim, index=layer, keepdims=False)
            return dataclasses.replace(self, layers=whole), jax.tree.map(one, whole)
        mine = self.layers[int(layer)].put(at, k, v)
        layers = (*self.layers[: int(layer)], mine, *self.layers[int(layer) + 1 :])
        return dataclasses.replace(self, layers=layers), mine

    def with_room(self, slots: int) -> KVCache:
        """With at least this many slots for tokens."""
        missing = max(0, slots - self.slots)
        axis = self.row_axis + 2
        pad = lambda x: jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
        return jax.tree.map(pad, self) if missing else self

    def take(self, rows: Int[Array, " B"]) -> KVCache:
        """Row ``i`` is what row ``rows[i]`` was."""
        return jax.tree.map(lambda x: jnp.take(x, rows, axis=self.row_axis), self)

    def row(self, index: Int[Array, ""]) -> KVCache:
        """One row, as a cache of one."""
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, index, 1, axis=self.row_axis)
        return jax.tree.map(cut, self)

    def with_row(self, index: Int[Array, ""], row: KVCache) -> KVCache:
        """With one row replaced."""
        put = lambda whole, part: jax.lax.dynamic_update_slice_in_dim(
            whole, part, index, axis=self.row_axis
        )
        return jax.tree.map(put, self, row)


def _put_first(keys: CachedKeys, k: Array, v: Array) -> CachedKeys:
    """Into the first slots of every row."""
    at = *[slice(None)] * (keys.k.ndim - 2), slice(k.shape[-2])
    return keys.put(at, k, v)


def _set(slots: Array, at, new: Array) -> Array:
    return slots.at[at].set(new.astype(slots.dtype), mode="drop")


def _floats(slots: Array, scale: Array | None, dtype) -> Array:
    if scale is None:
        return slots.astype(dtype)
    return slots.astype(dtype) * scale[..., None].astype(dtype)


def _to_int8(x: Float[Array, "*B H"]) -> tuple[Int8[Array, "*B H"], Float[Array, "*B"]]:
    """Each head's vector as integers of its largest number's 127th part."""
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(axis=-1) / 127
    return jnp.round(x / jnp.where(scale == 0, 1, scale)[..., None]).astype(jnp.int8), scale
