"""The TPU kernel for decoding, interpreted on CPU, against the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from glm_jax import nn
from glm_jax.config import preset
from glm_jax.ops.attention.in_place import in_place_attention, reads_in_place
from glm_jax.ops.attention.reference import reference_forward
from glm_jax.ops.attention.tpu.decode import decode_forward
from glm_jax.ops.attention.tpu.steps import Cut, cut, list_steps

LAYERS, B, S, H = 2, 3, 300, 16


def cache(rng, kv_heads, dtype):
    """Keys, values and their scales, with the heads first."""
    shape = LAYERS, B, kv_heads, S, H
    if dtype != jnp.int8:
        return *(jnp.asarray(rng.normal(size=shape), dtype) for _ in "kv"), None, None
    integers = (jnp.asarray(rng.integers(-127, 128, size=shape), jnp.int8) for _ in "kv")
    scales = (jnp.asarray(rng.uniform(0.001, 0.02, size=shape[:-1]), jnp.float32) for _ in "kv")
    return *integers, *scales


def reference(q, held, layer, start, end):
    k, v, *scales = (None if x is None else x[layer] for x in held)
    if scales[0] is not None:
        k, v = (x.astype(q.dtype) * s[..., None] for x, s in zip((k, v), scales, strict=True))
    return reference_forward(q, k.swapaxes(1, 2), v.swapaxes(1, 2), start, end)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "queries", "dtype"),
    [(4, 2, 3, jnp.float32), (8, 8, 1, jnp.int8)],
)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_it_gives_what_the_reference_gives(heads, kv_heads, queries, dtype, seed):
    rng = np.random.default_rng(seed)
    held = cache(rng, kv_heads, dtype)
    q = jnp.asarray(rng.normal(size=(B, queries, heads, H)), jnp.float32)
    start = rng.integers(0, S, size=(B, queries)) * rng.integers(0, 2, size=(B, 1))
    end = rng.integers(0, S + 1, size=(B, queries))  # some of them before the start
    layer = int(rng.integers(LAYERS))
    ranges = jnp.asarray(start, jnp.int32), jnp.asarray(end, jnp.int32)
    mine, lse = decode_forward(
        q,
        *held[:2],
        layer,
        *ranges,
        *held[2:],
        sizes=Cut(1 if kv_heads < 8 else 8, 128),
        interpret=True,
    )
    right, right_lse = reference(q, held, layer, *ranges)
    np.testing.assert_allclose(mine, right, atol=2e-6, rtol=1e-5)
    np.testing.assert_allclose(lse, right_lse, atol=2e-6, rtol=1e-5)


def test_keys_that_no_row_sees_are_not_read():
    """They are NaN: a product with them would show, even with a weight of zero."""
    rng = np.random.default_rng(0)
    k, v, *_ = cache(rng, 2, jnp.float32)
    k, v = (x.at[:, :, :, 128:256].set(jnp.nan) for x in (k, v))
    q = jnp.asarray(rng.normal(size=(B, 1, 4, H)), jnp.float32)
    start, end = jnp.array([[0], [256], [9]]), jnp.array([[128], [300], [3]])
    out, _ = decode_forward(q, k, v, 1, start, end, sizes=Cut(1, 128), interpret=True)
    assert np.isfinite(out).all() and not np.asarray(out)[2].any()


@pytest.mark.parametrize("sizes", [(2, 1, 4, 1), (1, 1, 2, 4)])
def test_shards_of_a_mesh_find_their_own_rows_key_heads_and_slots(sizes):
    """Two key heads on every of four devices; or one each, and the slots cut."""
    rng = np.random.default_rng(1)
    k, v, *scales = (x[:, :2] for x in cache(rng, 2, jnp.int8))
    q = jnp.asarray(rng.normal(size=(2, 1, 8, H)), jnp.float32)
    ranges = jnp.array([[0], [150]]), jnp.array([[5], [300]])
    axes = ("data", "fsdp", "tensor", "context")
    mesh = jax.make_mesh(sizes, axes, axis_types=(AxisType.Auto,) * 4)
    with jax.set_mesh(mesh):
        attend = jax.jit(functools.partial(in_place_attention, interpret=True))
        mine = attend(q, k, v, 1, *ranges, *scales)
    right, _ = reference(q, (k, v, *scales), 1, *ranges)
    np.testing.assert_allclose(mine, right, atol=2e-6, rtol=1e-5)


def test_few_queries_on_a_tpu_read_the_cache_in_place():
    queries = lambda t: jnp.zeros((1, t, 32, 16), jnp.bfloat16)
    assert reads_in_place(queries(1), 2, "auto", anywhere=True)
    assert not reads_in_place(queries(1), 2, "auto"), "there is no TPU here"
    assert not reads_in_place(queries(8), 2, "auto", anywhere=True), "128 rows are a prompt"
    assert not reads_in_place(queries(1), 2, "reference", anywhere=True)


def test_the_network_reads_an_int8_cache_with_it(monkeypatch):
    sizes = {"vocab_size": 97, "num_layers": 2, "embed_dim": 32, "num_heads": 4, "head_dim": 16}
    config = preset("chatglm2-6b").replace(mlp_dim=48, max_seq_len=64, **sizes)
    model = nn.GLM(config, jax.random.key(0))
    tokens, slots = jnp.array([[5, 6, 7], [8, 9, 10]]), jnp.array([4, 0])
    places = jnp.broadcast_to(jnp.arange(3), (2, 2, 3))
    starts, ends = (x + slots[:, None] for x in nn.causal_ranges(2, 3))

    def decode():
        cache = model.new_cache(2, 16, jnp.int8)
        return jax.jit(lambda *call: model.decode(*call)[0])(
            tokens, places, starts, ends, cache, slots
        )

    right = decode()
    anywhere = functools.partial(reads_in_place, anywhere=True)
    interpreted = functools.partial(in_place_attention, interpret=True)
    monkeypatch.setattr("glm_jax.nn.attention.reads_in_place", anywhere)
    monkeypatch.setattr("glm_jax.nn.attention.in_place_attention", interpreted)
    np.testing.assert_allclose(decode(), right, atol=1e-5)


def test_steps_of_a_worked_example():
    start, end = jnp.array([[0], [6], [5]]), jnp.array([[9], [7], [5]])
    table, count = list_steps(start, end, slots=12, keys=4)
    assert int(count) == 5
    assert table.row[:5].tolist() == [0, 0, 0, 1, 2]
    assert table.block[:5].tolist() == [0, 1, 2, 1, 0]


def test_a_step_reads_about_a_mebibyte():
    assert cut(2, 128, 131072, 2) == (1, 2048)
    assert cut(32, 128, 131072, 2) == (8, 256)
    assert cut(64, 64, 1024, 1) == (8, 512)
    assert cut(2, 128, 100, 2) == (1, 128)
