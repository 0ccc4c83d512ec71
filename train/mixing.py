"""Two streams of batches as one: GLM's multi-task mixing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


class MixedBatches:
    """Each step takes its batch from ``other`` with probability ``ratio``, else from ``main``.

    The draw depends on (seed, step) alone, so every process takes the same side (THUDM/GLM
    pretrain_glm.py draws per process; a jitted global batch must agree).

    Args:
      main, other: iterators with ``get_state``, ``set_state`` and ``close``, as Grain's.
    """

    def __init__(self, main: Any, other: Any, ratio: float, seed: int):
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio {ratio} is not a share between 0 and 1")
        self._main, self._other, self._ratio, self._seed = main, other, ratio, seed
        self._step = 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=[self._seed, self._step]))
        self._step += 1
        return next(self._other if rng.random() < self._ratio else self._main)

    def close(self) -> None:
        """Ends the worker processes of both."""
        self._main.close()
        self._other.close()

    def get_state(self) -> dict[str, Any]:
        states = {"main": self._main.get_state(), "other": self._other.get_state()}
        return {"step": self._step, **states}

    def set_state(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        self._main.set_state(state["main"])
        self._other.set_state(state["other"])
