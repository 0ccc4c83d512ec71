"""What each method minimises, as ``train.trainer.LossFn``.

The weight of a loss is a number of pairs or of answers, so micro-batches average correctly.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from glm_jax.nn import GLM, Compute
from glm_jax.nn.logps import row_hidden, token_logps
from glm_jax.ops import preference
from train.alignment.options import Align
from train.trainer import Batch, LossFn, Parts

ROWS = ("tokens", "positions", "k_start", "k_end", "targets", "loss_weights", "lengths")


def flat_rows(batch: Batch) -> dict[str, Array]:
    """Rows of pairs [B, 2, ...] as [2 B, ...]."""
    return {name: batch[name].reshape(-1, *batch[name].shape[2:]) for name in ROWS}


def answer_logps(model: GLM, rows: Batch, compute: Compute) -> Float[Array, "B T"]:
    """Log probability of each token of the rows' answers; 0 elsewhere."""
    return token_logps(model, row_hidden(model, rows, compute=compute), rows, compute=compute)


def pair_logps(model: GLM, batch: Batch, compute: Compute) -> Float[Array, "B 2"]:
    """Log probability of each whole answer."""
    return answer_logps(model, flat_rows(batch), compute).sum(axis=-1).reshape(-1, 2)


def dpo_loss(args: Align) -> LossFn:
    """Batches of ``Pairs.rows`` with ``reference`` [B, 2]: ``pair_logps`` before the first step."""

    def loss_fn(model: GLM, batch: Batch, key: Array | None) -> tuple[tuple[Array, Array], Parts]:
        del key  # no dropout: probabilities are compared
        rows = flat_rows(batch)
        logps = answer_logps(model, rows, args.compute)
        policy = logps.sum(axis=-1).reshape(-1, 2)
        losses, rewards = preference.dpo(
            policy, batch["reference"], beta=args.dpo.beta, smoothing=args.dpo.smoothing
        )
        extra, parts = _lm(args.lm, logps.reshape(-1, 2, logps.shape[-1])[:, 0], batch)
        margin = rewards[:, 0] - rewards[:, 1]
        named = {"accuracy": _share(margin > 0), "margin": margin, "dpo": losses}
        named |= {"chosen": rewards[:, 0], "rejected": rewards[:, 1]}
        return _over_pairs(losses + extra, named, parts, batch)

    return loss_fn


def ranking_loss(args: Align) -> LossFn:
    """Batches of ``Pairs.rows``."""
    dropped = bool(args.lora_dropout)

    def loss_fn(model: GLM, batch: Batch, key: Array | None) -> tuple[tuple[Array, Array], Parts]:
        rows = flat_rows(batch)
        hidden = row_hidden(model, rows, compute=args.compute, dropout_key=key if dropped else None)
        assert model.classifier is not None
        scores = model.classifier(hidden, rows["lengths"]).reshape(-1, 2)
        losses = preference.ranking(scores, l2=args.ranking.l2)
        extra, parts = 0.0, {}
        if args.lm:
            first = {name: x.reshape(-1, 2, *x.shape[1:])[:, 0] for name, x in rows.items()}
            chosen = hidden.reshape(-1, 2, *hidden.shape[1:])[:, 0]
            logps = token_logps(model, chosen, first, compute=args.compute)
            extra, parts = _lm(args.lm, logps, batch)
        margin = scores[:, 0] - scores[:, 1]
        named = {"accuracy": _share(margin > 0), "margin": margin, "score": scores.mean(axis=1)}
        return _over_pairs(losses + extra, named, parts, batch)

    return loss_fn


def policy_loss(args: Align) -> LossFn:
    """Batches of ``answer_rows`` with ``advantages`` [B, T] or [B, 1] and, of each token, ``old``
    [B, T], its log probability when it was sampled. What else is there counts as well:

    ``reference`` [B, T]: the log probability before the first step; the divergence from it.
    ``values``, ``returns`` [B, T]: what the head said when it was sampled, and should have said.
    ``right_tokens`` and so on (with ``lm``): the rows of the data's own answers.
    """
    own = args.answering

    def loss_fn(model: GLM, batch: Batch, key: Array | None) -> tuple[tuple[Array, Array], Parts]:
        del key  # no dropout: probabilities are compared
        weights = batch["loss_weights"]
        hidden = row_hidden(model, batch, compute=args.compute)
        logps = token_logps(model, hidden, batch, compute=args.compute)
        named = {}
        losses = preference.clipped_policy(logps, batch["old"], batch["advantages"], clip=own.clip)
        named["clipped"] = jnp.abs(jnp.exp(logps - batch["old"]) - 1) > own.clip
        if "reference" in batch:
            named["kl"] = preference.kl_estimate(logps, batch["reference"])
            losses += own.kl * named["kl"]
        if "returns" in batch:
            named["value"] = preference.clipped_value(
                token_values(model, hidden),
                batch["values"],
                batch["returns"],
                clip=args.ppo.value_clip,
            )
            losses += args.ppo.value_weight * named["value"]
        parts = {name: ((x * weights).sum(), weights.sum()) for name, x in named.items()}
        each = (losses * weights).sum(axis=-1) / weights.sum(axis=-1)
        if args.lm:
            right = {name: batch[f"right_{name}"] for name in ROWS}
            counts = right["loss_weights"].sum(axis=-1)
            nll = -answer_logps(model, right, args.compute).sum(axis=-1)
            each += args.lm * nll / counts
            parts["lm"] = nll.sum(), counts.sum()
        return (each.sum(), jnp.float32(len(each))), parts

    return loss_fn


def token_values(model: GLM, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
    """What the head expects of the tokens that follow each slot."""
    assert model.classifier is not None
    return model.classifier.each(hidden)[..., 0]


def _lm(
    weight: float, logps: Float[Array, "B T"], batch: Batch
) -> tuple[Float[Array, " B"] | float, Parts]:
    """The added next-token loss of the chosen answers, each its mean over tokens."""
    if not weight:
        return 0.0, {}
    counts = batch["loss_weights"][:, 0].sum(axis=-1)
    nll = -logps.sum(axis=-1)
    return weight * nll / counts, {"lm": (nll.sum(), counts.sum())}


def _share(hits: Array) -> Float[Array, " B"]:
    return hits.astype(jnp.float32)


def _over_pairs(
    losses: Float[Array, " B"], named: dict[str, Any], parts: Parts, batch: Batch
) -> tuple[tuple[Array, Array], Parts]:
    """Sums over the pairs that are there: all, unless ``present`` says otherwise."""
    present = batch.get("present")
    present = jnp.ones_like(losses) if present is None else present
    count = present.sum()
    sums = {name: ((x * present).sum(), count) for name, x in named.items()}
    return ((losses * present).sum(), count), {**sums, **parts}
