"""Learning-rate schedules of the GLM release (THUDM/GLM learning_rates.py, train_utils.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Warm-up to the peak, then one of GLM's decays. All counts are optimizer updates."""

    peak: float = 4e-4
    """Highest learning rate, reached at the end of the warm-up."""
    decay_steps: int = 120_000
    """Updates over which warm-up and decay run (D in the formulas)."""
    warmup: float = 0.05
    """Share of decay_steps spent in the linear warm-up from 0."""
    floor: float = 0.1
    """Learning rate at the end of the decay, as a share of the peak."""
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    """cosine stays at the floor after decay_steps. linear does NOT stop there: as in the released
    code it keeps falling, below zero in the end."""

    def __post_init__(self) -> None:
        if self.decay_steps < 1:
            raise ValueError(f"decay_steps is {self.decay_steps}; it must be at least 1")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; it is a share of decay_steps, 0 to below 1")
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor is {self.floor}; it is a share of the peak, above 0 up to 1")
        if not self.peak > 0:
            raise ValueError(f"peak is {self.peak}; a learning rate is above 0")

    def fn(self) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
        """Maps t, the number of updates already made, to the learning rate of the next one.

        With W = warmup * D, T = D - W and floor ratio r:
          t <= W   peak * t / W
          cosine   peak * r * ((cos(pi * min(1, (t - W) / T)) + 1) * (1 / r - 1) / 2 + 1)
          linear   peak - peak * (1 - r) * (t - W) / T
        The very first update has t = 0 and so, as in the reference, moves nothing.
        """
        warm = self.warmup * self.decay_steps
        rest = self.decay_steps - warm

        def rate(t: Int[Array, ""] | int) -> Float[Array, ""]:
            t = jnp.asarray(t, jnp.float32)
            rising = t / max(warm, 1.0)
            past = (t - warm) / rest
            if self.shape == "cosine":
                wave = (jnp.cos(jnp.pi * jnp.minimum(1.0, past)) + 1) / 2
                falling = self.floor * (wave * (1 / self.floor - 1) + 1)
            elif self.shape == "linear":
                falling = 1 - (1 - self.floor) * past
            else:
                falling = jnp.ones_like(past)
            return self.peak * jnp.where((warm > 0) & (t <= warm), rising, falling)

        return rate
