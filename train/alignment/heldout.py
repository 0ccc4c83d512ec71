"""Held-out evaluation of all that a loss reports."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import Mesh

from train.trainer import Batch, LossFn, make_eval_step, put_batch


class HeldoutParts:
    """Evaluates a model on batches that never change.

    Args:
      batches: with ``present``, which says what in a batch counts.
    """

    def __init__(self, loss_fn: LossFn, batches: Iterable[Batch], mesh: Mesh):
        self._step, self._batches, self._mesh = make_eval_step(loss_fn), list(batches), mesh

    def __call__(self, model: Any) -> dict[str, float]:
        """The mean of the loss and of each of its parts."""
        sums: dict[str, Any] = collections.defaultdict(lambda: [0.0, 0.0])
        for batch in self._batches:
            parts = jax.device_get(self._step(model, put_batch(batch, self._mesh)))
            for name, (total, weight) in parts.items():
                sums[name][0] += float(total)
                sums[name][1] += float(weight)
        return {name: total / weight for name, (total, weight) in sums.items() if weight}
