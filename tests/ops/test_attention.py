"""Attention over key ranges: both implementations against float64 numpy, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_jax.ops.attention import Dropout, attention, chunked_attention, reference_attention
from glm_jax.ops.dropout import Drops


def numpy_attention(q, k, v, k_start, k_end):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = slice(k_start[b, t], k_end[b, t])
        scores = k[b, keys, n // group] @ q[b, t, n] / np.sqrt(q.shape[-1])
        if scores.size:
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights @ v[b, keys, n // group] / weights.sum()
    return out


def inputs(seed, batch=2, t=11, s=13, heads=4, groups=2, h=8):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(batch, t, heads, h)).astype(np.float32)
    k, v = rng.normal(size=(2, batch, s, groups, h)).astype(np.float32)
    ends = np.sort(rng.integers(0, s + 1, size=(2, batch, t)), axis=0).astype(np.int32)
    return q, k, v, *ends


IMPLEMENTATIONS = {
    "reference": reference_attention,
    "chunked": lambda *a, **kw: chunked_attention(*a, q_block=4, k_block=5, **kw),
}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_ranges_give_the_float64_result(name, seed):
    """Empty runs, single keys, full rows and runs that straddle blocks all occur."""
    args = inputs(seed)
    ours = IMPLEMENTATIONS[name](*args)
    np.testing.assert_allclose(ours, numpy_attention(*args), atol=2e-6)


def test_a_query_that_sees_nothing_gives_zero():
    q, k, v, start, _ = inputs(0)
    for implementation in IMPLEMENTATIONS.values():
        assert not np.asarray(implementation(q, k, v, start, start)).any()


def test_chunked_gradients_are_the_reference_ones():
    q, k, v, start, end = inputs(3)
    weights = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)

    def grads(implementation):
        loss = lambda *qkv: (implementation(*qkv, start, end) * weights).sum()
        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    for ours, theirs in zip(*map(grads, IMPLEMENTATIONS.values()), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


def test_dropout_is_the_same_in_both_implementations_values_and_gradients():
    q, k, v, start, end = inputs(5)
    drops = Drops(0.4, Dropout(0.4, jax.random.key(0)).words(q))

    def run(implementation):
        attend = lambda q, k, v: implementation(q, k, v, start, end, drops=drops)
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(out)

    for ours, theirs in zip(*map(run, IMPLEMENTATIONS.values()), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_dropout_is_unbiased_and_its_gradient_uses_the_same_mask():
    q, k, v, start, end = inputs(5)

    def run(v, seed):
        drops = Drops(0.4, Dropout(0.4, jax.random.key(seed)).words(q))
        return IMPLEMENTATIONS["chunked"](q, k, v, start, end, drops=drops)

    mean = jax.jit(lambda: jax.vmap(lambda s: run(v, s))(jnp.arange(800)).mean(0))()
    np.testing.assert_allclose(mean, reference_attention(q, k, v, start, end), atol=0.25)
    out, pull = jax.vjp(lambda v: run(v, 0), v)
    # The output is linear in v, so pulling back a direction equals pushing v through it.
    np.testing.assert_allclose((pull(out)[0] * v).sum(), (out * out).sum(), rtol=1e-4)


def test_wrong_heads_and_names_are_refused():
    q, k, v, start, end = inputs(0, heads=3, groups=2)
    with pytest.raises(ValueError, match="3 query heads do not divide among 2 kv heads"):
        attention(q, k, v, start, end)
    q, k, v, start, end = inputs(0)
    with pytest.raises(ValueError, match="choose auto, reference, chunked, tpu, gpu"):
        attention(q, k, v, start, end, implementation="flash")
