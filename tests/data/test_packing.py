"""Rows of one length, each example seeing only itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_jax import data


def example(length, sep, start=1):
    tokens = np.arange(start, start + length, dtype=np.int32)
    positions = np.stack([np.arange(length), np.zeros(length)]).astype(np.int32)
    return data.Example(tokens, tokens + 1, np.ones(length, np.float32), positions, sep)


def test_two_examples_in_a_row_of_ten():
    packer = data.Packer(10, pad_id=99)
    assert packer.add(example(4, sep=2), 0) == []
    assert packer.add(example(5, sep=3, start=50), 2) == []
    (row,) = packer.flush()
    assert row["tokens"].tolist() == [1, 2, 3, 4, 50, 51, 52, 53, 54, 99]
    assert row["k_start"].tolist() == [0, 0, 0, 0, 4, 4, 4, 4, 4, 0]
    assert row["k_end"].tolist() == [2, 2, 3, 4, 7, 7, 7, 8, 9, 0]
    assert row["objective"].tolist() == [0] * 4 + [2] * 5 + [-1]
    assert row["positions"][0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 0]
    assert row["loss_weights"][-1] == 0


def test_without_isolation_an_example_also_sees_what_stands_before_it():
    packer = data.Packer(10, isolate=False)
    packer.add(example(4, sep=2), 0)
    packer.add(example(5, sep=3), 0)
    (row,) = packer.flush()
    assert row["k_start"].tolist() == [0] * 10
    assert row["k_end"].tolist() == [2, 2, 3, 4, 7, 7, 7, 8, 9, 0]


def test_an_example_goes_where_it_fills_most():
    packer = data.Packer(10)
    packer.add(example(4, 1), 0)
    packer.add(example(7, 1), 0)
    (row,) = packer.add(example(3, 1, start=70), 0)
    assert row["tokens"].tolist() == [1, 2, 3, 4, 5, 6, 7, 70, 71, 72]


def test_too_long_an_example_is_refused():
    with pytest.raises(ValueError, match="11 tokens does not fit a row of 10"):
        data.Packer(10).add(example(11, 1), 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 32), max_size=60), st.integers(1, 6), st.integers(0, 60))
def test_nothing_is_lost_ranges_stay_inside_and_a_state_goes_on(sizes, open_rows, stop):
    examples = [example(size, max(1, size // 2), start=1000 * i) for i, size in enumerate(sizes)]
    packer = data.Packer(32, pad_id=-1, open_rows=open_rows)
    rows = []
    for i, e in enumerate(examples):
        rows += packer.add(e, 0, tag=i)
        if i == stop:
            state = packer.get_state()
            assert len(state["rows"]) <= open_rows
            packer = data.Packer(32, pad_id=-1, open_rows=open_rows)
            packer.set_state(state, lambda tag: (examples[tag], 0))
    rows += packer.flush()
    kept = [t for row in rows for t in row["tokens"].tolist() if t != -1]
    assert sorted(kept) == sorted(t for e in examples for t in e.tokens.tolist())
    for row in rows:
        owner = row["tokens"] // 1000
        for q in np.flatnonzero(row["tokens"] >= 0):
            keys = slice(row["k_start"][q], row["k_end"][q])
            assert set(owner[keys].tolist()) == {owner[q]}
            assert keys.start <= q < keys.stop
