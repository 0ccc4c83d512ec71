"""Rotary positions: exact angles at any length and both pairings."""

import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.ops.rope import frequencies, rope_tables, rotate, whole_head


def turned(x, *, interleaved):
    """Position 1 of a head whose first pair turns by a right angle and whose second stays."""
    tables = rope_tables(jnp.asarray([[1]]), np.array([np.pi / 2, 0.0]))
    own, other = whole_head(*tables, len(x), interleaved=interleaved)
    heads = jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1)
    return rotate(heads, own, other, apart=1 if interleaved else 2)[0, 0, 0]


FAR = np.array([[0, 1, 10, 8191, 131071, 1048575]])


@pytest.mark.parametrize(("dim", "theta"), [(64, 1e4), (64, 5e6), (64, 1e8), (32, 5e5)])
def test_angles_stay_right_to_a_millionth_at_a_million(dim, theta):
    freqs = frequencies(dim, theta)
    cos, sin = rope_tables(jnp.asarray(FAR), freqs)
    angles = FAR[..., None].astype(np.longdouble) * freqs.astype(np.longdouble)
    assert np.abs(np.asarray(cos) - np.cos(angles)).max() < 1e-6
    assert np.abs(np.asarray(sin) - np.sin(angles)).max() < 1e-6


def test_chatglm_frequencies_are_rounded_to_half_precision():
    freqs = frequencies(64, 1e4, float16=True)
    assert np.array_equal(freqs, freqs.astype(np.float16).astype(np.float64))
    assert freqs[1] == np.float64(np.float16(10000 ** (-2 / 64)))


def test_interleaved_turns_neighbours_and_passes_the_rest():
    np.testing.assert_allclose(turned(range(6), interleaved=True), [-1, 0, 2, 3, 4, 5], atol=1e-6)


def test_rotate_half_turns_first_with_second_half():
    np.testing.assert_allclose(turned(range(4), interleaved=False), [-2, 1, 0, 3], atol=1e-6)
