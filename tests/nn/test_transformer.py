"""Properties of the network that need no reference."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from glm_jax import nn
from glm_jax.config import preset

SMALL = {"vocab_size": 97, "num_layers": 3, "embed_dim": 32, "max_seq_len": 64}
FAMILIES = {
    "glm": preset("glm-base").replace(num_heads=4, num_kv_heads=4, head_dim=8, mlp_dim=64, **SMALL),
    "chatglm": preset("chatglm-6b").replace(
        num_heads=4, num_kv_heads=4, head_dim=8, mlp_dim=64, **SMALL
    ),
    "chatglm2": preset("chatglm2-6b").replace(num_heads=4, head_dim=8, mlp_dim=48, **SMALL),
    "one_row_rope": preset("chatglm-6b").replace(
        rope_2d=False, num_heads=4, num_kv_heads=4, head_dim=8, mlp_dim=64, tied_head=False, **SMALL
    ),
}
LENGTH, SEP = 12, 5


@functools.cache
def made(name):
    return jax.jit(lambda key: nn.GLM(FAMILIES[name], key))(jax.random.key(0))


@pytest.fixture(params=FAMILIES)
def model(request):
    return jax.tree.map(lambda x: x, made(request.param))


# What compiles a gradient, for two of them: learned positions and two rows of rotary ones.
two_families = pytest.mark.parametrize("model", list(FAMILIES)[:2], indirect=True)


def batch(rows=2, seed=0):
    rng = np.random.default_rng(seed)
    steps = np.arange(LENGTH)
    row0 = np.minimum(steps, SEP - 1)
    positions = np.stack([row0, np.maximum(steps - SEP + 1, 0)])
    k_start, k_end = nn.prefix_ranges(jnp.full(rows, SEP), LENGTH)
    return {
        "tokens": jnp.asarray(rng.integers(0, 97, (rows, LENGTH))),
        "targets": jnp.asarray(rng.integers(0, 97, (rows, LENGTH))),
        "loss_weights": jnp.asarray(np.tile(steps >= SEP, (rows, 1)), jnp.float32),
        "positions": jnp.asarray(np.tile(positions, (rows, 1, 1)), jnp.int32),
        "k_start": k_start,
        "k_end": k_end,
    }


def inputs(b):
    return b["tokens"], b["positions"], b["k_start"], b["k_end"]


def mean_loss(model, b, compute, key=None):
    (total, weight), _ = nn.lm_loss(model, b, compute=compute, dropout_key=key)
    return total / weight


def tree_close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_decoding_with_the_cache_gives_the_full_forward(model):
    """Prefill Part A and two more, then token by token, rows at their own cache slots."""
    b = batch()
    full = model(*inputs(b))
    cache = nn.KVCache.zeros(model.config, 2, LENGTH + 3)
    decode = jax.jit(nn.GLM.decode)
    parts, done = [], 0
    for step in (SEP + 2, *[1] * (LENGTH - SEP - 2)):
        now = slice(done, done + step)
        args = (
            b["tokens"][:, now],
            b["positions"][..., now],
            b["k_start"][:, now],
            b["k_end"][:, now],
        )
        hidden, cache = decode(model, *args, cache, jnp.full(2, done))
        parts.append(model.logits(hidden))
        done += step
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, atol=1e-5)


def test_rows_of_unequal_length_decode_as_each_would_alone(model):
    b = batch()
    slots = jnp.asarray([3, 0])
    cache = nn.KVCache.zeros(model.config, 2, LENGTH + 3)
    starts, ends = (b[k] + slots[:, None] for k in ("k_start", "k_end"))
    hidden, _ = model.decode(b["tokens"], b["positions"], starts, ends, cache, slots)
    np.testing.assert_allclose(model.logits(hidden), model(*inputs(b)), atol=1e-5)


@two_families
@pytest.mark.parametrize(
    "remat", ["minimal", *(pytest.param(x, marks=pytest.mark.slow) for x in ("full", "attention"))]
)
def test_rematerialisation_and_unrolling_change_nothing(model, remat):
    b = batch()
    grad = lambda compute: jax.jit(jax.grad(mean_loss), static_argnums=2)(model, b, compute)
    other = nn.Compute(remat=remat, unroll=3, attention="chunked", loss_chunk=10)
    tree_close(grad(nn.Compute()), grad(other), 1e-6)


@two_families
def test_bfloat16_compute_keeps_float32_parameters_and_comes_close(model):
    b, compute = batch(), nn.Compute(dtype="bfloat16")
    grads = jax.grad(mean_loss)(model, b, compute)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(model(*inputs(b), compute=compute), model(*inputs(b)), atol=0.1)


def test_padding_changes_nothing():
    model = nn.GLM(FAMILIES["glm"], jax.random.key(0))
    b = batch()
    lengths = jnp.asarray([LENGTH, 8])
    k_start, k_end = nn.prefix_ranges(jnp.full(2, SEP), LENGTH, lengths)
    padded = model(b["tokens"], b["positions"], k_start, k_end)
    noise = b["tokens"].at[1, 8:].set(0)
    again = model(noise, b["positions"], k_start, k_end)
    np.testing.assert_array_equal(padded[1, :8], again[1, :8])
    np.testing.assert_allclose(padded[1, :8], model(*inputs(b))[1, :8], atol=1e-5)


def test_dropout_is_off_without_a_key_and_repeats_with_one():
    model, b = nn.GLM(FAMILIES["glm"], jax.random.key(0)), batch()
    run = lambda key: model(*inputs(b), dropout_key=key)
    same = [run(jax.random.key(1)) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert np.abs(same[0] - run(None)).max() > 1e-3
    assert np.abs(same[0] - run(jax.random.key(2))).max() > 1e-3


def test_embedding_gradient_shrink_scales_the_gradient_and_not_the_value():
    """GLM-130B's alpha. The head is untied here, so the table's whole gradient shrinks."""
    model, b = nn.GLM(FAMILIES["chatglm2"], jax.random.key(0)), batch()

    def loss(model, alpha):
        (total, weight), _ = nn.lm_loss(model, b, embed_grad_scale=alpha)
        return total / weight

    plain, shrunk = (jax.value_and_grad(loss)(model, alpha) for alpha in (1.0, 0.1))
    np.testing.assert_allclose(plain[0], shrunk[0], rtol=1e-6)
    np.testing.assert_allclose(0.1 * plain[1].embedding[...], shrunk[1].embedding[...], atol=1e-8)
    np.testing.assert_allclose(plain[1].head[...], shrunk[1].head[...], atol=1e-7)


def test_initialisation_scales_with_depth():
    """std 0.02, and 0.02 / sqrt(2 L) for what writes to the residual stream (THUDM/GLM)."""
    config = preset("glm-base").replace(num_layers=8, embed_dim=256, mlp_dim=512, vocab_size=500)
    layers = nn.GLM(config, jax.random.key(0)).layers
    small = 0.02 / np.sqrt(2 * 8)
    for linear, std in (
        (layers.attention.q_proj, 0.02),
        (layers.attention.o_proj, small),
        (layers.mlp.up_proj, 0.02),
        (layers.mlp.down_proj, small),
    ):
        np.testing.assert_allclose(linear.weight[...].std(), std, rtol=0.02)
        assert not linear.bias[...].any()


def test_attention_ranges_count_and_worked_example():
    """Spec 1.9, example A: 14 tokens, sep 9: rows 0-8 see 9 keys, then 10, 11, 12, 13, 14."""
    start, end = nn.prefix_ranges(jnp.asarray([9]), 14)
    assert (end - start)[0].tolist() == [9] * 9 + [10, 11, 12, 13, 14]


def test_modules_are_plain_pytrees(model):
    doubled = jax.tree.map(lambda x: 2 * x, model)
    assert type(doubled) is nn.GLM
    assert doubled.config == model.config
    leaves, structure = jax.tree.flatten(model)
    assert jax.tree.unflatten(structure, leaves).layers.mlp.up_proj.num_inputs == 1


def test_a_compute_choice_that_does_not_exist_is_refused(model):
    with pytest.raises(ValueError, match="remat is 'some'; choose none, full, minimal, attention"):
        mean_loss(model, batch(), dataclasses.replace(nn.Compute(), remat="some"))


@two_families
@pytest.mark.parametrize(
    "mesh",
    [
        {"data": 1, "fsdp": 2, "tensor": 4},
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8, "data": 1}, marks=pytest.mark.slow),
    ],
)
def test_meshes_give_the_single_device_loss_and_gradients(model, mesh):
    from glm_jax import sharding

    b = batch(rows=8)
    step = jax.value_and_grad(lambda m, b: mean_loss(m, b, nn.Compute()))
    single = jax.jit(step)(model, b)
    mesh = sharding.make_mesh(sharding.MeshConfig(**mesh))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(model, sharding.tree_shardings(model, mesh))
        many = jax.jit(step)(sharded, jax.device_put(b, sharding.batch_shardings(mesh)))
    tree_close(single, many, 1e-5)


def test_parameters_are_cut_as_the_table_says():
    from glm_jax import sharding

    model = nn.GLM(FAMILIES["chatglm2"], jax.random.key(0))
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=2, tensor=4))
    named = sharding.tree_shardings(model, mesh)
    got = named.layers.attention.q_proj.weight.get_value().spec
    assert got == PartitionSpec(None, "tensor", None, "fsdp")
    # two kv heads do not divide by four: replicated on that axis
    assert named.layers.attention.k_proj.weight.get_value().spec == PartitionSpec(
        None, None, None, "fsdp"
    )
    assert all(s is None for s in named.final_norm.weight.get_value().spec)


def test_a_mesh_that_does_not_fit_is_refused():
    from glm_jax import sharding

    with pytest.raises(ValueError, match="needs a multiple of 3 devices; there are 8"):
        sharding.make_mesh(sharding.MeshConfig(fsdp=3))
