"""Held-out loss of each objective, on batches that never change."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from glm_jax.data import OBJECTIVES, Infilling
from train.trainer import Batch, LossFn, make_eval_step, put_batch

_eval_step = functools.cache(make_eval_step)


def objectives_of(infilling: Infilling) -> tuple[str, ...]:
    """The objectives that a recipe trains."""
    return tuple(name for name in OBJECTIVES if getattr(infilling, name) > 0)


class Heldout:
    """Evaluates a model on the first batches of every objective's held-out loader.

    Args:
      loaders: for each objective a function that opens its loader (``glm_jax.data.make_loader``);
        every batch holds examples of that objective alone.
      batches: how many of each to use; fewer where the held-out text is short.
      shares: parts of the loss that are reported beside it, in percent, as ``objective/part``; of a
        part with an axis, the share of its places where the sum reaches the weight.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        loaders: Mapping[str, Callable[[], Any]],
        mesh: Mesh,
        *,
        batches: int,
        shares: Sequence[str] = (),
    ):
        self._step, self._mesh, self._shares = _eval_step(loss_fn), mesh, shares
        self._batches: dict[str, Sequence[Batch]] = {
            name: _first(open_loader(), batches) for name, open_loader in loaders.items()
        }

    def __call__(self, model: Any) -> dict[str, float]:
        """Mean loss per predicted token, in nats, by objective."""
        found: dict[str, float] = {}
        for name, rows in self._batches.items():
            if rows:
                means = self._means(model, rows)
                found[name] = means["loss"]
                found |= {f"{name}/{share}": 100 * means[share] for share in self._shares}
        return found

    def _means(self, model: Any, batches: Sequence[Batch]) -> dict[str, float]:
        wanted = ("loss", *self._shares)
        sums: dict[str, Any] = dict.fromkeys(wanted, 0.0)
        for batch in batches:
            parts = self._step(model, put_batch(batch, self._mesh))
            found = jax.device_get({name: parts[name] for name in wanted})
            sums = {name: sums[name] + np.array(found[name], np.float64) for name in wanted}
        return {name: _mean(*pair) for name, pair in sums.items()}


def _mean(total: np.ndarray, count: np.ndarray) -> float:
    """Of a part with several places, the share that is whole of those that were seen."""
    if total.ndim:
        seen = count > 0
        total, count = (total == count)[seen].sum(), seen.sum()
    return float(total / count) if count else float("nan")


def _first(loader: Any, batches: int) -> list[Batch]:
    try:
        return list(itertools.islice(loader, batches))
    finally:
        loader.close()
