"""Held-out loss of each objective, on batches that never change."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from glm_jax.data import OBJECTIVES, Infilling
from train.trainer import Batch, LossFn, make_eval_step, put_batch


def objectives_of(infilling: Infilling) -> tuple[str, ...]:
    """The objectives that a recipe trains."""
    return tuple(name for name in OBJECTIVES if getattr(infilling, name) > 0)


class Heldout:
    """Evaluates a model on the first batches of every objective's held-out loader.

    Args:
      loaders: for each objective a function that opens its loader (``glm_jax.data.make_loader``);
        every batch holds examples of that objective alone.
      batches: how many of each to use; fewer where the held-out text is short.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        loaders: Mapping[str, Callable[[], Any]],
        mesh: Mesh,
        *,
        batches: int,
    ):
        self._step, self._mesh = make_eval_step(loss_fn), mesh
        self._batches: dict[str, Sequence[Batch]] = {
            name: _first(open_loader(), batches) for name, open_loader in loaders.items()
        }

    def __call__(self, model: Any) -> dict[str, float]:
        """Mean loss per predicted token, in nats, by objective."""
        return {name: self._mean(model, rows) for name, rows in self._batches.items() if rows}

    def _mean(self, model: Any, batches: Sequence[Batch]) -> float:
        total = weight = 0.0
        for batch in batches:
            loss, count = jax.device_get(self._step(model, put_batch(batch, self._mesh))["loss"])
            total, weight = total + float(loss), weight + float(count)
        return total / weight if weight else float("nan")


def _first(loader: Any, batches: int) -> list[Batch]:
    try:
        return list(itertools.islice(loader, batches))
    finally:
        loader.close()
