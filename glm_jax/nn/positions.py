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
from glm_jax.ops.rope import frequencies, rope_tables, rotate, whole_head


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
    """What ``rotate`` takes, in one row for each token; without it, heads stay as they are."""

    own: Float[Array, "B T H"] | None
    other: Float[Array, "B T H"] | None
    apart: int

    @classmethod
    def make(cls, config: GLMConfig, positions: Int[Array, "B 2 T"]) -> Rope:
        """Each row of positions that is in use turns its own equal share of the head."""
        if config.position != "rotary":
            return cls(None, None, 1)
        freqs = frequencies(config.rope_dim, config.rope_theta, float16=config.rope_float16_freqs)
        rows = (0, 1) if config.rope_2d else (0,)
        shares = [
            whole_head(
                *rope_tables(positions[:, row], freqs),
                config.head_dim // len(rows),
                interleaved=config.rope_interleaved,
            )
            for row in rows
        ]
        own, other = (jnp.concatenate(parts, axis=-1) for parts in zip(*shares, strict=True))
        return cls(own, other, 1 if config.rope_interleaved else len(freqs))

    def __call__(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
        if self.own is None or self.other is None:
            return x
        return rotate(x, self.own, self.other, apart=self.apart)
