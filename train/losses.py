"""What a step minimises, as ``train.trainer.LossFn``."""

from __future__ import annotations

import functools

from jaxtyping import Array

from glm_jax.config import GLMConfig
from glm_jax.data import OBJECTIVES
from glm_jax.nn import GLM, Compute, lm_loss
from train.trainer import Batch, LossFn, Parts


@functools.cache  # one function for the same arguments: what is compiled of it is found again
def language_loss(
    compute: Compute,
    parts: tuple[str, ...],
    *,
    dropout: bool = True,
    embed_grad_scale: float = 1.0,
    label_smoothing: float = 0.0,
) -> LossFn:
    """The loss of a batch of ``glm_jax.data``, with the share of each of its parts.

    Args:
      parts: names of what ``batch["objective"]`` indexes.
      dropout: whether anything of the model drops out when it is trained.
      label_smoothing: as for ``lm_loss``; the parts are without it.
    """

    def loss_fn(model: GLM, batch: Batch, key: Array | None) -> tuple[tuple[Array, Array], Parts]:
        total, nll = lm_loss(
            model,
            batch,
            compute=compute,
            dropout_key=key if dropout else None,
            embed_grad_scale=embed_grad_scale,
            label_smoothing=label_smoothing,
        )
        shares = {}
        for index, name in enumerate(parts):
            weight = batch["loss_weights"] * (batch["objective"] == index)
            shares[name] = (nll * weight).sum(), weight.sum()
        return total, shares

    return loss_fn


def blank_infilling_loss(
    config: GLMConfig, compute: Compute, embed_grad_scale: float = 1.0
) -> LossFn:
    """Of pretraining, with the share of each objective."""
    dropped = config.embed_dropout or config.attention_dropout or config.hidden_dropout
    return language_loss(
        compute, OBJECTIVES, dropout=bool(dropped), embed_grad_scale=embed_grad_scale
    )
