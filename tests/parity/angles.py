"""cos and sin as the network uses them, for comparisons with tables that others keep."""

from __future__ import annotations

import numpy as np

from glm_jax.config import GLMConfig
from glm_jax.nn.positions import Rope


def tables(config: GLMConfig, positions) -> tuple[np.ndarray, np.ndarray]:
    """[B, T, R] of the first row of ``positions`` [B, 2, T]."""
    rope, size = Rope.make(config, positions), config.rope_dim
    first, second = (np.arange(0, size, 2), np.arange(1, size, 2)) if config.rope_interleaved else (
        np.arange(size // 2), np.arange(size // 2, size))  # fmt: skip
    # Of each pair the second's sine is the one whose sign was not turned round.
    return np.asarray(rope.own)[..., first], np.asarray(rope.other)[..., second]
