"""The losses of alignment against their formulas in float64; token likelihoods against logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.ops import preference
from glm_jax.ops.token_nll import token_nll

RNG = np.random.default_rng(0)
POLICY, REFERENCE = RNG.normal(-20, 6, (2, 5, 2))
SCORES = RNG.normal(0, 2, (5, 2))


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo(smoothing):
    losses, rewards = preference.dpo(POLICY, REFERENCE, beta=0.3, smoothing=smoothing)
    (pi_w, pi_l), (ref_w, ref_l) = POLICY.T, REFERENCE.T
    ratio = 0.3 * ((pi_w - ref_w) - (pi_l - ref_l))
    expected = -(1 - smoothing) * log_sigmoid(ratio) - smoothing * log_sigmoid(-ratio)
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    np.testing.assert_allclose(rewards[:, 0], 0.3 * (pi_w - ref_w), rtol=1e-5)


def test_dpo_of_an_unchanged_policy_is_log_2():
    losses, rewards = preference.dpo(POLICY, POLICY, beta=0.3)
    np.testing.assert_allclose(losses, np.log(2), rtol=1e-6)
    assert not np.asarray(rewards).any()


def test_the_gradient_of_dpo_is_beta_times_the_doubt_in_the_pair():
    total = lambda x: preference.dpo(x, REFERENCE, beta=0.3)[0].sum()
    doubt = 1 / (1 + np.exp(0.3 * ((POLICY - REFERENCE) @ [1, -1])))  # equation 7's gradient
    expected = 0.3 * doubt[:, None] * [-1, 1]
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(POLICY)), expected, rtol=2e-5)


def test_ranking():
    chosen, rejected = SCORES.T
    expected = -log_sigmoid(chosen - rejected) + 0.05 * (chosen**2 + rejected**2)
    np.testing.assert_allclose(preference.ranking(SCORES, l2=0.05), expected, rtol=1e-5)


def test_advantages_of_a_group():
    rewards = jnp.array([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    scaled = preference.group_advantages(rewards)
    np.testing.assert_allclose(scaled, [[1, -1, -1, 1], [0, 0, 0, 0]], atol=3e-4)
    plain = preference.group_advantages(rewards, scale=False)
    np.testing.assert_allclose(plain, [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0]])
    against = preference.group_advantages(rewards, jnp.array([1.0, 0.5]), scale=False)
    np.testing.assert_allclose(against, [[0, -1, -1, 0], [1.5, 1.5, 1.5, 1.5]])


def test_the_clipped_surrogate_and_its_gradient():
    old, advantages = RNG.normal(-2, 1, (4, 6)), np.array([1.5, -0.5, 2.0, -1.0])
    logps = old + RNG.normal(0, 0.4, old.shape)
    ratio = np.exp(logps - old)
    a = advantages[:, None]
    expected = -np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a)
    loss = lambda x: preference.clipped_policy(x, old, a, clip=0.2)
    np.testing.assert_allclose(loss(logps), expected, rtol=1e-5)
    moves = np.where(a > 0, ratio < 1.2, ratio > 0.8)  # beyond, the bound is constant
    gradient = jax.grad(lambda x: loss(x).sum())(jnp.asarray(logps))
    np.testing.assert_allclose(gradient, np.where(moves, -ratio * a, 0), rtol=1e-5)


def test_advantage_estimates_are_discounted_sums_of_surprises():
    rewards, values = RNG.normal(size=(2, 2, 6))
    present = np.array([[0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]])
    found = preference.advantage_estimates(rewards, values, present, discount=0.9, trace=0.7)
    (r1, r2, r3), (v1, v2, v3) = rewards[0, 1:4], values[0, 1:4]
    d1, d2, d3 = r1 + 0.9 * v2 - v1, r2 + 0.9 * v3 - v2, r3 - v3
    expected = [0, d1 + 0.63 * d2 + 0.63**2 * d3, d2 + 0.63 * d3, d3, 0, 0]
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    np.testing.assert_allclose(found[1], [0] * 5 + [rewards[1, 5] - values[1, 5]], rtol=1e-5)


def test_with_a_trace_of_1_an_advantage_is_what_followed_less_what_was_expected():
    rewards, values = RNG.normal(size=(2, 1, 4))
    found = preference.advantage_estimates(rewards, values, np.ones((1, 4)), discount=1, trace=1)
    followed = np.cumsum(rewards[0, ::-1])[::-1]
    np.testing.assert_allclose(found[0], followed - values[0], rtol=1e-5)


def test_a_value_beyond_the_clip_range_has_a_gradient_only_where_it_is_worse():
    old, returns = np.zeros((1, 4)), np.array([[1.0, 1.0, -1.0, 0.1]])
    values = np.array([[0.1, 0.5, 0.5, 0.05]])  # near; far and better; far and worse; near
    loss = lambda x: preference.clipped_value(x, old, returns, clip=0.2)
    np.testing.assert_allclose(loss(values), [[0.405, 0.32, 1.125, 0.00125]], rtol=1e-5)
    gradient = jax.grad(lambda x: loss(x).sum())(jnp.asarray(values))
    np.testing.assert_allclose(gradient, [[-0.9, 0, 1.5, -0.05]], atol=1e-6)


def test_whitened_numbers():
    x, present = RNG.normal(3, 2, (3, 5)), np.tri(3, 5, 1)
    found = np.asarray(preference.whitened(x, present))
    inside = x[present == 1]
    np.testing.assert_allclose(found[present == 1], (inside - inside.mean()) / inside.std(), 1e-5)
    assert not found[present == 0].any()


def test_the_estimate_of_kl_is_unbiased_and_never_negative():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
    each = np.asarray(preference.kl_estimate(np.log(p)[None], np.log(q)[None]))[0]
    assert (each >= 0).all()
    np.testing.assert_allclose((p * each).sum(), (p * np.log(p / q)).sum(), rtol=1e-5)


@pytest.mark.parametrize("chunk", [3, 512])
def test_token_likelihoods_and_their_gradients(chunk):
    hidden = RNG.normal(size=(2, 10, 6)).astype(np.float32)
    head = RNG.normal(size=(17, 6)).astype(np.float32)
    targets, weights = RNG.integers(0, 17, (2, 10)), RNG.normal(size=(2, 10))

    def plain(hidden, head):
        log_probs = jax.nn.log_softmax(hidden @ head.T)
        return -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]

    def total(nll):  # not linear in the likelihoods, as the losses above are not
        return lambda *x: (weights * nll(*x) ** 2).sum()

    ours = lambda hidden, head: token_nll(hidden, head, targets, chunk=chunk)
    np.testing.assert_allclose(ours(hidden, head), plain(hidden, head), rtol=1e-5)
    for got, expected in zip(
        jax.grad(total(ours), (0, 1))(hidden, head),
        jax.grad(total(plain), (0, 1))(hidden, head),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
