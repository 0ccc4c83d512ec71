"""Multi-head attention with grouped keys, optional rotary positions and an optional cache."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from glm_jax.config import GLMConfig
from glm_jax.nn.cache import CachedKeys, KVCache
from glm_jax.nn.compute import Compute
from glm_jax.nn.linear import layer_linear
from glm_jax.nn.positions import Rope
from glm_jax.ops.attention import (
    Dropout,
    LayerPrefix,
    Order,
    attention,
    cached_attention,
    in_place_attention,
    reads_in_place,
)
from glm_jax.sharding import constrain


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["start", "end"], meta_fields=["order"]
)
@dataclasses.dataclass(frozen=True)
class Keys:
    """The run of keys each query sees; with a memory it counts the memory's slots.

    A prefix (P-Tuning) lies before the keys of every row. It is not counted here, and a query whose
    run starts at 0 sees all of it.
    """

    start: Int[Array, "B T"]
    end: Int[Array, "B T"]
    order: Order = "natural"
    """Where the tokens of a row lie that is cut over ``context``. Runs count keys in the row's own
    order in any case."""

    def after(self, prefix: int) -> Keys:
        """The same runs, counted in keys that have ``prefix`` more in front."""
        start = jnp.where(self.start == 0, 0, self.start + prefix)
        return Keys(start, self.end + prefix, self.order)


class Memory(NamedTuple):
    """The cache, which of its layers this is, and each row's slot for the first new key."""

    cache: KVCache
    layer: Int[Array, ""] | int
    slots: Int[Array, " B"]


class Attention(nnx.Module):
    def __init__(self, config: GLMConfig, key: Array, dtype=jnp.float32):
        keys = jax.random.split(key, 4)
        width, head = (("embed", config.embed_dim),), ("head_dim", config.head_dim)
        q_heads, kv_heads = ("heads", config.num_heads), ("kv_heads", config.num_kv_heads)
        qkv = {"std": config.init_std, "bias": config.qkv_bias}
        out = {"std": config.init_std / (2 * config.num_layers) ** 0.5, "bias": config.linear_bias}
        linear = layer_linear(config, dtype)
        self.dropout = config.attention_dropout
        self.q_proj = linear(keys[0], (q_heads, head), width, **qkv)
        self.k_proj = linear(keys[1], (kv_heads, head), width, **qkv)
        self.v_proj = linear(keys[2], (kv_heads, head), width, **qkv)
        self.o_proj = linear(keys[3], width, (q_heads, head), **out)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: Rope,
        keys: Keys,
        *,
        compute: Compute,
        dropout_key: Array | None = None,
        memory: Memory | None = None,
        prefix: LayerPrefix | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        q = constrain(rope(self.q_proj(x, dropout_key)), "batch", "length", "heads", "head_dim")
        k = constrain(rope(self.k_proj(x, dropout_key)), "batch", "length", "kv_heads", "head_dim")
        v = constrain(self.v_proj(x, dropout_key), "batch", "length", "kv_heads", "head_dim")
        cache = None
        if memory is not None:
            cache, held = memory.cache.write(memory.layer, k, v, memory.slots)
            whole = cache.layers
            stacked = isinstance(whole, CachedKeys)
            if stacked and reads_in_place(q, k.shape[2], compute.attention):
                out = in_place_attention(
                    q, whole.k, whole.v, memory.layer, keys.start, keys.end,
                    whole.k_scale, whole.v_scale,
                )  # fmt: skip
            else:
                out = cached_attention(
                    q, *held.floats(q.dtype), keys.start, keys.end,
                    implementation=compute.attention,
                )  # fmt: skip
        else:
            if prefix is not None:
                keys = keys.after(len(prefix.k))
            drop = None
            if self.dropout and dropout_key is not None:
                drop = Dropout(self.dropout, dropout_key)
            out = attention(
                q, k, v, keys.start, keys.end, implementation=compute.attention, dropout=drop,
                prefix=prefix, order=keys.order,
            )  # fmt: skip
        out = constrain(out, "batch", "length", "heads", "head_dim")
        return self.o_proj(checkpoint_name(out, "attention_out"), dropout_key), cache
