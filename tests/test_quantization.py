"""Integers made at load: kept through files, near to the floats, nearer with groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import glm_jax
from glm_jax import nn
from glm_jax.ckpts import load_model, save_model
from glm_jax.config import preset
from glm_jax.errors import UserError
from glm_jax.ops.quantized import dequantize, quantize
from glm_jax.ops.quantized_linear import _by_floats, _by_groups, quantized_linear

CONFIG = preset("chatglm2-6b").replace(
    vocab_size=40, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=16,
    mlp_dim=96, max_seq_len=64,
)  # fmt: skip
MODEL = nn.GLM(CONFIG, jax.random.key(0))
PROMPTS = [[5, 6, 7, 8], [9, 10]]
FORMS = [("int8", None), ("int4", None), ("int8", 32), ("int4", 32), ("int4", 8)]


@pytest.mark.parametrize(
    ("to", "group"),
    [FORMS[-2], *(pytest.param(*x, marks=pytest.mark.slow) for x in FORMS if x != FORMS[-2])],
)
def test_quantised_models_survive_files_and_generate(to, group, tmp_path):
    model = glm_jax.quantize(MODEL, to, group)
    assert model.config.quantization == to
    assert model.config.quant_group == (group or 0)
    save_model(tmp_path / "m", model, model.config)
    back = load_model(tmp_path / "m")
    up, theirs = model.layers.mlp.up_proj, back.layers.mlp.up_proj
    assert up.weight_q.dtype == jnp.int8
    assert up.weight_q.shape == (2, 96, 32 if to == "int8" else 16)
    assert up.weight_scale.shape == ((2, 96) if group is None else (2, 96, 32 // group))
    assert np.array_equal(up.weight_q[...], theirs.weight_q[...])
    answers = (glm_jax.generate(m, PROMPTS, max_new_tokens=6, stop_ids=[]) for m in (model, back))
    assert next(answers) == next(answers)


def test_quantised_as_it_is_loaded(tmp_path):
    save_model(tmp_path / "m", MODEL, CONFIG)
    loaded = glm_jax.load(tmp_path / "m", quantize="int4", group_size=16)
    assert loaded.config.quant_group == 16
    with pytest.raises(UserError, match="already"):
        glm_jax.quantize(loaded, "int8")
    with pytest.raises(UserError, match="int3"):
        glm_jax.quantize(MODEL, "int3")
    with pytest.raises(UserError, match="does not divide"):
        glm_jax.quantize(MODEL, "int4", 64)


def test_finer_scales_lie_nearer():
    floats = np.asarray(glm_jax.score(MODEL, [PROMPTS[0]])[0])

    def error(to, group):
        [logits] = glm_jax.score(glm_jax.quantize(MODEL, to, group), [PROMPTS[0]])
        return float(np.abs(np.asarray(logits) - floats).mean())

    assert error("int8", None) < error("int4", 8) < error("int4", None)


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 0), (8, 4), (4, 4)])
def test_products_of_few_rows_and_of_many(rows, dtype, bits, group):
    """A row with a number a thousand times the others' size is the worst case for integers."""
    weight = jax.random.normal(jax.random.key(0), (2048, 2, 12))
    x = jax.random.normal(jax.random.key(1), (rows, 2, 12)).at[0, 0, 0].set(1000.0)
    x = x.astype(dtype)
    q, scale = quantize(weight, bits, inputs=2, group=group)
    floats = dequantize(q, scale, bits, group=group)
    expected = np.einsum("RNH,ONH->RO", np.asarray(x, np.float64), np.asarray(floats, np.float64))
    got = jax.jit(quantized_linear, static_argnames=("bits", "inputs", "group"))(
        x, q, scale, bits=bits, inputs=2, group=group
    )
    tolerance = 3e-7 if dtype == "float32" else 1e-2
    largest = np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(np.asarray(got, np.float64) - expected) / largest).max() < tolerance


@pytest.mark.parametrize("bits", [8, 4])
def test_groups_as_a_tpu_multiplies_them(bits):
    """And without groups: of two output axes it makes no matrix."""
    weight = jax.random.normal(jax.random.key(0), (4, 12, 24))
    x = jax.random.normal(jax.random.key(1), (3, 24))
    for group, product in ((8, _by_groups), (0, _by_floats)):
        q, scale = quantize(weight, bits, group=group)
        floats = dequantize(q, scale, bits, group=group)
        scale = scale.reshape(4, 12, -1)
        expected = jnp.einsum("ri,opi->rop", x, floats)
        np.testing.assert_allclose(product(x, q, scale, bits, group), expected, atol=2e-5)


def test_an_int8_cache_gives_nearly_the_same_logits():
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 40)
    positions = jnp.broadcast_to(jnp.stack([jnp.arange(12), jnp.zeros(12, int)]), (2, 2, 12))
    ranges = nn.causal_ranges(2, 12)

    def read(dtype):
        cache = MODEL.new_cache(2, 12, dtype)
        slots = jnp.zeros(2, int)
        hidden, cache = MODEL.decode(tokens, positions, *ranges, cache, slots)
        return MODEL.logits(hidden), cache

    (floats, _), (integers, cache) = read(jnp.float32), read(jnp.int8)
    assert cache.layers.k.dtype == jnp.int8
    assert cache.layers.k_scale.shape == (2, 2, 2, 12)
    assert 0 < float(jnp.abs(floats - integers).max()) < 0.02 * float(jnp.abs(floats).max())


def test_generate_with_an_int8_cache():
    compute = nn.Compute(cache_dtype="int8")
    [one, two] = glm_jax.generate(MODEL, PROMPTS, max_new_tokens=8, stop_ids=[], compute=compute)
    alone = glm_jax.generate(MODEL, PROMPTS[1:], max_new_tokens=8, stop_ids=[], compute=compute)
    assert len(one) == 8
    assert alone == [two]
