"""Layers that are not stacked, or whose weights contract one axis, compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import glm_jax
from glm_jax import nn
from glm_jax.config import preset
from glm_jax.peft import add_lora, lora_targets

SMALL = {
    "vocab_size": 40, "num_layers": 3, "embed_dim": 16, "num_heads": 4, "head_dim": 4,
    "mlp_dim": 24, "max_seq_len": 32,
}  # fmt: skip
CONFIGS = {
    "chatglm2": preset("chatglm2-6b").replace(**SMALL, num_kv_heads=2),
    "tied": preset("chatglm-6b").replace(**SMALL, num_kv_heads=4),
    "int4": preset("chatglm2-6b").replace(**SMALL, num_kv_heads=2, quantization="int4"),
}
forward = jax.jit(nn.GLM.__call__, static_argnames="compute")


@pytest.mark.parametrize("rows", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_logits(name, rows, dtype):
    model = nn.GLM(CONFIGS[name], jax.random.key(0), param_dtype=jnp.dtype(dtype))
    tokens = jax.random.randint(jax.random.key(1), (rows, 6), 0, 40)
    positions = jnp.broadcast_to(jnp.stack([jnp.arange(6), jnp.zeros(6, int)]), (rows, 2, 6))
    compute = nn.Compute(dtype=dtype)
    stacked, single = (
        forward(m, tokens, positions, *nn.causal_ranges(rows, 6), compute=compute)
        for m in (model, nn.unstacked(model))
    )
    np.testing.assert_allclose(single, stacked, atol=1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("name", ["chatglm2", "int4"])
def test_one_axis_contracted_gives_the_same(name):
    """Beside a LoRA that is not merged, too: it keeps the axes of its own matrices."""
    model = nn.GLM(CONFIGS[name], jax.random.key(0))
    model = add_lora(model, lora_targets(model, ["o_proj"]), jax.random.key(1), rank=2, scale=1.0)
    b = model.layers.attention.o_proj.lora.b
    b[...] = jax.random.normal(jax.random.key(2), b.shape)
    tokens = jnp.arange(4)[None]
    positions = jnp.broadcast_to(jnp.stack([jnp.arange(4), jnp.zeros(4, int)]), (1, 2, 4))
    ranges = nn.causal_ranges(1, 4)
    compute = nn.Compute(dtype="float32")
    other = nn.arranged(model)
    assert nn.is_arranged(other) and not nn.is_arranged(model)
    plain, flat = (forward(m, tokens, positions, *ranges, compute=compute) for m in (model, other))
    np.testing.assert_allclose(flat, plain, atol=1e-5)


def test_the_model_itself_is_left_alone():
    model = nn.GLM(CONFIGS["tied"], jax.random.key(0))
    nn.arranged(model)
    assert model.layers.attention.o_proj.weight.shape == (3, 16, 4, 4)
    other = nn.unstacked(model)
    assert model.layers.mlp.up_proj.weight.shape == (3, 24, 16)
    assert [layer.mlp.up_proj.weight.shape for layer in other.layers] == [(24, 16)] * 3


def test_generate_uses_them_and_answers_alike():
    model = nn.GLM(CONFIGS["chatglm2"], jax.random.key(0))
    prompts = [[5, 6, 7], [8, 9]]
    together = glm_jax.generate(model, prompts, max_new_tokens=8, stop_ids=[])
    alone = [glm_jax.generate(model, [p], max_new_tokens=8, stop_ids=[])[0] for p in prompts]
    assert together == alone
