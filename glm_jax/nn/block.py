"""One layer: attention and MLP on a residual stream."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from glm_jax.config import GLMConfig
from glm_jax.nn.attention import Attention, Keys, LayerPrefix, Memory
from glm_jax.nn.cache import KVCache
from glm_jax.nn.compute import Compute
from glm_jax.nn.mlp import MLP
from glm_jax.nn.norms import Norm
from glm_jax.nn.positions import Rope
from glm_jax.ops.dropout import dropout
from glm_jax.sharding import constrain


class Block(nnx.Module):
    def __init__(self, config: GLMConfig, key: Array, dtype=jnp.float32):
        keys = jax.random.split(key)
        self.residual_scale = config.residual_scale
        self.dropout = config.hidden_dropout
        self.attention_norm = Norm(config, dtype)
        self.attention = Attention(config, keys[0], dtype)
        self.mlp_norm = Norm(config, dtype)
        self.mlp = MLP(config, keys[1], dtype)

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
        drops = (None,) * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        normed = self.attention_norm(x)
        out, cache = self.attention(
            normed,
            rope,
            keys,
            compute=compute,
            dropout_key=drops[0],
            memory=memory,
            prefix=prefix,
        )
        x = self._add(x, normed, dropout(out, self.dropout, drops[1]))
        normed = self.mlp_norm(x)
        x = self._add(x, normed, dropout(self.mlp(normed, drops[2]), self.dropout, drops[2]))
        return constrain(x, "batch", "length", "embed_activation"), cache

    def _add(self, x: Array, normed: Array, out: Array) -> Array:
        """Onto the stream itself, or (ChatGLM-6B) onto its scaled normed form."""
        if self.residual_scale is None:
            return x + out
        return jnp.asarray(self.residual_scale, x.dtype) * normed + out
