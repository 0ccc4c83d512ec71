"""Heads other than the language model's."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from glm_jax.config import GLMConfig
from glm_jax.nn.linear import Linear


class ClassificationHead(nnx.Module):
    """Class scores from one token of the final hidden states.

    GLM reads the first token ([CLS]) through ``dense`` and tanh; ChatGLM2, ChatGLM3 and GLM-4 read
    the last real token directly (the released ``*ForSequenceClassification``). So does whatever has
    one score alone, a reward or a value: GLM's first token does not see an answer.
    """

    def __init__(self, config: GLMConfig, num_labels: int, key: Array, *, dtype=jnp.float32):
        keys = jax.random.split(key)
        first = config.position == "learned" and num_labels > 1
        self.pool: Literal["first", "last"] = "first" if first else "last"
        width, labels = (("embed", config.embed_dim),), (("labels", num_labels),)
        make = {"std": config.init_std, "bias": True, "dtype": dtype}
        self.dense = Linear(keys[0], width, width, **make) if self.pool == "first" else None
        self.out_proj = Linear(keys[1], labels, width, **make)

    def __call__(
        self, hidden: Float[Array, "B T D"], lengths: Int[Array, " B"]
    ) -> Float[Array, "B C"]:
        """Args: lengths: real tokens of each right-padded row."""
        at = jnp.zeros_like(lengths) if self.pool == "first" else lengths - 1
        return self.each(jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0])

    def each(self, hidden: Float[Array, "... D"]) -> Float[Array, "... C"]:
        """Scores of every hidden state for itself, float32."""
        if self.dense is not None:
            hidden = jnp.tanh(self.dense(hidden))
        return self.out_proj(hidden).astype(jnp.float32)
