"""The kernels, interpreted on CPU, against float64 numpy: values and all three gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.sharding import AxisType

from glm_jax.ops import chip
from glm_jax.ops.attention import attention
from glm_jax.ops.attention.context import LocalAttention
from glm_jax.ops.attention.gpu import blocks as gpu_blocks
from glm_jax.ops.attention.gpu import kernel as gpu_kernel
from glm_jax.ops.attention.sharded import sharded_attention
from glm_jax.ops.attention.spans import spans
from glm_jax.ops.attention.tpu import kernel as tpu_kernel
from glm_jax.ops.attention.tpu.blocks import Blocks
from glm_jax.ops.dropout import keeps
from tests import triton

B, T, S, N, K, H = 2, 21, 29, 4, 2, 8

FORWARD = Blocks(queries=8, lanes=16, keys=16, step=8, unit=4, heads=2)
BACKWARD = Blocks(queries=8, lanes=8, keys=16, step=8, unit=4)
TPU = functools.partial(tpu_kernel.Plan, interpret=True)
PLANS = {
    # Two blocks of keys forward, two segments backward.
    "tpu, segments": TPU(FORWARD, BACKWARD),
    "tpu, in place": TPU(
        dataclasses.replace(FORWARD, in_place=True), dataclasses.replace(BACKWARD, in_place=True)
    ),
    # All keys at once, and several tiles of queries in a program.
    "tpu, whole": TPU(
        Blocks(queries=16, lanes=8, keys=32, step=8, unit=4, part=4),
        Blocks(queries=16, lanes=8, keys=32, step=16, unit=4, heads=2, part=2),
    ),
    # Every kernel with blocks of its own; heads are padded to 16 channels.
    "gpu": gpu_kernel.Plan(
        gpu_blocks.Cut(
            gpu_blocks.Blocks(8, 4, 1), gpu_blocks.Blocks(4, 8, 1), gpu_blocks.Blocks(4, 4, 1)
        ),
        interpret=True,
    ),
}
KERNELS = {"tpu": tpu_kernel, "gpu": gpu_kernel}


def numpy_attention(q, k, v, starts, ends, d_out, kept=None):
    """Output, dq, dk, dv in float64, one query of one head at a time.

    ``kept`` [B, T, N, S] multiplies the probabilities: dropout.
    """
    kept = np.ones((*q.shape[:3], k.shape[1])) if kept is None else kept
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
    for b, t, n in np.ndindex(q.shape[:3]):
        keys, head = slice(starts[b, t], ends[b, t]), n // (q.shape[2] // k.shape[2])
        if starts[b, t] >= ends[b, t]:
            continue
        scores = k[b, keys, head] @ q[b, t, n] * q.shape[-1] ** -0.5
        probs = np.exp(scores - scores.max())
        probs /= probs.sum()
        keep = kept[b, t, n, keys]
        out[b, t, n] = (probs * keep) @ v[b, keys, head]
        dv[b, keys, head] += (probs * keep)[:, None] * d_out[b, t, n]
        d_probs = keep * (v[b, keys, head] @ d_out[b, t, n])
        d_scores = probs * (d_probs - out[b, t, n] @ d_out[b, t, n])
        d_scores *= q.shape[-1] ** -0.5
        dq[b, t, n] = d_scores @ k[b, keys, head]
        dk[b, keys, head] += d_scores[:, None] * q[b, t, n]
    return out, dq, dk, dv


@functools.cache
def compiled(name: str, rate: float = 0.0):
    @jax.jit
    def run(q, k, v, starts, ends, d_out, words=None):
        plan = PLANS[name]._replace(dropout=rate)
        kernel = KERNELS[name[:3]]
        attend = lambda q, k, v: kernel.range_attention(plan, q, k, v, starts, ends, words)
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(d_out)

    return run


def inputs(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    q, d_out = rng.normal(size=(2, B, T, N, H)).astype(dtype)
    k, v = rng.normal(size=(2, B, S, K, H)).astype(dtype)
    return q, k, v, d_out


def check(name, starts, ends, seed=0, atol=5e-6):
    q, k, v, d_out = inputs(seed)
    ours = compiled(name)(q, k, v, starts, ends, d_out)
    for mine, right in zip(ours, numpy_attention(q, k, v, starts, ends, d_out), strict=True):
        np.testing.assert_allclose(mine, right, atol=atol)


@st.composite
def ranges(draw):
    """Rows of stretches, each of one kind of range, so that blocks are full, cut and empty."""
    kinds = st.sampled_from(["any", "empty", "one", "all", "causal", "document"])
    starts, ends = np.zeros((2, B, T), np.int32)
    for b in range(B):
        t = 0
        while t < T:
            kind, size = draw(kinds), draw(st.integers(1, 12))
            low, high = sorted((draw(st.integers(0, S)), draw(st.integers(0, S))))
            for at in range(t, min(T, t + size)):
                starts[b, at], ends[b, at] = {
                    "any": (low, high),
                    "empty": (high, low),
                    "one": (min(low, S - 1), min(low, S - 1) + 1),
                    "all": (0, S),
                    "causal": (0, at + 1),
                    "document": (t, min(T, t + size)),
                }[kind]
            t += size
    return starts, ends


@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=40, deadline=None)
@given(drawn=ranges(), seed=st.integers(0, 1000))
def test_values_and_gradients_over_stretches_of_ranges(name, drawn, seed):
    check(name, *drawn, seed)


@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_values_and_gradients_where_every_query_has_its_own_range(name, seed):
    ends = np.random.default_rng(seed).integers(0, S + 1, size=(2, B, T)).astype(np.int32)
    check(name, ends[0], ends[1], seed)  # half of them empty


@pytest.mark.parametrize("name", PLANS)
def test_dropout_is_that_of_the_words_forward_and_backward(name):
    q, k, v, d_out = inputs(2)
    rng = np.random.default_rng(2)
    starts, ends = np.sort(rng.integers(0, S + 1, size=(2, B, T)), axis=0).astype(np.int32)
    words = rng.integers(-(2**31), 2**31, size=(B, T, N)).astype(np.int32)
    kept = np.asarray(keeps(0.3, words[..., None], np.arange(S, dtype=np.int32))) / 0.7
    ours = compiled(name, 0.3)(q, k, v, starts, ends, d_out, words)
    theirs = numpy_attention(q, k, v, starts, ends, d_out, kept)
    for mine, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, right, atol=1e-5)


@pytest.mark.parametrize("name", ["tpu, in place", "gpu"])
def test_a_rate_of_zero_drops_nothing(name):
    q, k, v, d_out = inputs(2)
    ends = np.full((B, T), S, np.int32)
    words = np.zeros((B, T, N), np.int32)
    ours = compiled(name)(q, k, v, 0 * ends, ends, d_out, words)
    for mine, right in zip(ours, numpy_attention(q, k, v, 0 * ends, ends, d_out), strict=True):
        np.testing.assert_allclose(mine, right, atol=5e-6)


@pytest.mark.parametrize("name", PLANS)
def test_queries_that_see_nothing_give_zeros_and_take_no_gradient(name):
    q, k, v, d_out = inputs(0)
    nothing = np.full((B, T), 7, np.int32)
    for x in compiled(name)(q, k, v, nothing, nothing, d_out):
        assert not np.asarray(x).any()


@pytest.mark.parametrize("name", ["tpu, segments", "gpu"])
def test_what_no_query_sees_is_not_computed(name):
    """Keys of other documents are NaN: a product with them, masked or not, would show."""
    q, k, v, d_out = inputs(0)
    k[:, :16] = v[:, :16] = np.nan
    starts, ends = np.full((B, T), 16, np.int32), np.full((B, T), S, np.int32)
    out, dq, dk, dv = compiled(name)(q, k, v, starts, ends, d_out)
    assert all(np.isfinite(x).all() for x in (out, dq))
    assert not np.asarray(dk)[:, :16].any() and not np.asarray(dv)[:, :16].any()


def test_queries_of_other_documents_are_not_computed():
    """Nor are they for the gradients of keys and values, but for what shares a block with them."""
    q, k, v, d_out = inputs(0)
    q[:, :5] = np.nan
    starts = np.broadcast_to(np.arange(T, dtype=np.int32) // 5 * 5, (B, T))
    _, _, dk, dv = compiled("gpu")(q, k, v, starts, starts + 5, d_out)
    assert np.isfinite(dk[:, 12:]).all() and np.isfinite(dv[:, 12:]).all()


@settings(max_examples=100, deadline=None)
@given(drawn=ranges(), tile=st.sampled_from([3, 7, 21]), unit=st.sampled_from([1, 4, 16]))
def test_spans_are_in_order_and_hold_what_is_seen(drawn, tile, unit):
    units = -(-S // unit)
    keys = np.arange(units * unit)
    seen = (keys >= drawn[0][..., None]) & (keys < drawn[1][..., None])
    blocks = seen.reshape(B, T // tile, tile, units, unit)
    some, every = blocks.any(axis=(2, 4)), blocks.all(axis=(2, 4))
    of = spans(*drawn, tile=tile, unit=unit)
    for span, turn in (of, lambda x: x), (of.turned(units), lambda x: x.swapaxes(1, 2)):
        first, inner_first, inner_stop, stop = (np.asarray(x)[..., None] for x in span)
        assert (first <= inner_first).all() and (inner_first <= inner_stop).all()
        assert (inner_stop <= stop).all()
        number = np.arange(turn(some).shape[2])
        assert not (turn(some) & ((number < first) | (number >= stop))).any()
        assert turn(every)[(number >= inner_first) & (number < inner_stop)].all()


@pytest.mark.parametrize("name", ["tpu, whole", "tpu, in place", "gpu"])
def test_bfloat16_is_as_near_as_bfloat16_allows(name):
    q, k, v, d_out = (jnp.asarray(x, jnp.bfloat16) for x in inputs(1))
    ends = np.broadcast_to(np.arange(1, T + 1, dtype=np.int32), (B, T))
    ours = compiled(name)(q, k, v, 0 * ends, ends, d_out)
    assert all(x.dtype == jnp.bfloat16 for x in ours)
    for mine, right in zip(ours, numpy_attention(q, k, v, 0 * ends, ends, d_out), strict=True):
        np.testing.assert_allclose(np.asarray(mine, np.float64), right, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("form", "kv_heads"), [("tpu", 1), ("tpu", 2), ("gpu", 1)])
def test_on_a_mesh_it_gives_what_one_device_gives(form, kv_heads):
    """Batch, heads and queries cut; two key heads are cut, one is shared by the shards."""
    rng = np.random.default_rng(0)
    q, weights = rng.normal(size=(2, 2, 128, 4, 16)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 128, kv_heads, 16)).astype(np.float32)
    ends = np.sort(rng.integers(0, 129, size=(2, 2, 128)), axis=0).astype(np.int32)

    @functools.partial(jax.jit, static_argnums=0)
    def both(attend, q, k, v):
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, *ends), q, k, v)
        return out, *pull(weights)

    kernel = functools.partial(sharded_attention, LocalAttention(form, 2**26, interpret=True))
    axes = ("data", "fsdp", "tensor", "context")
    mesh = jax.make_mesh((2, 1, 2, 2), axes, axis_types=(AxisType.Auto,) * 4)
    with jax.set_mesh(mesh):
        ours = both(kernel, q, k, v)
    theirs = both(functools.partial(attention, implementation="reference"), q, k, v)
    for mine, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, right, atol=2e-5, rtol=1e-5)


def call(t, heads, dtype, channels=16):
    return [
        jnp.zeros((1, t, heads, channels), dtype),
        *jnp.zeros((2, 1, 8, 1, channels), dtype),
        *jnp.zeros((2, 1, t), jnp.int32),
    ]


@pytest.mark.parametrize(
    ("form", "shape", "why"),
    [
        ("tpu", (4, 1, jnp.bfloat16), "TPU kernel .* 4 query rows per key head do not fill"),
        ("tpu", (256, 1, jnp.float16), "q is float16"),
        ("gpu", (4, 1, jnp.bfloat16), "GPU kernel .* 4 queries per row; they take 16 and more"),
        ("gpu", (16, 1, jnp.int8), "q is int8"),
        ("gpu", (16, 1, jnp.float32, 192), "head_dim is 192; of float32 they take up to 128"),
    ],
)
def test_a_call_that_the_kernels_do_not_take_says_why(form, shape, why):
    with pytest.raises(ValueError, match=why):
        attention(*call(*shape), implementation=form)


def test_auto_is_no_kernel_on_a_cpu():
    q, k, v, _ = inputs(0)
    ends = np.full((B, T), S, np.int32)
    auto = jax.jit(attention).lower(q, k, v, 0 * ends, ends).as_text()
    assert "range_attention" not in auto and not chip.on_tpu() and not chip.on_nvidia()


@pytest.mark.parametrize(
    ("kind", "takes", "memory"),
    [
        ("NVIDIA H100 80GB HBM3", True, 227), ("NVIDIA H20", True, 227), ("NVIDIA B200", True, 227),
        ("NVIDIA GH200 480GB", True, 227), ("NVIDIA A100-SXM4-80GB", True, 99),
        ("NVIDIA GeForce RTX 4090", True, 99), ("NVIDIA GB10", True, 99), ("NVIDIA L4", True, 99),
        ("NVIDIA Tesla T4", False, 99), ("Tesla V100-SXM2-32GB", False, 99),
        ("NVIDIA T1000", False, 99), ("NVIDIA GeForce MX450", False, 99),
        ("NVIDIA GeForce RTX 2050", True, 99), ("NVIDIA GeForce RTX 2080 Ti", False, 99),
        ("AMD Instinct MI300X", False, 99),
    ],
)  # fmt: skip
def test_which_gpus_the_kernels_are_for(kind, takes, memory):
    class Named:
        platform, device_kind = "gpu", kind

    class Mesh:
        abstract_device = Named

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.sharding, "get_abstract_mesh", Mesh)
        assert chip.on_nvidia() == takes and not chip.on_tpu()
        assert chip.fast_memory() == memory * 2**10


@pytest.mark.parametrize("shared", [99 * 2**10, 227 * 2**10])
@pytest.mark.parametrize(("dtype", "channels"), [("bfloat16", 128), ("float32", 64)])
def test_the_gpu_kernels_are_lowered_for_cuda(shared, dtype, channels):
    """Which JAX does anywhere; only what Triton then makes of it needs NVIDIA's compiler."""
    local = LocalAttention("gpu", shared, dropout=0.1)
    shape = lambda *sizes, dtype=dtype: jax.ShapeDtypeStruct(sizes, dtype)
    q, k = shape(1, 300, 4, channels), shape(1, 300, 2, channels)
    ends = shape(1, 300, dtype="int32")

    def both(q, k, v, k_start, k_end, words, d_out):
        out, pull = jax.vjp(lambda q, k, v: local(q, k, v, k_start, k_end, words), q, k, v)
        return out, *pull(d_out)

    traced = jax.jit(both).trace(q, k, k, ends, ends, shape(1, 300, 4, dtype="int32"), q)
    lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("__gpu$xla.gpu.triton") == 3


@pytest.mark.parametrize(("dtype", "rate"), [("float32", 0.3), ("bfloat16", 0.0)])
def test_what_triton_gets_computes_attention(monkeypatch, dtype, rate):
    """Its own instructions in numpy, pointers and inline PTX included."""
    monkeypatch.setattr(pl, "pallas_call", triton.pallas_call)
    rng = np.random.default_rng(0)
    q, d_out = jnp.asarray(rng.normal(size=(2, 2, 37, 4, 24)), dtype)
    k, v = jnp.asarray(rng.normal(size=(2, 2, 53, 2, 24)), dtype)
    starts, ends = np.sort(rng.integers(0, 54, size=(2, 2, 37)), axis=0).astype(np.int32)
    starts[0], ends[0] = 0, np.arange(37) + 10
    words = rng.integers(-(2**31), 2**31, size=(2, 37, 4)).astype(np.int32) if rate else None
    sizes = (16, 32), (32, 16), (16, 16)
    small = gpu_blocks.Cut(*(gpu_blocks.Blocks(*x, 4) for x in sizes))
    table = gpu_blocks.choose(37, 53, 24, q.dtype.itemsize, chip.LARGEST_SHARED)
    plan = gpu_kernel.Plan(small if dtype == "float32" else table, rate)
    attend = lambda q, k, v: gpu_kernel.range_attention(plan, q, k, v, starts, ends, words)
    out, pull = jax.vjp(attend, q, k, v)
    kept = np.ones((2, 37, 4, 53))
    if rate:
        kept = np.asarray(keeps(rate, words[..., None], np.arange(53, dtype=np.int32))) / (1 - rate)
    theirs = numpy_attention(q, k, v, starts, ends, d_out, kept)
    for mine, right in zip((out, *pull(d_out)), theirs, strict=True):
        near = 1e-5 if dtype == "float32" else 0.03
        np.testing.assert_allclose(np.asarray(mine, np.float64), right, atol=near, rtol=near)
