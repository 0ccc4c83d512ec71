"""P-Tuning v2: trained keys and values that every layer sees before a row's own.

Released as ``PrefixEncoder`` with ChatGLM-6B, ChatGLM2-6B and ChatGLM3-6B (their
modeling_chatglm.py; the method: arXiv 2110.07602).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from glm_jax.config import GLMConfig
from glm_jax.nn import params
from glm_jax.nn.linear import Linear
from glm_jax.ops.dropout import dropout


def kv_width(config: GLMConfig) -> int:
    """Numbers that one prefix token needs: a key and a value in every layer."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim


class PrefixEncoder(nnx.Module):
    """A table of keys and values, or a narrower table and two layers that make them.

    Parameters: ``embedding`` [P, kv_width]; with a projection [P, X], and ``projection_in`` [D, X]
    and ``projection_out`` [kv_width, D] with tanh between. The last axis of what comes out is
    ordered (layer, key or value, kv head, dimension).

    Args:
      length: P, tokens of the prefix.
      width: X; by default as released: ChatGLM-6B embeds the model width, ChatGLM2 and 3 embed
        ``kv_width``.
      rate: of the dropout on keys and values, where a dropout key is given.
    """

    def __init__(
        self,
        config: GLMConfig,
        length: int,
        key: Array,
        *,
        projection: bool = False,
        width: int | None = None,
        rate: float = 0.1,
        dtype=jnp.float32,
    ):
        keys = jax.random.split(key, 3)
        out = kv_width(config)
        self.config, self.length, self.rate = config, length, rate
        if width is None or not projection:
            width = config.embed_dim if projection and config.prefix_lm else out
        self.embedding = params.normal(
            keys[0], (length, width), ("prefix", "prefix_kv"), config.init_std, dtype
        )
        inner, made = (("prefix_hidden", config.embed_dim),), (("prefix_kv", out),)
        make = {"std": config.init_std, "bias": True, "dtype": dtype}
        self.projection_in = (
            Linear(keys[1], inner, (("prefix_kv", width),), **make) if projection else None
        )
        self.projection_out = Linear(keys[2], made, inner, **make) if projection else None

    def __call__(
        self, dropout_key: Array | None = None
    ) -> tuple[Float[Array, "L P K H"], Float[Array, "L P K H"]]:
        """Keys and values of every layer."""
        x = self.embedding[...]
        if self.projection_in is not None and self.projection_out is not None:
            x = self.projection_out(jnp.tanh(self.projection_in(x)))
        c = self.config
        x = x.reshape(self.length, c.num_layers, 2, c.num_kv_heads, c.head_dim)
        x = jnp.moveaxis(dropout(x, self.rate, dropout_key), 0, 2)
        return x[:, 0], x[:, 1]
