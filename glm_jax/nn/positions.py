"""Positions: two learned tables added to the embedding, or rotations of queries and keys.

Every model takes the same ``positions`` [B, 2, T]: row 0 the position, row 1 the block position
(GLM paper, section 2.2). Models with one-dimensional rotary positions read row 0 alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from glm_jax.config import GLMConfig
from glm_jax.nn import params
from glm_jax.ops.rope import apply_rope, frequencies, rope_tables


class LearnedPositions(nnx.Module):
    """``position[p0] + block_position[p1]``, tables of ``max_seq_len + 1`` rows each."""

    def __init__(self, config: GLMConfig, key: Array, dtype=jnp.float32):
        keys = jax.random.split(key)
        shape, axes = (config.max_seq_len + 1, config.embed_dim), ("positions", "embed")
        self.position = params.normal(keys[0], shape, axes, config.init_std, dtype)
        self.block_position = params.normal(keys[1], shape, axes, config.init_std, dtype)

    def __call__(self, positions: Int[Array, "B 2 T"], dtype) -> Float[Array, "B T D"]:
        rows = (self.position[...][positions[:, 0]], self.block_position[...][positions[:, 1]])
        return (rows[0] + rows[1]).astype(dtype)


class Rope(NamedTuple):
    """cos and sin for each position row in use; without any, heads stay as they are."""

    tables: tuple[tuple[Float[Array, "B T R"], Float[Array, "B T R"]], ...]
    interleaved: bool

    @classmethod
    def make(cls, config: GLMConfig, positions: Int[Array, "B 2 T"]) -> Rope:
        if config.position != "rotary":
            return cls((), config.rope_interleaved)
        freqs = frequencies(config.rope_dim, config.rope_theta, float16=config.rope_float16_freqs)
        rows = (0, 1) if config.rope_2d else (0,)
        tables = tuple(rope_tables(positions[:, row], freqs) for row in rows)
        return cls(tables, config.rope_interleaved)

    def __call__(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
        """Each table turns its own equal share of the head."""
        if not self.tables:
            return x
        parts = jnp.split(x, len(self.tables), axis=-1)
        turned = [
            apply_rope(part, *table, interleaved=self.interleaved)
            for part, table in zip(parts, self.tables, strict=True)
        ]
        return jnp.concatenate(turned, axis=-1) if len(turned) > 1 else turned[0]
