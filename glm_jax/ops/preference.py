"""Losses of alignment, as functions of log probabilities, scores and rewards."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_SPREAD = 1e-4
"""Added to the standard deviation of a group, which is 0 where all its rewards are the same."""


def dpo(
    policy: Float[Array, "B 2"],
    reference: Float[Array, "B 2"],
    *,
    beta: float,
    smoothing: float = 0.0,
) -> tuple[Float[Array, " B"], Float[Array, "B 2"]]:
    """Direct preference optimisation (arXiv 2305.18290, equation 7).

    With the implicit rewards ``r = beta (log policy - log reference)`` and their difference m:
    ``-(1 - s) log sigmoid(m) - s log sigmoid(-m)``, where s is the share of labels that are taken
    to be wrong (conservative DPO, note at the end of its section 4).

    Args:
      policy, reference: log probabilities of whole answers, the chosen one first.

    Returns:
      the loss of each pair, and its rewards r.
    """
    rewards = beta * (policy - reference)
    margin = rewards[:, 0] - rewards[:, 1]
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1 - smoothing) * right - smoothing * wrong, rewards


def ranking(scores: Float[Array, "B 2"], *, l2: float = 0.0) -> Float[Array, " B"]:
    """A reward model's loss of each pair of scores, the chosen answer's first:
    ``-log sigmoid(s1 - s2) + l2 (s1^2 + s2^2)`` (ChatGLM-RLHF, arXiv 2404.00934, section 3.2)."""
    chosen, rejected = scores[:, 0], scores[:, 1]
    return -jax.nn.log_sigmoid(chosen - rejected) + l2 * (scores**2).sum(axis=-1)


def group_advantages(
    rewards: Float[Array, "P G"], baseline: Float[Array, " P"] | None = None, *, scale: bool = True
) -> Float[Array, "P G"]:
    """How much better than expected each of G answers to a prompt is.

    Args:
      baseline: what is expected; None: the mean of the group (GRPO, arXiv 2402.03300, section
        4.1.2). ChatGLM-RLHF expects the reward of a reference answer.
      scale: divides by the standard deviation of the group, as GRPO does.
    """
    expected = rewards.mean(axis=1) if baseline is None else baseline
    advantages = rewards - expected[:, None]
    return advantages / (rewards.std(axis=1, keepdims=True) + _SPREAD) if scale else advantages


def clipped_policy(
    logps: Float[Array, "B T"],
    old: Float[Array, "B T"],
    advantages: Float[Array, "B #T"],
    *,
    clip: float,
) -> Float[Array, "B T"]:
    """The clipped surrogate of PPO (arXiv 1707.06347, equation 7) of each token, to be minimised:
    ``-min(q A, clip(q, 1 - e, 1 + e) A)`` with ``q = exp(logps - old)``.

    Args:
      logps, old: log probability of each token, now and when it was sampled.
      advantages: of each token, or of each whole answer.
    """
    ratio = jnp.exp(logps - old)
    bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
    return -jnp.minimum(ratio * advantages, bounded * advantages)


def clipped_value(
    values: Float[Array, "B T"],
    old: Float[Array, "B T"],
    returns: Float[Array, "B T"],
    *,
    clip: float,
) -> Float[Array, "B T"]:
    """Half the squared error of each value, of which a move beyond ``clip`` from the old value does
    not make less: ``max((v - R)^2, (clip(v, v_old - e, v_old + e) - R)^2) / 2`` (the released code
    of arXiv 1707.06347, openai/baselines ppo2/model.py)."""
    bounded = jnp.clip(values, old - clip, old + clip)
    return jnp.maximum((values - returns) ** 2, (bounded - returns) ** 2) / 2


def advantage_estimates(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    present: Float[Array, "B T"],
    *,
    discount: float,
    trace: float,
) -> Float[Array, "B T"]:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16) over a run of slots:
    ``A_t = d_t + g l A_{t+1}`` with ``d_t = r_t + g V_{t+1} - V_t``.

    Args:
      values: V_t, what was expected before the token of slot t was chosen.
      present: 1 in the slots of the run, outside of which rewards, values and advantages are 0: the
        last token ends the episode.
      discount, trace: g and l.
    """
    rewards, values = rewards * present, values * present

    def before(following, slot):
        advantage, value = following
        reward, own, there = slot
        advantage = (reward + discount * (value + trace * advantage) - own) * there
        return (advantage, own), advantage

    nothing = jnp.zeros_like(rewards[:, 0])
    slots = (rewards.T, values.T, present.T)
    return jax.lax.scan(before, (nothing, nothing), slots, reverse=True)[1].T


def whitened(x: Float[Array, "B T"], present: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Numbers whose mean is 0 and whose deviation is 1 where they are present; 0 elsewhere."""
    count = present.sum()
    centred = (x - (x * present).sum() / count) * present
    return centred / jnp.sqrt((centred**2).sum() / count + _SPREAD**2)


def kl_estimate(logps: Float[Array, "B T"], reference: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Of the divergence of the policy from the reference at each sampled token, unbiased and never
    negative: ``exp(d) - d - 1`` with ``d = reference - logps`` (arXiv 2402.03300, equation 4)."""
    difference = reference - logps
    return jnp.exp(difference) - difference - 1
