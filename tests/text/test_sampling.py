"""What top-k, top-p and min-p leave, beside sorting; and how randomness is made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from glm_jax.errors import UserError
from glm_jax.text.sampling import RowSampling, adjust, ban_repeated_ngrams, keep_likely, sample

keep = jax.jit(keep_likely)
choose = jax.jit(sample)


def sorted_keep(logits, top_k=0, top_p=1.0, min_p=0.0):
    """The same by sorting, in float64."""
    x = logits.astype(np.float64)
    if top_k:
        x = np.where(x >= np.sort(x)[::-1][min(top_k, len(x)) - 1], x, -np.inf)
    p = np.exp(x - x.max())
    p /= p.sum()
    if top_p < 1:
        order = np.sort(p)[::-1]
        last = order[np.searchsorted(np.cumsum(order), top_p)] if order.sum() >= top_p else 0
        x = np.where(p >= last, x, -np.inf)
    return np.where(p >= min_p * p.max(), x, -np.inf) > -np.inf


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, 23, elements=st.floats(-20, 20, width=32), unique=True),
    st.integers(0, 30),
    st.sampled_from([0.05, 0.3, 0.7, 0.9, 0.99, 1.0]),
    st.sampled_from([0.0, 0.1, 0.5]),
)
def test_kept_tokens_are_those_that_sorting_keeps(logits, top_k, top_p, min_p):
    rows = RowSampling.make(2, top_k=[top_k, 0], top_p=[top_p, 1.0], min_p=[min_p, 0.0])
    kept = np.asarray(keep(jnp.stack([logits, logits]), rows)) > -np.inf
    wanted = sorted_keep(logits, top_k, top_p, min_p)
    if not np.array_equal(kept[0], wanted):  # a sum that meets top_p to the last bit
        assert abs(int(kept[0].sum()) - int(wanted.sum())) <= 1
        assert kept[0].argmax() == wanted.argmax() or kept[0][logits.argmax()]
    assert kept[1].all()


def test_ties_stay_together():
    logits = jnp.asarray([[1.0, 3.0, 3.0, 3.0, 0.0]])
    kept = keep(logits, RowSampling.make(1, top_k=2)) > -jnp.inf
    assert kept[0].tolist() == [False, True, True, True, False]


def test_draws_have_the_right_frequencies():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    count = 4000
    rows = RowSampling.make(count, temperature=1.0, top_p=0.9, seed=list(range(count)))
    tokens = choose(jnp.tile(logits, (count, 1)), rows, None, jnp.zeros(count, jnp.int32))
    found = np.bincount(tokens, minlength=4) / count
    np.testing.assert_allclose(found, np.array([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.03)


def test_a_row_depends_on_its_own_seed_and_step():
    logits = jax.random.normal(jax.random.key(0), (1, 50))
    one = lambda seed, step: int(
        choose(logits, RowSampling.make(1, temperature=1.0, seed=seed), None, jnp.asarray([step]))[
            0
        ]
    )
    assert one(5, 3) == one(5, 3)
    assert len({one(seed, 0) for seed in range(20)}) > 5
    assert len({one(5, step) for step in range(20)}) > 5
    rows = RowSampling.make(3, temperature=[1.0, 0.0, 1.0], seed=[1, 2, 5])
    together = choose(jnp.tile(logits, (3, 1)), rows, None, jnp.asarray([0, 0, 3]))
    assert int(together[2]) == one(5, 3)
    assert int(together[1]) == int(logits.argmax())


def test_unknown_ids_and_overflowed_logits_are_never_chosen():
    logits = jnp.asarray([[0.0, 1.0, jnp.nan, 9.0]])
    rows = RowSampling.make(1, vocab_limit=3)
    assert int(choose(logits, rows, None, jnp.zeros(1, jnp.int32))[0]) == 1


def test_repetition_penalty_both_ways():
    logits = jnp.asarray([[2.0, -2.0, 2.0]])
    seen = jnp.asarray([[True, True, False]])
    out = adjust(logits, RowSampling.make(1, repetition_penalty=2.0), seen)
    assert out[0].tolist() == [1.0, -4.0, 2.0]


def test_ngrams():
    history = jnp.asarray([[1, 2, 3, 1, 2, 0, 0], [4, 4, 4, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0, 0]])
    lengths = jnp.asarray([5, 3, 1])
    banned = lambda n: [
        np.flatnonzero(np.asarray(row) == -np.inf).tolist()
        for row in ban_repeated_ngrams(jnp.zeros((3, 9)), history, lengths, n)
    ]
    assert banned(3) == [[3], [4], []]
    assert banned(2) == [[3], [4], []]
    assert banned(1) == [[1, 2, 3], [4], [7]]


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"min_p": 2},
              {"repetition_penalty": 0}, {"temperature": float("nan")}],
)  # fmt: skip
def test_settings_out_of_range(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is"):
        RowSampling.make(2, **wrong)
