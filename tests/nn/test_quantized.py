"""Layers of integers: packing, rounding, and a network that computes what its integers say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from glm_jax import nn
from glm_jax.ckpts import load_model, save_model
from glm_jax.ckpts.trees import flat_paths, from_plain, to_plain
from glm_jax.config import preset
from glm_jax.nn.linear import BITS
from glm_jax.ops.quantized import dequantize, pack_int4, quantize, unpack_int4
from glm_jax.ops.quantized_linear import quantized_linear

CONFIG = preset("chatglm2-6b").replace(
    vocab_size=40, num_layers=2, embed_dim=16, num_heads=4, head_dim=4, mlp_dim=24, max_seq_len=32
)
TOKENS = np.array([[1, 2, 3, 4, 5, 6]], np.int32)
POSITIONS = np.stack([np.arange(6), np.zeros(6)])[None].astype(np.int32)
RANGES = nn.causal_ranges(1, 6)
forward = jax.jit(nn.GLM.__call__)


@pytest.fixture(scope="module", params=["int8", "int4"])
def model(request):
    return nn.GLM(CONFIG.replace(quantization=request.param), jax.random.key(0))


def test_even_columns_lie_in_the_high_half_of_a_byte():
    q = jnp.array([[1, -2, 7, -8]], jnp.int8)
    packed = pack_int4(q)
    assert np.asarray(packed).view(np.uint8).tolist() == [[0x1E, 0x78]]
    assert np.array_equal(unpack_int4(packed), q)


def test_every_pair_of_numbers_survives_packing():
    q = np.stack(np.meshgrid(np.arange(-8, 8), np.arange(-8, 8)), -1).reshape(1, -1)
    assert np.array_equal(unpack_int4(pack_int4(jnp.asarray(q, jnp.int8))), q)


def test_one_scale_per_row_and_the_largest_number_kept():
    weight = jnp.array([[0.5, -1.27], [0.0, 0.0]])
    q, scale = quantize(weight, 8)
    assert scale.dtype == jnp.float16
    assert q.tolist() == [[50, -127], [0, 0]]
    np.testing.assert_allclose(dequantize(q, scale, 8), weight, atol=1e-3)


def test_the_product_is_that_of_the_dequantised_weight():
    weight = jax.random.normal(jax.random.key(0), (5, 3, 4))
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    q, scale = quantize(weight, 4, inputs=2)
    expected = jnp.einsum("BNH,DNH->BD", x, dequantize(q, scale, 4))
    np.testing.assert_allclose(
        quantized_linear(x, q, scale, bits=4, inputs=2), expected, rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="int4 weight contracts"):
        quantized_linear(x[..., :2], q, scale, bits=4, inputs=2)


def test_shapes_are_the_releases_own(model):
    half = 2 if model.config.quantization == "int4" else 1
    o_proj, down = model.layers.attention.o_proj, model.layers.mlp.down_proj
    assert o_proj.weight_q.shape == (2, 16, 4, 4 // half)
    assert o_proj.weight_scale.shape == (2, 16)
    assert down.weight_q.shape == (2, 16, 24 // half)
    assert model.layers.attention.q_proj.weight_scale.shape == (2, 4, 4)
    assert down.weight_q.dtype == jnp.int8


def dequantised(model):
    """The same network with its integers multiplied out."""
    bits = BITS[model.config.quantization]
    like = jax.eval_shape(
        lambda key: nn.GLM(CONFIG.replace(quantization="none"), key), jax.random.key(0)
    )
    have = flat_paths(to_plain(model))
    plain: dict = {}
    for name in flat_paths(to_plain(like)):
        value = have.get(name)
        if value is None:
            value = dequantize(have[f"{name}_q"], have[f"{name}_scale"], bits)
        *parents, last = name.split(".")
        node = plain
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return from_plain(plain, like)


def test_the_network_computes_with_float_scale_times_integer(model):
    ours = forward(model, TOKENS, POSITIONS, *RANGES)
    np.testing.assert_allclose(
        ours, forward(dequantised(model), TOKENS, POSITIONS, *RANGES), atol=1e-6
    )


def test_what_is_not_an_integer_can_be_trained(model):
    floats, fixed = nnx.split_state(nnx.state(model), nnx.Param, ...)
    graph = nnx.graphdef(model)
    names = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(fixed)}
    assert "layers.mlp.down_proj.weight_q" in names
    assert all(name.endswith(("weight_q", "weight_scale")) for name in names)

    def loss(floats):
        return forward(nnx.merge(graph, floats, fixed), TOKENS, POSITIONS, *RANGES).std()

    grads = jax.jit(jax.grad(loss))(floats)
    norm = grads["layers"]["attention_norm"]["weight"]
    assert np.abs(np.asarray(norm[...])).max() > 0


def test_integers_and_scales_stay_when_read_in_another_type(model, tmp_path):
    save_model(tmp_path / "m", model, model.config)
    back = load_model(tmp_path / "m", dtype="bfloat16")
    down, theirs = back.layers.mlp.down_proj, model.layers.mlp.down_proj
    assert np.array_equal(down.weight_q[...], theirs.weight_q[...])
    assert np.array_equal(down.weight_scale[...], theirs.weight_scale[...])
    assert down.weight_scale.dtype == jnp.float16
    assert back.embedding.dtype == jnp.bfloat16
