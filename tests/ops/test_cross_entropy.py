"""The fused loss against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from glm_jax.ops.cross_entropy import linear_cross_entropy


def plain(hidden, head, targets, weights):
    log_probs = jax.nn.log_softmax(jnp.einsum("BTD,VD->BTV", hidden, head))
    nll = -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return (nll * weights).sum(), nll


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 10, 6)).astype(np.float32)
    head = rng.normal(size=(17, 6)).astype(np.float32)
    return hidden, head, rng.integers(0, 17, (2, 10)), rng.random((2, 10)).astype(np.float32)


@pytest.mark.parametrize("chunk", [3, 5, 512])
def test_sum_weight_and_nll(case, chunk):
    (loss, weight), nll = linear_cross_entropy(*case, chunk=chunk)
    expected, expected_nll = plain(*case)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(weight, case[-1].sum(), rtol=1e-6)
    np.testing.assert_allclose(nll, expected_nll, rtol=1e-5)


@pytest.mark.parametrize("chunk", [3, 512])
def test_gradients_for_hidden_head_and_weights(case, chunk):
    hidden, head, targets, weights = case
    ours = jax.grad(
        lambda h, e, w: 3.0 * linear_cross_entropy(h, e, targets, w, chunk=chunk)[0][0], (0, 1, 2)
    )(hidden, head, weights)
    theirs = jax.grad(lambda h, e, w: 3.0 * plain(h, e, targets, w)[0], (0, 1, 2))(
        hidden, head, weights
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("chunk", [3, 512])
def test_label_smoothing_is_in_the_sum_and_its_gradients_alone(case, chunk):
    hidden, head, targets, weights = case

    def plain_sum(h, e, w):
        labels = optax.smooth_labels(jax.nn.one_hot(targets, len(head)), 0.1)
        return (optax.softmax_cross_entropy(h @ e.T, labels) * w).sum()

    def ours(h, e, w):
        (loss, _), nll = linear_cross_entropy(h, e, targets, w, chunk=chunk, label_smoothing=0.1)
        return loss, nll

    both = jax.value_and_grad(ours, (0, 1, 2), has_aux=True)(hidden, head, weights)
    (loss, nll), grads = both
    np.testing.assert_allclose(loss, plain_sum(hidden, head, weights), rtol=1e-6)
    np.testing.assert_allclose(ours(hidden, head, weights)[0], loss, rtol=1e-6)
    np.testing.assert_allclose(nll, plain(*case)[1], rtol=1e-5)
    expected = jax.grad(plain_sum, (0, 1, 2))(hidden, head, weights)
    for a, b in zip(grads, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_no_array_of_all_logits_exists():
    """At vocabulary 150k the compiled loss and gradient stay far below [B, T, V] floats."""
    batch, length, width, vocab = 1, 4096, 64, 150_000
    shapes = ((batch, length, width), (vocab, width), (batch, length), (batch, length))
    types = (jnp.bfloat16, jnp.bfloat16, jnp.int32, jnp.float32)
    args = [jax.ShapeDtypeStruct(s, t) for s, t in zip(shapes, types, strict=True)]
    grad = jax.jit(jax.grad(lambda h, e, t, w: linear_cross_entropy(h, e, t, w)[0][0], (0, 1)))
    peak = grad.lower(*args).compile().memory_analysis().temp_size_in_bytes
    assert peak < batch * length * vocab * 4 / 2
