"""What is dropped: as much as the rate says, and each element by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.ops.dropout import Dropout, counted_from, dropout, keeps

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


def test_elements_of_activations_are_zero_or_rescaled():
    x = jnp.full((4, 3, 256), 2.0, jnp.bfloat16)
    y = dropout(x, 0.5, jax.random.key(0))
    assert y.dtype == x.dtype and set(np.unique(y.astype(np.float32))) == {0.0, 4.0}
    assert len({row.tobytes() for row in np.asarray(y).reshape(12, -1)}) == 12
    assert dropout(x, 0.5, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


def test_columns_may_be_counted_from_anywhere():
    words = jnp.asarray([7, -(2**31), 2**31 - 1], jnp.int32)[:, None]
    keys = jnp.arange(5, dtype=jnp.int32)
    shifted = keeps(0.5, counted_from(10**6, words), keys)
    np.testing.assert_array_equal(shifted, keeps(0.5, words, keys + 10**6))
