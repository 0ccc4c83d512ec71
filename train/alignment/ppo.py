"""Proximal policy optimisation (arXiv 1707.06347) with a value head on the policy's own layers."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from glm_jax.config import GLMConfig
from glm_jax.errors import UserError
from glm_jax.nn import GLM
from glm_jax.nn.logps import row_hidden, token_logps
from glm_jax.ops import preference
from train.alignment.head import WithHead, scoring, without_head
from train.alignment.losses import answer_logps, token_values
from train.alignment.online import OnlineRun, OnlineStep
from train.alignment.options import Align
from train.finetuning.methods import Method
from train.trainer import Batch, StepFn, put_batch


@dataclasses.dataclass(frozen=True)
class PpoRun(OnlineRun):
    """Compares each token of an answer with what the value head expected there."""

    @classmethod
    def network(cls, args: Any, stored: GLMConfig) -> GLMConfig:
        if stored.num_labels:
            raise UserError(f"{args.ckpt} has a head already; --method ppo adds one of its own")
        return scoring(super().network(args, stored), args.ckpt)

    @classmethod
    def chosen_method(cls, args: Any, config: GLMConfig) -> Method:
        return WithHead(super().chosen_method(args, config.replace(num_labels=0)))

    def step(self) -> StepFn:
        return PpoStep(self)

    def whole(self, model: Any) -> GLM:
        """The policy; the head has served."""
        return without_head(super().whole(model))


class PpoStep(OnlineStep):
    def __init__(self, run: PpoRun):
        super().__init__(run)
        self._judge = jax.jit(functools.partial(judge, args=run.args))

    def judged(
        self, policy: Any, rows: Batch, scores: Float[np.ndarray, "P G"]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        given = put_batch({"scores": scores.reshape(-1)}, self.run.mesh)
        return self._judge(policy, self.run.reference, rows, given["scores"])


def judge(
    policy: GLM, reference: GLM | None, rows: Batch, scores: Float[Array, " B"], args: Align
) -> tuple[dict[str, Array], dict[str, Array]]:
    """``old``, ``values``, ``advantages`` and ``returns`` [B, T] of sampled answers, and the mean
    divergence of a token from the reference.

    A token's reward is minus its share of the divergence, the last one's the score as well (arXiv
    2203.02155, equation 2).
    """
    own, present = args.ppo, rows["loss_weights"]
    hidden = row_hidden(policy, rows, compute=args.compute)
    logps = token_logps(policy, hidden, rows, compute=args.compute)
    values = token_values(policy, hidden)
    apart = jnp.zeros_like(logps)
    if reference is not None:
        apart = logps - answer_logps(reference, rows, args.compute)
    last = jnp.arange(logps.shape[1]) == rows["lengths"][:, None] - 2
    advantages = preference.advantage_estimates(
        scores[:, None] * last - own.kl * apart,
        values,
        present,
        discount=own.discount,
        trace=own.trace,
    )
    returns = advantages + values
    if own.whiten:
        advantages = preference.whitened(advantages, present)
    made = {"old": logps, "values": values, "advantages": advantages, "returns": returns}
    return made, {"kl": apart.sum() / present.sum()}
