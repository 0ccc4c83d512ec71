"""The feed-forward part: GELU (exact or tanh) or SwiGLU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from glm_jax.config import GLMConfig
from glm_jax.nn.linear import layer_linear
from glm_jax.ops.swiglu import swiglu
from glm_jax.sharding import constrain


class MLP(nnx.Module):
    """``down(act(up x))``, or ``down(silu(gate x) * up x)`` where gated."""

    def __init__(self, config: GLMConfig, key: Array, dtype=jnp.float32):
        keys = jax.random.split(key, 3)
        width, mlp = (("embed", config.embed_dim),), (("mlp", config.mlp_dim),)
        common = {"std": config.init_std, "bias": config.linear_bias}
        small = {**common, "std": config.init_std / (2 * config.num_layers) ** 0.5}
        linear = layer_linear(config, dtype)
        self.activation = config.activation
        self.gate_proj = linear(keys[0], mlp, width, **common) if config.gated_mlp else None
        self.up_proj = linear(keys[1], mlp, width, **common)
        self.down_proj = linear(keys[2], width, mlp, **small)

    def __call__(
        self, x: Float[Array, "B T D"], dropout_key: Array | None = None
    ) -> Float[Array, "B T D"]:
        """Args: dropout_key: of LoRA beside its matrices, where there is any."""
        hidden = constrain(self.up_proj(x, dropout_key), "batch", "length", "mlp")
        if self.gate_proj is not None:
            gate = constrain(self.gate_proj(x, dropout_key), "batch", "length", "mlp")
            hidden = swiglu(gate, hidden)
        else:
            hidden = jax.nn.gelu(hidden, approximate=self.activation == "gelu_tanh")
        return self.down_proj(hidden, dropout_key)
