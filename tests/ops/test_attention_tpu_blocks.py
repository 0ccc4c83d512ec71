"""How the kernel's work is cut: sizes that the chip takes, and little work on what is hidden."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.attention.efficiency import MOST_CAUSAL, MOST_PACKED, causal_row, ratio
from glm_jax.ops.attention.tpu import tables
from glm_jax.ops.attention.tpu.blocks import Problem, choose

MIB = 2**20
SHAPES = {"glm-10b": (64, 1, 64), "chatglm-6b": (32, 1, 128), "glm-4-9b": (2, 16, 128)}


def problem(shape="glm-10b", length=8192, vmem=64 * MIB, **changed):
    kv_heads, groups, head_dim = SHAPES[shape]
    fields = {"batch": 1, "queries": length, "keys": length, "kv_heads": kv_heads, "vmem": vmem}
    return Problem(**{**fields, "groups": groups, "head_dim": head_dim, "itemsize": 2, **changed})


def test_tables_of_a_worked_example():
    """Tiles of 4 queries, units of 4 keys: a document, half a document, nothing."""
    start = jnp.array([[0, 0, 0, 0, 2, 2, 8, 8, 0, 0, 0, 0]])
    end = jnp.array([[9, 9, 9, 9, 8, 8, 16, 16, 0, 0, 0, 0]])
    table = tables.spans(start, end, tile=4, unit=4, part=2)
    assert table.first.tolist() == [0, 0, 0]
    assert table.stop.tolist() == [3, 4, 0]
    # All of the first tile see [0, 8); nothing is seen by all of the second.
    assert table.inner_stop.tolist()[0] == 2 and table.inner_first.tolist()[0] == 0
    assert table.inner_first.tolist()[1] == table.inner_stop.tolist()[1]
    assert table.part_first.tolist() == [0, 0, 0, 2, 0, 0]
    assert table.part_stop.tolist() == [3, 3, 2, 4, 0, 0], "halves of the second see other keys"
    fetch = tables.fetches(table, batch=1, tiles=1, units=2)
    assert fetch.first_keys.tolist() == [0, 0, 0]
    assert fetch.last_keys.tolist() == [1, 1, 1], "what sees nothing names what is there already"
    assert fetch.queries.tolist() == [0, 1, 1]


@given(
    groups=st.sampled_from([1, 2, 3, 4, 5, 7, 8, 12, 16, 32, 71]),
    kv_heads=st.integers(1, 64),
    queries=st.integers(1, 2**20),
    keys=st.integers(1, 2**20),
    head_dim=st.sampled_from([64, 96, 128, 256]),
    itemsize=st.sampled_from([2, 4]),
    vmem=st.sampled_from([16 * MIB, 64 * MIB, 128 * MIB]),
)
def test_every_shape_gets_blocks_that_fit_together(**fields):
    for blocks in choose(Problem(batch=1, **fields)):
        rows = blocks.queries * fields["groups"]
        assert rows % blocks.lanes == 0 and blocks.lanes % 128 == 0
        assert blocks.queries % blocks.tile == 0 and blocks.lanes % blocks.tile == 0
        assert blocks.keys % blocks.unit == 0 and 0 < blocks.step <= blocks.keys
        assert blocks.step % blocks.unit == 0
        assert blocks.parts == 1 or blocks.lanes == blocks.tile
        assert blocks.parts * (blocks.part or blocks.tile) == blocks.tile
        assert fields["kv_heads"] % blocks.heads == 0
        padded = -fields["keys"] % blocks.keys
        assert padded < 128 * -(-fields["keys"] // blocks.keys), "at most a unit in every block"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [8192, 32768, 131072])
def test_causal_rows_compute_at_most_a_tenth_more_than_is_visible(shape, length):
    for blocks in choose(problem(shape, length)):
        assert ratio(blocks, causal_row(length)) <= MOST_CAUSAL


@pytest.mark.parametrize("shape", SHAPES)
def test_documents_packed_into_8k_compute_at_most_a_quarter_more(shape):
    """Lengths as of this Python's documentation: 600 tokens on average, a few of thousands."""
    rng = np.random.default_rng(0)
    start, end = np.zeros((2, 16, 8192), np.int32)
    for row in range(16):
        at = 0
        while at < 8192:
            size = min(8192 - at, int(rng.lognormal(5.6, 1.3)) + 32)
            part_a = int(size * 0.8)
            ends = np.maximum(np.arange(1, size + 1), part_a)
            start[row, at : at + size], end[row, at : at + size] = at, at + ends
            at += size
    for blocks in choose(problem(shape)):
        assert ratio(blocks, (start, end)) <= MOST_PACKED
