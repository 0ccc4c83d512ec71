"""Which probabilities are dropped: as many as the rate says, and each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.ops.attention.dropout import Dropout, counted_from, keeps

ROWS, KEYS = 512, 1024


def kept(rate: float, seed: int = 0) -> np.ndarray:
    words = Dropout(rate, jax.random.key(seed)).words(jnp.zeros((1, ROWS, 1, 1)))[0]
    return np.asarray(keeps(rate, words, jnp.arange(KEYS, dtype=jnp.int32)))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_is_the_rate_in_every_row_and_column(rate):
    dropped = ~kept(rate)
    for axis, count in ((None, ROWS * KEYS), (0, ROWS), (1, KEYS)):
        spread = np.sqrt(rate * (1 - rate) / count)
        assert np.abs(dropped.mean(axis) - rate).max() <= 5 * spread


def test_neighbours_and_rows_do_not_go_together():
    """Correlations of n fair pairs stay within 5 / sqrt(n) of zero."""
    x = kept(0.5) - 0.5
    for lag in (1, 2, 3, 8, 128):
        along = 4 * (x[:, lag:] * x[:, :-lag]).mean()
        across = 4 * (x[lag:] * x[:-lag]).mean()
        assert max(abs(along), abs(across)) < 5 / np.sqrt(ROWS * (KEYS - lag))
    between = 4 * x @ x.T / KEYS
    assert np.abs(between[~np.eye(ROWS, dtype=bool)]).max() < 6 / np.sqrt(KEYS)


def test_keys_may_be_counted_from_anywhere():
    words = jnp.asarray([7, -(2**31), 2**31 - 1], jnp.int32)[:, None]
    keys = jnp.arange(5, dtype=jnp.int32)
    shifted = keeps(0.5, counted_from(10**6, words), keys)
    np.testing.assert_array_equal(shifted, keeps(0.5, words, keys + 10**6))
