"""Group relative policy optimisation (arXiv 2402.03300)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from glm_jax.ops import preference
from train.alignment.losses import answer_logps
from train.alignment.online import OnlineRun, OnlineStep
from train.trainer import Batch, StepFn, put_batch


@dataclasses.dataclass(frozen=True)
class GrpoRun(OnlineRun):
    """Compares a model's answers to one prompt with each other."""

    def step(self) -> StepFn:
        return GrpoStep(self)


class GrpoStep(OnlineStep):
    def __init__(self, run: GrpoRun):
        super().__init__(run)
        self._logps = jax.jit(functools.partial(answer_logps, compute=run.args.compute))

    def judged(
        self, policy: Any, rows: Batch, scores: Float[np.ndarray, "P G"]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        run = self.run
        own = run.args.grpo
        advantages = preference.group_advantages(
            jnp.asarray(scores),
            None if own.baseline == "group" else jnp.zeros(len(scores)),
            scale=own.scale,
        )
        made = put_batch({"advantages": np.asarray(advantages).reshape(-1, 1)}, run.mesh)
        made["old"] = self._logps(policy, rows)
        if run.reference is not None:
            made["reference"] = self._logps(run.reference, rows)
        return made, {}
