"""Normalisation over the model width, always in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from glm_jax.config import GLMConfig
from glm_jax.nn import params


class Norm(nnx.Module):
    """LayerNorm (with bias) or RMSNorm (without), as ``config.norm`` says."""

    def __init__(self, config: GLMConfig, dtype=jnp.float32):
        self.eps = config.norm_eps
        self.weight = params.ones((config.embed_dim,), ("embed_vector",), dtype)
        layernorm = config.norm == "layernorm"
        self.bias = (
            params.zeros((config.embed_dim,), ("embed_vector",), dtype) if layernorm else None
        )

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        if self.bias is not None:
            y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.eps)
        y = y * self.weight[...].astype(jnp.float32)
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)
