"""Rows cut over devices give what one device gives: outputs and all gradients, every pattern."""

import functools

import jax
import numpy as np
import pytest

from glm_jax.ops.attention import Dropout, LayerPrefix, attention, reference_attention
from glm_jax.ops.attention.context import (
    LocalAttention,
    check_length,
    choose_way,
    from_zigzag,
    to_zigzag,
)
from glm_jax.ops.attention.sharded import sharded_attention
from glm_jax.ops.dropout import Drops
from glm_jax.sharding import MeshConfig, make_mesh

B, T, N, H, P = 2, 64, 4, 16, 3
MESHES = {
    "context=2": MeshConfig(data=2, fsdp=2, context=2),
    "context=4": MeshConfig(data=1, fsdp=2, context=4),
    "context=8": MeshConfig(data=1, context=8),
    "tensor=2": MeshConfig(data=1, fsdp=2, tensor=2, context=2),
    "tensor=4": MeshConfig(data=1, tensor=4, context=2),
}


def ranges(pattern: str, length: int = T, rows: int = B) -> np.ndarray:
    """k_start and k_end, [2, B, T]."""
    steps = np.arange(length)
    starts, ends = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        cuts = [0, length // 3 + row, length // 2 + 3 * row, length]
        document = np.searchsorted(cuts, steps, side="right") - 1
        first, last = np.array(cuts)[document], np.array(cuts)[document + 1]
        part_a = np.minimum(first + (last - first) // 2, last)
        real = length - 7 * (row + 1)
        starts[row], ends[row] = {
            "bidirectional": (0 * steps, 0 * steps + length),
            "causal": (0 * steps, steps + 1),
            "blank infilling": (0 * steps, np.maximum(steps + 1, length // 2 - row)),
            "packed": (first, np.maximum(steps + 1, part_a)),
            "padded": (0 * steps, np.where(steps < real, np.minimum(steps + 1, real), 0)),
            "empty rows": (steps, np.where(row == 0, steps, steps + 1)),
            "anything": np.sort(np.random.default_rng(row).integers(0, length + 1, (2, length)), 0),
        }[pattern]
    return np.stack([starts, ends])


PATTERNS = (
    "bidirectional",
    "causal",
    "blank infilling",
    "packed",
    "padded",
    "empty rows",
    "anything",
)


def inputs(kv_heads: int):
    rng = np.random.default_rng(0)
    q, weights = rng.normal(size=(2, B, T, N, H)).astype(np.float32)
    k, v = rng.normal(size=(2, B, T, kv_heads, H)).astype(np.float32)
    prefix = rng.normal(size=(2, P, kv_heads, H)).astype(np.float32)
    return q, k, v, prefix, weights


def value_and_gradients(attend):
    @jax.jit
    def both(q, k, v, prefix, weights, bounds):
        run = lambda q, k, v, prefix: attend(q, k, v, *bounds, prefix=LayerPrefix(*prefix))
        out, pull = jax.vjp(run, q, k, v, prefix)
        return out, *pull(weights)

    return both


@functools.cache
def single(kv_heads: int):
    return value_and_gradients(functools.partial(attention, implementation="reference"))


def zigzagged(way: str, local: LocalAttention, shards: int):
    """The cut attention as a function of rows in their own order."""

    def attend(q, k, v, k_start, k_end, prefix):
        turned = (to_zigzag(x, shards, 1) for x in (q, k, v, k_start, k_end))
        out = sharded_attention(local, *turned, prefix=prefix, order="zigzag", way=way)
        return from_zigzag(out, shards, 1)

    return value_and_gradients(attend)


CASES = [
    # Every size of the ring, heads cut and not, keys that are fewer than the tensor ways.
    ("ring", "chunked", "context=2", 4),
    pytest.param("ring", "chunked", "context=8", 2, marks=pytest.mark.slow),
    ("ring", "reference", "context=4", 1),
    pytest.param("ring", "reference", "tensor=2", 2, marks=pytest.mark.slow),
    ("ring", "reference", "tensor=4", 2),
    ("ring", "tpu", "context=4", 2),
    ("ring", "gpu", "context=4", 2),
    ("gather", "chunked", "context=8", 1),
    pytest.param("gather", "reference", "tensor=2", 2, marks=pytest.mark.slow),
    ("gather", "tpu", "tensor=4", 1),
]


@pytest.mark.parametrize(("way", "implementation", "mesh", "kv_heads"), CASES)
def test_rows_in_zigzag_order_give_what_one_device_gives(way, implementation, mesh, kv_heads):
    q, k, v, prefix, weights = inputs(kv_heads)
    local = LocalAttention(implementation, 2**24, interpret=True)
    ours = zigzagged(way, local, MESHES[mesh].sizes(8)[3])
    for pattern in PATTERNS:
        bounds = ranges(pattern)
        # The prefix counts: who starts at 0 sees it.
        bounds = np.stack([np.where(bounds[0] == 0, 0, bounds[0] + P), bounds[1] + P])
        if pattern == "empty rows":
            bounds[:, 0] = 7
        right = single(kv_heads)(q, k, v, prefix, weights, bounds)
        with jax.set_mesh(make_mesh(MESHES[mesh])):
            got = ours(q, k, v, prefix, weights, bounds)
        for mine, theirs in zip(got, right, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-5, err_msg=pattern)


def test_dropout_goes_with_the_queries_of_rows_that_are_cut():
    q, k, v, prefix, weights = inputs(2)
    bounds = ranges("blank infilling") + P
    words = Dropout(0.3, jax.random.key(0)).words(q)

    def dropped(q, k, v, k_start, k_end, prefix):
        keys, values = prefix.before(k, v)
        return reference_attention(q, keys, values, k_start, k_end, drops=Drops(0.3, words))

    def cut(q, k, v, k_start, k_end, prefix):
        local = LocalAttention("reference", dropout=0.3)
        turned = (to_zigzag(x, 4, 1) for x in (q, k, v, k_start, k_end))
        own = to_zigzag(words, 4, 1)
        out = sharded_attention(local, *turned, prefix=prefix, order="zigzag", words=own)
        return from_zigzag(out, 4, 1)

    right = value_and_gradients(dropped)(q, k, v, prefix, weights, bounds)
    with jax.set_mesh(make_mesh(MESHES["context=4"])):
        got = value_and_gradients(cut)(q, k, v, prefix, weights, bounds)
    for mine, theirs in zip(got, right, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("queries", [1, T // 4])
def test_a_few_queries_go_to_the_keys(queries):
    """Decoding, and reading a prompt by pieces: queries at the end of rows, with a prefix."""
    q, k, v, prefix, _ = inputs(2)
    rng = np.random.default_rng(1)
    q = q[:, :queries]
    ends = rng.integers(0, T + P + 1, (2, B, queries)).astype(np.int32)
    bounds = np.sort(ends, 0)
    bounds[:, 0, 0] = 0, P - 1  # a part of the prefix alone
    bounds[:, 1, 0] = 9, 9  # nothing
    prefix = LayerPrefix(*prefix)
    right = attention(q, k, v, *bounds, implementation="reference", prefix=prefix)
    with jax.set_mesh(make_mesh(MESHES["context=4"])):
        got = jax.jit(functools.partial(attention, implementation="reference"))(
            q, k, v, *bounds, prefix=prefix
        )
    np.testing.assert_allclose(got, right, atol=1e-5, rtol=1e-5)


def test_one_query_over_keys_that_are_cut_drops_nothing_and_says_so():
    q, k, v, _, _ = inputs(2)
    bounds = np.zeros((B, 1), np.int32), np.full((B, 1), T, np.int32)
    drop = functools.partial(attention, dropout=Dropout(0.3, jax.random.key(0)))
    refused = pytest.raises(ValueError, match="over keys that context cuts, of 1 queries")
    with jax.set_mesh(make_mesh(MESHES["context=4"])), refused:
        jax.eval_shape(drop, q[:, :1], k, v, *bounds)


@pytest.mark.parametrize("shards", [4, 16])
def test_zigzag_gives_every_shard_the_same_causal_work(shards):
    pairs = np.arange(1, 8193)
    share = lambda x: np.asarray(x).reshape(shards, -1).sum(1)
    zigzag, natural = share(to_zigzag(pairs, shards, 0)), share(pairs)
    assert zigzag.max() / zigzag.mean() < 1.001
    assert natural.max() / natural.mean() > 2 - 1.01 / shards
    np.testing.assert_array_equal(from_zigzag(to_zigzag(pairs, shards, 0), shards, 0), pairs)


def test_the_way_follows_what_is_sent():
    sizes = {"queries": 131072, "keys": 131072, "shards": 16, "own_keys": True}
    assert choose_way(heads=32, kv_heads=2, **sizes) == "gather"
    assert choose_way(heads=32, kv_heads=32, **sizes) == "ring"
    cache = sizes | {"queries": 1, "own_keys": False}
    assert choose_way(heads=32, kv_heads=2, **cache) == "spread"


def test_a_length_that_cannot_be_cut_is_named():
    with pytest.raises(ValueError, match=r"rows of 100 tokens .* context=4: .* multiple of 8"):
        check_length(100, "zigzag", 4)
